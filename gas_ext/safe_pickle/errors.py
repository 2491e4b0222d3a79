"""What may go wrong, and how much a file may ask for."""

from __future__ import annotations

from dataclasses import dataclass


class UnsafePickleError(ValueError):
    """The file names something that is not on the list of what is understood."""


class DamagedPickleError(ValueError):
    """The file is cut off, altered, or asks for more than the limits allow."""


@dataclass
class Limits:
    """How much one file may ask for; counted down while it is read, nested streams included.

    The defaults are about twenty times what the largest published file of the known kinds needs, and keep the
    memory besides tensors below 600 MB whatever the file says. Tensors take no more than the file's own size.

    Parameters
    ----------
    operations : int
        Opcodes. Each makes at most one object of about 200 bytes.
    text_bytes : int
        Bytes of all strings together.
    marks : int
        Open MARKs, that is nested unfinished containers.
    depth : int
        Nesting of what is read, and of modules in modules.
    streams : int
        Nested torch streams (one per storage).
    """

    operations: int = 2_000_000
    text_bytes: int = 32 * 2**20
    marks: int = 1_000
    depth: int = 200
    streams: int = 100_000
