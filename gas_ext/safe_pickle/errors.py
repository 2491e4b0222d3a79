"""Errors, and limits on what one file may cost."""

from __future__ import annotations

from dataclasses import dataclass, field


class UnsafePickleError(ValueError):
    """The file names a global that is not on the list."""


class DamagedPickleError(ValueError):
    """The file is truncated, altered, or exceeds the limits."""


@dataclass
class Limits:
    """Limits on one file, nested streams included.

    The defaults have room for the largest known file (a data set of 50,000 captions has 1.6 million
    operations). Any file is then read in seconds and with less than 600 MB in addition to the tensors, which
    together are not larger than the file.

    Parameters
    ----------
    operations : int
        Opcodes, each of which creates at most one object of about 200 bytes. A tensor counts as four more,
        and an opcode that copies a list or dictionary counts each entry.
    text_bytes : int
        Bytes of all strings together, copies included.
    number_keys : int
        Numbers in dictionaries and sets: unlike strings, they can be chosen to collide, so that each new one
        is compared with all others.
    marks : int
        Open MARKs, which are nested unfinished containers.
    depth : int
        Nesting of containers and modules.
    streams : int
        Nested torch streams (one per storage).
    """

    operations: int = 2_000_000
    text_bytes: int = 32 * 2**20
    number_keys: int = 10_000
    marks: int = 1_000
    depth: int = 200
    streams: int = 100_000
    stored_bytes: int = field(default=0, init=False)  # of storages and zip entries; set to the file's size

    def spend(self, what: str, amount: int = 1) -> None:
        """Count a limit down; DamagedPickleError if it is used up."""
        left = getattr(self, what) - amount
        setattr(self, what, left)
        if left < 0:
            raise DamagedPickleError(f"it has too many {what.replace('_', ' ')}")


def printable(text: str) -> str:
    r"""Return a name from a file for a message: short, and without control characters.

    Examples
    --------
    >>> print(printable("os\n"))
    os\n
    """
    return ascii(text[:80])[1:-1]
