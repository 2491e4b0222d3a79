"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda or cuda:N.")]


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
            raise ValueError(
                f"device {device!r} is not there, torch sees {count} CUDA devices: use --device cpu"
            )
    return device
