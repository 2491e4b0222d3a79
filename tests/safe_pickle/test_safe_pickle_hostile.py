"""Files made to do harm: nothing runs, nothing hangs, memory stays bounded."""

import collections
import copy
import io
import os
import pickle
import struct
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from gas_ext.safe_pickle import DamagedPickleError, Limits, UnsafePickleError, read_pickle, read_torch_archive

REFUSED = (UnsafePickleError, DamagedPickleError)


class Calls:
    """Pickles into a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def snapshot() -> bytes:
    """A small file with everything the known kinds use: nested streams, views, records, NumPy numbers."""
    value = {
        "noise": torch.arange(12.0).reshape(3, 4),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "kinds": collections.OrderedDict(a=np.float64(0.5), b={1, 2}, c=(None, True, b"x" * 100)),
        "dtype": torch.float32,
        "list": collections.defaultdict(list, p=["text", 2**40, -1.5]),
    }

    return pickle.dumps(value, 4)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "function",
    [
        os.system,
        os.getpid,
        eval,
        exec,
        getattr,
        __import__,
        print,
        subprocess.Popen,
        torch.load,
        torch.hub.load,
    ],
    ids=lambda function: function.__qualname__,
)
def test_calls_are_refused_by_name(function, protocol):
    with pytest.raises(UnsafePickleError, match=function.__qualname__.split(".")[-1]):
        read_pickle(pickle.dumps([Calls(function, "true")], protocol))


def test_a_hostile_archive_is_refused_by_name():
    file = io.BytesIO()
    torch.save({"state_dict": {}, "callbacks": Calls(os.system, "true")}, file)
    with pytest.raises(UnsafePickleError, match=r"names posix\.system"):
        read_torch_archive(file.getvalue())


# Programs in opcodes, and what is said about them.
GLOBAL = {
    "system": b"cos\nsystem\n",
    "ordered": b"ccollections\nOrderedDict\n",
    "linear": b"ctorch.nn.modules.linear\nLinear\n",
    "tensor": b"ctorch._utils\n_rebuild_tensor_v2\n",
    "load": b"ctorch.storage\n_load_from_bytes\n",
    "set": b"cbuiltins\nset\n",
    "encode": b"c_codecs\nencode\n",
    "dtype": b"cnumpy\ndtype\n",
    "scalar": b"cnumpy.core.multiarray\nscalar\n",
}
PROGRAMS = {
    "alias by stack": (b"\x8c\x02os\x8c\x06system\x93.", "os.system"),
    "global in pieces": (b"\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.", "builtins.eval"),
    "dotted name": (b"\x8c\x05torch\x8c\x12hub.os.system\x00\x00\x00\x00\x00\x93.", "torch.hub"),
    "inst": (b"(ios\nsystem\n.", "opcode 0x69"),
    "obj": (b"(" + GLOBAL["linear"] + b"o.", "opcode 0x6f"),
    "newobj_ex": (GLOBAL["linear"] + b")}\x92.", "opcode 0x92"),
    "extension": (b"\x82\x01.", "opcode 0x82"),
    "persistent id": (b"N\x51.", "outside the file"),
    "record called": (GLOBAL["linear"] + b")R.", "calls torch.nn.modules.linear.Linear"),
    "record with arguments": (GLOBAL["linear"] + b"K\x01\x85\x81.", "not on the list"),
    "string called": (b"\x8c\x01a)R.", "calls a str"),
    "attributes of a list": (b"]}b.", "attributes of a list"),
    "attributes of a global": (GLOBAL["ordered"] + b"}b.", "attributes of a PickledGlobal"),
    "attributes by tuple": (GLOBAL["linear"] + b")\x81N}\x86b.", "attributes of a PickledObject"),
    "list as key": (b"}]Ns.", "a list cannot be a key"),
    "tuple as key": (b"})Ns.", "a tuple cannot be a key"),
    "nothing popped": (b"R.", "not there"),
    "mark crossed": (b"N(\x85.", "not there"),
    "no mark": (b"t.", "not begun"),
    "unknown memo": (b"h\x07.", "not made"),
    "two results": (b"NN.", "unfinished"),
    "odd items": (b"}(Nu.", "no value"),
    "nested stream of text": (GLOBAL["load"] + b"\x8c\x01a\x85R.", "not made of bytes"),
    "tensor without storage": (GLOBAL["tensor"] + b"(NK\x00))\x89)tR.", "no storage"),
    "too few arguments": (GLOBAL["tensor"] + b")R.", "TypeError"),
    "huge text": (b"\x8d" + struct.pack("<Q", 2**60) + b".", "too many text bytes"),
    "huge bytes": (b"\x8e" + struct.pack("<Q", 2**60) + b".", "cut off"),
    "huge frame": (b"\x95" + struct.pack("<Q", 2**60) + b".", "cut off"),
    "huge integer": (b"\x8b" + struct.pack("<i", 2**30) + b".", "too long"),
    "negative integer": (b"\x8b" + struct.pack("<i", -5) + b".", "too long"),
    "endless name": (b"c" + b"a" * 1000 + b".", "no end"),
    "old protocol": (b"\x80\x01N.", "protocol 1"),
    "marks": (b"(" * 5000 + b".", "too deeply"),
    "nested tuples": (b"N" + b"\x85" * 5000 + b".", "nested deeper"),
    "nested lists": (b"]" * 5000 + b"a" * 4999 + b".", "nested deeper"),
    "list in itself": (b"]q\x00h\x00a.", "contains itself"),
    "tuple in itself": (b"]q\x00h\x00\x85a.", "contains itself"),
    # Every list holds the one before, and one list holds them all: each is one level from the top.
    "hidden depth": (b"](]q\x00" + b"]h\x00aq\x00" * 500 + b"e.", "nested deeper"),
    "name with control characters": (b"\x8c\x03o\ns\x8c\x05\x1b[2J\n\x93.", r"names o\\ns\.\\x1b\[2J\\n,"),
    "NumPy type without a name": (GLOBAL["dtype"] + b"]\x85R.", "no name"),
    "NumPy type of other objects": (GLOBAL["dtype"] + b"\x8c\x01O\x85R.", "type 'O' is neither"),
    "NumPy text of another length": (
        GLOBAL["scalar"] + GLOBAL["dtype"] + b"\x8c\x03U99\x85RC\x04a\x00\x00\x00\x86R.",
        "another length",
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name):
    program, message = PROGRAMS[name]
    program = program if program[:1] == b"\x80" else b"\x80\x04" + program
    with pytest.raises(REFUSED, match=message) as caught:
        read_pickle(program)
    assert "\n" not in str(caught.value)


def tensor_program(offset, shape, stride):
    """A tensor of a four-element storage with these numbers."""
    stream = io.BytesIO()
    torch.save(torch.zeros(4)._typed_storage(), stream, _use_new_zipfile_serialization=False)

    class Raw:
        def __init__(self, call):
            self.call = call

        def __reduce__(self):
            return self.call

    storage = Raw((torch.storage._load_from_bytes, (stream.getvalue(),)))
    call = (torch._utils._rebuild_tensor_v2, (storage, offset, shape, stride, False, {}))
    return pickle.dumps(Raw(call), 4)


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [
        (0, (5,), (1,)),
        (1, (4,), (1,)),
        (0, (2, 2), (1, 3)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (2**40,), (0,)),
        (0, (2,) * 40, (0,) * 40),
        (0, (2,), ()),
        (0, (-1,), (1,)),
        (0, (2.0,), (1,)),
        (0, (True,), (1,)),
        (2**60, (1,), (1,)),
    ],
)
def test_tensors_stay_inside_their_storage(offset, shape, stride):
    with pytest.raises(DamagedPickleError):
        read_pickle(tensor_program(offset, shape, stride))


def test_a_good_view_is_read():
    assert read_pickle(tensor_program(1, (2,), (2,))).tolist() == [0.0, 0.0]


def test_laughter_stays_cheap():
    """Each list holds the one before ten times: 10^60 leaves, sixty lists."""
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


def text(value: str) -> bytes:
    data = value.encode()
    return b"\x8d" + struct.pack("<Q", len(data)) + data


def again(function: str, arguments: bytes, times: int) -> bytes:
    """A call of a builder with the same arguments, made once, many times over."""
    prepared = GLOBAL[function] + b"q\x00" + arguments + b"q\x01"
    return b"\x80\x04(" + prepared + b"h\x00h\x01R" * times + b"t."


def storage_stream(count: int) -> bytes:
    file = io.BytesIO()
    torch.save(torch.zeros(count)._typed_storage(), file, _use_new_zipfile_serialization=False)
    return file.getvalue()


NAMES = b"](" + b"".join(b"\x8c\x05%05d" % i for i in range(20_000)) + b"e"
PAIRS = b"](" + b"".join(b"\x8c\x05%05dN\x86" % i for i in range(20_000)) + b"e"
ITEMS = b"}(" + b"".join(b"\x8c\x05%05dN" % i for i in range(20_000)) + b"u"
TWICE_AS_BIG = b"N" + b"q\x05h\x05h\x05\x86" * 100  # a tuple of the one before, twice: 2^100 leaves
MODULUS = 2**61 - 1  # Python's hash of an integer is its remainder

# Small files that ask for the same large thing again and again, or for something that takes for ever.
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
        again(
            "scalar",
            GLOBAL["dtype"]
            + b"\x8c\x07U500000\x85R\x8e"
            + struct.pack("<Q", 2_000_000)
            + bytes(2_000_000)
            + b"\x86",
            10_000,
        ),
        "too many text bytes",
    ),
    "one stream as many storages": (
        again(
            "load",
            b"\x8e" + struct.pack("<Q", len(storage_stream(500_000))) + storage_stream(500_000) + b"\x85",
            10_000,
        ),
        "too many stored bytes",
    ),
    "numbers of one hash": (
        b"\x80\x04}(" + b"".join(number(k * MODULUS) + b"N" for k in range(1, 200_000)) + b"u.",
        "too many number keys",
    ),
    "set of numbers": (
        b"\x80\x04\x8f(" + b"".join(number(k * MODULUS) for k in range(1, 200_000)) + b"\x90.",
        "too many number keys",
    ),
    "set from a list of numbers": (
        again("set", b"](" + b"".join(number(k) for k in range(20_000)) + b"e\x85", 1),
        "too many number keys",
    ),
    "tensors": (
        b"\x80\x04("
        + GLOBAL["load"]
        + b"\x8e"
        + struct.pack("<Q", len(storage_stream(1)))
        + storage_stream(1)
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
    """Looking up a tuple of tuples among the storages would take for ever: its hash is that of every leaf."""
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


def test_a_storage_that_is_never_filled_is_refused():
    stream = storage_stream(4)
    hollow = stream[: stream.rindex(b"\x80")] + pickle.dumps([], 2)
    with pytest.raises(DamagedPickleError, match="not those that it lists"):
        read_pickle(
            b"\x80\x04" + GLOBAL["load"] + b"C" + bytes([len(hollow)]) + hollow + b"\x85R.", tensors=False
        )


def test_operations_are_limited():
    with pytest.raises(DamagedPickleError, match="too many operations"):
        read_pickle(b"\x80\x04]" + b"]a" * 100 + b".", Limits(operations=50))


def rezipped(change) -> bytes:
    """A torch archive whose entries went through `change(name, data) -> (name, data, compression)`."""
    original = io.BytesIO()
    torch.save({"a": torch.arange(100.0)}, original)
    changed = io.BytesIO()
    with zipfile.ZipFile(original) as source, zipfile.ZipFile(changed, "w") as target:
        for name in source.namelist():
            new_name, data, compression = change(name, source.read(name))
            target.writestr(zipfile.ZipInfo(new_name), data, compression)
    return changed.getvalue()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, data: (name, data, zipfile.ZIP_DEFLATED), "compressed"),
        (lambda name, data: (name.replace("data/0", "data/7"), data, 0), "KeyError"),
        (lambda name, data: (name.replace("data.pkl", "other"), data, 0), "no torch.save archive"),
        (lambda name, data: (name, data[:40] if name.endswith("data/0") else data, 0), "has only 40"),
        (lambda name, data: (name, b"big" if name.endswith("byteorder") else data, 0), "little-endian"),
    ],
)
def test_archives_that_were_tampered_with(change, message):
    with pytest.raises(DamagedPickleError, match=message):
        read_torch_archive(rezipped(change))


def test_entries_outside_the_archive_s_folder_are_never_written_or_read(tmp_path):
    data = rezipped(lambda name, data: (f"../{name}", data, 0))
    with pytest.raises(DamagedPickleError):
        read_torch_archive(data)


def test_entries_that_lie_on_top_of_each_other_are_refused():
    """One megabyte under a thousand names: a gigabyte to compare with checksums, and to copy."""
    kind = b"(\x8c\x07storage" + b"ctorch\nFloatStorage\n" + b"%s\x8c\x03cpuJ\x00\x00\x04\x00tQ"
    stored = b"".join(b"(" + kind % text(str(i)) + b"K\x00K\x01\x85K\x01\x85t" for i in range(1000))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x04](" + stored + b"e.")
        archive.writestr("x/data/0", bytes(2**20))
        for i in range(1, 1000):
            entry = copy.copy(archive.getinfo("x/data/0"))
            entry.filename = f"x/data/{i}"
            archive.filelist.append(entry)
    with pytest.raises(DamagedPickleError, match="too many stored bytes"):
        read_torch_archive(file.getvalue())


def test_two_entries_of_one_name_are_refused():
    file = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, file)
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(next(n for n in archive.namelist() if n.endswith("data.pkl")), b"\x80\x04N.")
    with pytest.raises(DamagedPickleError, match="same name"):
        read_torch_archive(file.getvalue())


def test_an_endless_directory_is_refused():
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", *[0] * 16)
    directory = entry * 400_000
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0, 0, len(directory), 4, 0)
    with pytest.raises(DamagedPickleError, match="directory is too long"):
        read_torch_archive(b"PK\3\4" + directory + end)


def test_a_flipped_bit_in_an_archive_is_noticed():
    file = io.BytesIO()
    torch.save({"a": torch.arange(1000.0)}, file)
    data = bytearray(file.getvalue())
    data[len(data) // 2] ^= 4  # inside the tensor
    with pytest.raises(DamagedPickleError, match="checksum"):
        read_torch_archive(bytes(data))


def test_truncation_anywhere_is_noticed():
    data = snapshot()
    for length in range(len(data)):
        with pytest.raises(REFUSED):
            read_pickle(data[:length])
    read_pickle(data)


# Largest memory of a process, KiB. Not ru_maxrss, which a child inherits from the process that starts it.
PEAK = """
status = open("/proc/self/status")

def peak():
    status.seek(0)
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
"""

# Prints what is said about each file, and the growth of memory.
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

# In a process of its own: an audit hook ends it as soon as anything is imported, opened or started.
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
        place = rng.randrange(len(data))
        kind = rng.randrange(4)
        if kind == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[place] = rng.randrange(256)
        elif kind == 2:
            del data[place : place + rng.randrange(1, 9)]
        else:
            other = rng.randrange(len(data))
            data[place:place] = data[other : other + rng.randrange(1, 40)]
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
    """Run a program in a process of its own, for at most two minutes; return what it prints."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


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


def test_thirty_megabytes_of_one_opcode_take_less_than_a_gigabyte():
    opcodes = ["8f", "7d", "4e94", "5d94", "8c03c3a961", "47" + "3f" * 8, "8a08" + "7f" * 8]
    *said, growth = run_limited(PEAK + FLOOD, *opcodes).splitlines()
    assert len(said) == len(opcodes)
    assert int(growth) < 2**20  # KiB
