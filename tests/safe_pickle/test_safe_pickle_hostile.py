"""Hostile files are refused: calls, programs, views and archives."""

import copy
import io
import os
import pickle
import struct
import subprocess
import zipfile

import pytest
import torch
from hostile_pickles import GLOBAL, REFUSED, Calls, saved, snapshot, storage_stream, text

from gas_ext.safe_pickle import DamagedPickleError, UnsafePickleError, read_pickle, read_torch_archive

FUNCTIONS = [os.system, os.getpid, eval, exec, getattr, __import__, print, subprocess.Popen, torch.load]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("function", [*FUNCTIONS, torch.hub.load], ids=lambda f: f.__qualname__)
def test_calls_are_refused_by_name(function, protocol):
    with pytest.raises(UnsafePickleError, match=function.__qualname__.split(".")[-1]):
        read_pickle(pickle.dumps([Calls(function, "true")], protocol))


def test_a_hostile_archive_is_refused_by_name():
    with pytest.raises(UnsafePickleError, match=r"names posix\.system"):
        read_torch_archive(saved({"state_dict": {}, "callbacks": Calls(os.system, "true")}))


# Programs in opcodes, and the reason for their refusal.
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
    "nothing popped": (b"R.", "does not exist"),
    "mark crossed": (b"N(\x85.", "does not exist"),
    "no mark": (b"t.", "not started"),
    "unknown memo": (b"h\x07.", "not created"),
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
    # Every list contains the one before, and one list contains all: each is one level from the top.
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
    """A tensor of a four-element storage with these sizes."""
    storage = Calls(torch.storage._load_from_bytes, storage_stream(4))
    return pickle.dumps(Calls(torch._utils._rebuild_tensor_v2, storage, offset, shape, stride, False, {}), 4)


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


def test_a_storage_that_is_never_filled_is_refused():
    stream = storage_stream(4)
    hollow = stream[: stream.rindex(b"\x80")] + pickle.dumps([], 2)
    with pytest.raises(DamagedPickleError, match="not those that it lists"):
        read_pickle(
            b"\x80\x04" + GLOBAL["load"] + b"C" + bytes([len(hollow)]) + hollow + b"\x85R.", tensors=False
        )


def rezipped(change) -> bytes:
    """A torch archive whose entries went through `change(name, data) -> (name, data, compression)`."""
    original, changed = io.BytesIO(saved({"a": torch.arange(100.0)})), io.BytesIO()
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
        (lambda name, data: (name.replace("data.pkl", "other"), data, 0), "not a torch.save archive"),
        (lambda name, data: (name, data[:40] if name.endswith("data/0") else data, 0), "has only 40"),
        (lambda name, data: (name, b"big" if name.endswith("byteorder") else data, 0), "little-endian"),
        (lambda name, data: (f"../{name}", data, 0), "not a torch.save archive"),
    ],
)
def test_altered_archives(change, message):
    with pytest.raises(DamagedPickleError, match=message):
        read_torch_archive(rezipped(change))


def test_overlapping_entries_are_refused():
    """One megabyte under a thousand names: a gigabyte to compare with checksums, and to copy."""
    storage = b"(\x8c\x07storage" + b"ctorch\nFloatStorage\n" + b"%s\x8c\x03cpuJ\x00\x00\x04\x00tQ"
    stored = b"".join(b"(" + storage % text(str(i)) + b"K\x00K\x01\x85K\x01\x85t" for i in range(1000))
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
    file = io.BytesIO(saved({"a": torch.zeros(3)}))
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
    data = bytearray(saved({"a": torch.arange(1000.0)}))
    data[len(data) // 2] ^= 4  # inside the tensor
    with pytest.raises(DamagedPickleError, match="checksum"):
        read_torch_archive(bytes(data))


def test_truncation_anywhere_is_noticed():
    data = snapshot()
    for length in range(len(data)):
        with pytest.raises(REFUSED):
            read_pickle(data[:length])
    read_pickle(data)
