"""Options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda or cuda:N.")]
Labels = Annotated[
    str | None,
    typer.Option(
        help="Labels such as 0-9,3, or a file of them; the i-th seed gets the i-th, from the first again "
        "when they run out. If not given: the seed modulo the number of classes."
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        help="UTF-8 file with one prompt per line; the i-th seed gets line i, from the first again when they "
        "run out. An empty line is the empty prompt."
    ),
]


def check_device(device: str) -> str:
    """Return the device's name if it can be used here."""
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ValueError(f"unknown device {device!r}: use --device cpu, cuda or cuda:N") from None
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r} is not supported: use --device cpu or cuda")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (torch.device(device).index or 0) >= count:
            instead = "cpu" + (f", or cuda:0 to cuda:{count - 1}" if count else "")
            raise ValueError(
                f"device {device!r} is not there, torch sees {count} CUDA devices: use --device {instead}"
            )
    return device


def read_labels(text: str) -> list[int]:
    """Read labels such as "0-9,3", or those in a file, separated by commas or white space.

    Examples
    --------
    >>> read_labels("0-2,7")
    [0, 1, 2, 7]
    """
    from gas_ext.seeds import parse_seeds

    try:
        if os.path.isfile(text):  # Path.is_file fails where a long list of labels is no possible name
            text_of_file = Path(text).read_text(encoding="utf-8")
            return parse_seeds(",".join(text_of_file.replace(",", " ").split()))
        return parse_seeds(text)
    except ValueError:
        raise ValueError(
            f"Cannot read labels from {text[:40]!r}: give a list such as 0-9,3, or a file of them."
        ) from None


def read_prompts(path: Path) -> list[str]:
    """Read one prompt per line; an empty line is the empty prompt, and the end of the last line no line."""
    if not path.is_file():
        raise ValueError(f"There is no file of prompts {path}.")
    try:
        text = path.read_text(encoding="utf-8-sig")  # with or without a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); convert it first.") from error
    return text.removesuffix("\n").split("\n") if text else []
