"""Seeded damage to the bytes, values and tensors of files."""

import copy
import struct

import torch

DEEP = [[]]
for _ in range(3000):
    DEEP = [DEEP]

HOSTILE = [
    *(None, True, -1, 0, 1, 2, 7, 1000, 10**8, 10**9, 2**31, 2**62, 2**64, -(2**70), 10**400),
    *(0.0, -0.0, 1e-5, 0.5, 1e300, -1e300, float("nan"), float("inf"), float("-inf")),
    *("", "x", "\x1b[31mred", "a\nb", "../..", "/etc/passwd", "\ud800", "a" * 10_000, "0-99999998", "cuda"),
    *([], {}, [10**9], [2**40, 2**40], [-1], ["x"], [None], {"a": {"b": []}}, DEEP, [[1]] * 50),
]


def damaged_bytes(rng, content: bytes) -> bytes:
    """Content with flipped, cut, doubled, zeroed or false bytes."""
    data = bytearray(content)
    how = rng.choice(["flip", "flip", "cut", "insert", "zero", "head", "number"])
    at = rng.randrange(len(data))
    if rng.random() < 0.5:
        at = min(at, rng.randrange(600))  # headers are at the beginning
    if how == "flip":
        for _ in range(rng.choice([1, 1, 2, 8])):
            data[(at + rng.randrange(64)) % len(data)] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del data[at:]
    elif how == "insert":
        data[at:at] = data[at : at + rng.randrange(1, 200)]
    elif how == "zero":
        data[at : at + 16] = bytes(min(16, len(data) - at))
    elif how == "head":
        data[:8] = struct.pack("<Q", rng.choice([0, 1, 2**20, 2**31, 2**63, len(data), len(data) - 8]))
    else:
        false = struct.pack(rng.choice(["<I", "<Q"]), rng.choice([2**20, 2**30, 2**31]))
        data[at : at + len(false)] = false
    return bytes(data)


def damaged_tree(rng, tree):
    """A copy of nested dicts and lists in which one value is hostile, missing, or under another name."""
    tree = copy.deepcopy(tree)
    entries = list(_entries(tree))
    if not entries:
        return rng.choice(HOSTILE)
    holder, key = rng.choice(entries)
    how = rng.random()
    if how < 0.75:
        holder[key] = rng.choice(HOSTILE)
    elif how < 0.9 or not isinstance(holder, dict):
        del holder[key]
    else:
        holder[rng.choice(["", "x", "family", "\x1b[31m", "../.."])] = holder.pop(key)
    return tree


def _entries(tree):
    for key in tree if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from _entries(tree[key])


def damaged_tensors(rng, tensors):
    """The same tensors, except that one is missing, renamed, or of another type, shape or value."""
    tensors = dict(tensors)
    name = rng.choice(sorted(tensors))
    tensor = tensors.pop(name)
    how = rng.randrange(8)
    if how == 0:
        tensors[rng.choice(["", "x", "\x1b[31m", "a/b/c"])] = tensor
    elif how == 1:
        tensors[name] = tensor.to(rng.choice([torch.int64, torch.float16, torch.bool, torch.float64]))
    elif how == 2:
        tensors[name] = torch.full_like(tensor, 1 if tensor.dtype == torch.bool else -1)
    elif how == 3 and tensor.is_floating_point():
        tensors[name] = torch.full_like(tensor, rng.choice([float("nan"), float("inf"), 1e30]))
    elif how == 4:
        tensors[name] = tensor.flatten()[: tensor.numel() // 2]
    elif how == 5:
        tensors[name] = tensor[None]
    elif how == 6:
        tensors[name] = torch.zeros(rng.choice([(0,), (0, 2**27), (), (1, 1), (3, 0, 5)]), dtype=tensor.dtype)
    return tensors
