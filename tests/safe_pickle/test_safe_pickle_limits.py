"""Small files that demand much: nothing hangs, memory stays bounded, and nothing runs."""

import pickle
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from hostile_pickles import GLOBAL, blob, snapshot, storage_stream, text

from gas_ext.safe_pickle import DamagedPickleError, Limits, read_pickle, read_torch_archive


def test_laughter_stays_cheap():
    """Each list contains the one before ten times: 10^60 leaves, sixty lists."""
    value = None
    for _ in range(60):
        value = [value] * 10
    found = read_pickle(pickle.dumps(value, 4))
    for _ in range(60):
        assert len(found) == 10
        found = found[3]
    assert found is None


def number(value: int) -> bytes:
    """An integer of any size."""
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def again(function: str, arguments: bytes, times: int) -> bytes:
    """Many calls of a builder with the same arguments."""
    prepared = GLOBAL[function] + b"q\x00" + arguments + b"q\x01"
    return b"\x80\x04(" + prepared + b"h\x00h\x01R" * times + b"t."


NAMES = b"](" + b"".join(b"\x8c\x05%05d" % i for i in range(20_000)) + b"e"
PAIRS = b"](" + b"".join(b"\x8c\x05%05dN\x86" % i for i in range(20_000)) + b"e"
ITEMS = b"}(" + b"".join(b"\x8c\x05%05dN" % i for i in range(20_000)) + b"u"
TWICE_AS_BIG = b"N" + b"q\x05h\x05h\x05\x86" * 100  # a tuple of the one before, twice: 2^100 leaves
MODULUS = 2**61 - 1  # Python's hash of an integer is its remainder
COLLIDING = b"".join(number(k * MODULUS) for k in range(1, 200_000))

# Small files that demand the same large value again and again, or a value that takes forever.
BOMBS = {
    "copied list of pairs": (again("ordered", PAIRS + b"\x85", 100_000), "too many operations"),
    "copied list of names": (again("set", NAMES + b"\x85", 100_000), "too many operations"),
    "copied attributes": (
        b"\x80\x04(" + GLOBAL["linear"] + b"q\x00" + ITEMS + b"q\x01" + b"h\x00)\x81h\x01b" * 100_000 + b"t.",
        "too many operations",
    ),
    "copied text": (
        again("encode", text("a" * 2_000_000) + b"\x8c\x06latin1\x86", 10_000),
        "too many text bytes",
    ),
    "copied NumPy text": (
        again("scalar", GLOBAL["dtype"] + b"\x8c\x07U500000\x85R" + blob(bytes(2_000_000)) + b"\x86", 10_000),
        "too many text bytes",
    ),
    "one stream as many storages": (
        again("load", blob(storage_stream(500_000)) + b"\x85", 10_000),
        "too many stored bytes",
    ),
    "numbers of one hash": (
        b"\x80\x04}(" + b"".join(number(k * MODULUS) + b"N" for k in range(1, 200_000)) + b"u.",
        "too many number keys",
    ),
    "set of numbers": (b"\x80\x04\x8f(" + COLLIDING + b"\x90.", "too many number keys"),
    "set from a list of numbers": (
        again("set", b"](" + b"".join(number(k) for k in range(20_000)) + b"e\x85", 1),
        "too many number keys",
    ),
    "tensors": (
        b"\x80\x04("
        + GLOBAL["load"]
        + blob(storage_stream(1))
        + b"\x85Rq\x00"
        + GLOBAL["tensor"]
        + b"q\x01(h\x00K\x00))tq\x02"
        + b"h\x01h\x02R" * 300_000
        + b"t.",
        "too many operations",
    ),
    "hash of a tuple of tuples": (
        b"\x80\x04(" + TWICE_AS_BIG + b"q\x05" + GLOBAL["dtype"] + b"h\x05\x85Rt.",
        "no name",
    ),
    "key of a tuple of tuples": (b"\x80\x04(" + TWICE_AS_BIG + b"q\x05}h\x05Nst.", "cannot be a key"),
}


@pytest.mark.process
def test_bombs_are_defused_within_little_memory(tmp_path):
    paths = []
    for name, (program, _) in BOMBS.items():
        paths.append(tmp_path / f"{name}.pkl")
        paths[-1].write_bytes(program)
    *said, growth = run_limited(PEAK + READ, *map(str, paths)).splitlines()
    for (name, (_, message)), line in zip(BOMBS.items(), said, strict=True):
        assert message in line, name
    assert int(growth) < 400_000  # KiB


def test_a_stream_that_lists_other_storages_is_refused():
    """Looking up a tuple of tuples among the storages would take forever: its hash is that of every leaf."""
    head = (
        pickle.dumps(0x1950A86A20F9469CFC6C, 2)
        + pickle.dumps(1001, 2)
        + pickle.dumps({"little_endian": True}, 2)
    )
    for keys, message in (
        (b"\x80\x04](" + TWICE_AS_BIG[:-1] + b"\x86e.", "does not list"),
        (pickle.dumps(["0"], 2), "not those that it lists"),
        (pickle.dumps("", 2), "does not list"),
    ):
        with pytest.raises(DamagedPickleError, match=message):
            read_torch_archive(head + pickle.dumps(None, 2) + keys)


def test_operations_are_limited():
    with pytest.raises(DamagedPickleError, match="too many operations"):
        read_pickle(b"\x80\x04]" + b"]a" * 100 + b".", Limits(operations=50))


# Largest memory of a process, KiB. Not ru_maxrss, which a child inherits from its parent.
PEAK = """
status = open("/proc/self/status")

def peak():
    status.seek(0)
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
"""


# Prints the refusal of each file, and the growth of memory.
READ = """
import sys
from gas_ext.safe_pickle import DamagedPickleError, UnsafePickleError, read_pickle
before = peak()
for path in sys.argv[1:]:
    try:
        read_pickle(path)
        print("read")
    except (DamagedPickleError, UnsafePickleError) as error:
        print(error)
print(peak() - before)
"""


# In a separate process: an audit hook ends it as soon as anything is imported, opened or started.
MUTATE = """
import encodings.cp437, os, random, sys  # zipfile decodes names by cp437
from pathlib import Path
from gas_ext.safe_pickle import DamagedPickleError, UnsafePickleError, read_pickle, read_torch_archive

files = [(Path(name).read_bytes(), name.endswith(".pt")) for name in sys.argv[2:]]
for data, archive in files:
    (read_torch_archive if archive else read_pickle)(data)

FORBIDDEN = {"import", "open", "exec", "compile", "os.system", "subprocess.Popen", "os.exec"}

def guard(event, arguments):
    if event in FORBIDDEN:
        os.write(2, f"{event} {arguments}".encode())
        os._exit(3)

sys.addaudithook(guard)
rng = random.Random(0)
outcomes = {"read": 0, "refused": 0, "damaged": 0}
for i in range(int(sys.argv[1])):
    data, archive = files[i % len(files)]
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        position = rng.randrange(len(data))
        change = rng.randrange(4)
        if change == 0:
            data[position] ^= 1 << rng.randrange(8)
        elif change == 1:
            data[position] = rng.randrange(256)
        elif change == 2:
            del data[position : position + rng.randrange(1, 9)]
        else:
            other = rng.randrange(len(data))
            data[position:position] = data[other : other + rng.randrange(1, 40)]
    try:
        (read_torch_archive if archive else read_pickle)(bytes(data))
        outcomes["read"] += 1
    except UnsafePickleError:
        outcomes["refused"] += 1
    except DamagedPickleError:
        outcomes["damaged"] += 1
print(*outcomes.values(), peak())
"""


def run_limited(program: str, *arguments: str) -> str:
    """Run a program in a separate process, for at most two minutes of CPU time; return its output."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (120, 130)),
        timeout=1800,  # a busy machine may take much longer than the CPU time
        cwd=Path(__file__).parents[2],
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.process
def test_ten_thousand_mutations_run_nothing(tmp_path):
    raw, archive = tmp_path / "snapshot.pkl", tmp_path / "archive.pt"
    raw.write_bytes(snapshot())
    torch.save({"state_dict": {"a": torch.arange(20.0)}, "epoch": 3}, archive)
    out = run_limited(PEAK + MUTATE, "10000", str(raw), str(archive))
    read, refused, damaged, peak_kib = map(int, out.split())
    assert read + refused + damaged == 10_000
    assert refused > 10
    assert damaged > 1000
    assert peak_kib < 2**20  # 1 GiB, torch itself included


FLOOD = """
import sys
from gas_ext.safe_pickle import DamagedPickleError, read_pickle
before = peak()
for opcode in map(bytes.fromhex, sys.argv[1:]):
    try:
        read_pickle(b"\\x80\\x04" + opcode * (30_000_000 // len(opcode)))
    except DamagedPickleError as error:
        print(error)
print(peak() - before)
"""


@pytest.mark.process
def test_thirty_megabytes_of_one_opcode_take_less_than_a_gigabyte():
    opcodes = ["8f", "7d", "4e94", "5d94", "8c03c3a961", "47" + "3f" * 8, "8a08" + "7f" * 8]
    *said, growth = run_limited(PEAK + FLOOD, *opcodes).splitlines()
    assert len(said) == len(opcodes)
    assert int(growth) < 2**20  # KiB
