import os
import socket
import subprocess
import sys

import pytest

from gas_ext._utils.processes import Launch

MEMBER = """
import sys
from pathlib import Path

from gas_ext._utils.processes import join_processes

def threads():
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]

processes = join_processes("cpu")
import torch._dynamo  # as validation does on the way

processes.wait()
print(any("gloo" in name for name in threads()))
processes.leave()
print([name for name in threads() if "gloo" in name])
"""


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="names of threads are read from /proc")
def test_no_thread_of_gloo_is_left():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    members = [
        subprocess.Popen(
            [sys.executable, "-c", MEMBER],
            env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    assert [member.communicate(timeout=120)[0].split() for member in members] == [["True", "[]"]] * 2
    assert [member.returncode for member in members] == [0, 0]


def test_empty_variables_count_as_absent_and_others_must_be_integers(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
    assert Launch.read() == Launch(0, 1, None)
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(ValueError, match=r"^RANK is 'first', but must be an integer; .*\.$"):
        Launch.read()
