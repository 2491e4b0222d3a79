"""What may go wrong, and how much a file may ask for."""

from __future__ import annotations

from dataclasses import dataclass, field


class UnsafePickleError(ValueError):
    """The file names something that is not on the list of what is understood."""


class DamagedPickleError(ValueError):
    """The file is cut off, altered, or asks for more than the limits allow."""


@dataclass
class Limits:
    """How much one file may ask for; counted down while it is read, nested streams included.

    The defaults have room for the largest of the known files (a data set of 50,000 captions has 1.6 million
    operations). Whatever the file says, the time stays in seconds and the memory besides the tensors' numbers
    below 600 MB; the numbers of all tensors together take no more than the file's size.

    Parameters
    ----------
    operations : int
        Opcodes, each of which makes at most one object of about 200 bytes. A tensor counts four more, and
        what an opcode copies out of a list or dictionary one for every entry.
    text_bytes : int
        Bytes of all strings together, copies included.
    number_keys : int
        Numbers put into dictionaries and sets: unlike strings, they can be chosen so that each new one is
        compared with all the others.
    marks : int
        Open MARKs, that is nested unfinished containers.
    depth : int
        Nesting of what is read, and of modules in modules.
    streams : int
        Nested torch streams (one per storage).
    """

    operations: int = 2_000_000
    text_bytes: int = 32 * 2**20
    number_keys: int = 10_000
    marks: int = 1_000
    depth: int = 200
    streams: int = 100_000
    stored_bytes: int = field(default=0, init=False)  # of storages and zip entries; begins at the file's size

    def spend(self, what: str, amount: int = 1) -> None:
        """Count one of the limits down; DamagedPickleError when it is used up.

        Examples
        --------
        >>> limits = Limits(streams=1)
        >>> limits.spend("streams")
        >>> limits.streams
        0
        """
        left = getattr(self, what) - amount
        setattr(self, what, left)
        if left < 0:
            raise DamagedPickleError(f"it has too many {what.replace('_', ' ')}")


def printable(text: str) -> str:
    r"""Return a name that stands in a file as it may be shown: short, and without control characters.

    Examples
    --------
    >>> print(printable("os\n"))
    os\n
    """
    return ascii(text[:80])[1:-1]
