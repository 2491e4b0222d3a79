import json
import math
import sys
import types

import pytest

from gas_ext.training import read_log
from gas_ext.training.logs import JsonLines, Logs, Wandb, open_logs


def test_later_and_half_written_lines_are_removed(tmp_path):
    path = tmp_path / "log.jsonl"
    log = JsonLines(path)
    log.write("validation", 0, {"loss": 0.5})
    assert len(read_log(tmp_path)) == 1  # every line is on disk at once
    for iteration in (1, 2, 3):
        log.write("train", iteration, {"loss": 1.0 / iteration, "gradient_norm": math.nan})
    log.close()
    with path.open("a") as file:
        file.write('{"kind": "train", "itera')
    assert len(read_log(tmp_path)) == 4
    resumed = JsonLines(path, 2)
    resumed.write("train", 3, {"loss": 0.25})
    resumed.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [0, 1, 2, 3]
    assert lines[1] == {"kind": "train", "iteration": 1, "loss": 1.0, "gradient_norm": None}
    assert lines[3] == {"kind": "train", "iteration": 3, "loss": 0.25}
    JsonLines(path).close()  # a new run
    assert read_log(path) == []


def test_tensorboard_is_used_if_it_is_installed(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for made, iterations in ((-1, (1, 2, 3)), (1, (2, 3))):
        logs = open_logs(tmp_path, made, {})
        for iteration in iterations:
            logs.write("train", iteration, {"loss": made + 10.0 * iteration})
        logs.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 9), (2, 21), (3, 31)]


def test_without_tensorboard_there_is_only_the_file(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    logs = open_logs(tmp_path, -1, {})
    logs.write("train", 1, {"loss": 1.0})
    logs.close()
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


class FakeRun:
    def __init__(self, options):
        self.options, self.logged, self.finished = options, [], False

    def log(self, numbers, step):
        self.logged.append((step, numbers))

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    module = types.ModuleType("wandb")
    module.runs = []
    module.init = lambda **options: module.runs.append(FakeRun(options)) or module.runs[-1]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_resumes_its_run(tmp_path, wandb):
    for iteration in (1, 2):
        log = Logs([Wandb("solvers", tmp_path, {"training.seed": 3})])
        log.write("train", iteration, {"loss": 0.5})
        log.close()
    first, second = wandb.runs
    assert first.options["project"] == "solvers"
    assert first.options["id"] == second.options["id"]
    assert first.options["config"] == {"training.seed": 3}
    assert first.logged == [(1, {"train/loss": 0.5})]
    assert first.finished


def test_wandb_is_used_only_on_request(tmp_path, wandb):
    open_logs(tmp_path, -1, {}).close()
    assert wandb.runs == []
    open_logs(tmp_path, -1, {}, "solvers").close()
    assert len(wandb.runs) == 1


def test_wandb_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"gas_ext\[wandb\]"):
        open_logs(tmp_path, -1, {}, "solvers")
