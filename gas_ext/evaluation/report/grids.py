"""Images of all solvers with the same seeds in the same places."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor

from gas_ext._utils.figures import MUTED_COLOR, new_figure, save_figure
from gas_ext.evaluation.measures import MEASURES
from gas_ext.evaluation.report.wording import value_text
from gas_ext.evaluation.results import Cell, Comparison

_THUMBNAIL = 128  # pixels of an image on the page, at most


def rows_of(comparison: Comparison, nfe: int) -> list[Cell]:
    """Return the solvers of a number of evaluations, after the teacher that they are compared with."""
    judged = [cell for cell in comparison.judged if cell.nfe == nfe]
    wanted = {cell.teacher for cell in judged}
    return [cell for cell in comparison.teachers if cell.folder in wanted] + judged


def has_images(comparison: Comparison) -> bool:
    """Whether the samples are images."""
    return any(cell.shown.numel() for cell in comparison.cells)


def strip(cell: Cell, teacher: Cell | None = None) -> Tensor:
    """Return the images of a cell side by side, (3, H, W) uint8, with a white line between.

    With a teacher, its signed difference to the teacher's images: blue darker, red brighter, full color at a
    quarter of the range.
    """
    images = cell.shown
    if teacher is not None:
        images = _difference(images, teacher.shown)
    images = images.expand(-1, 3, -1, -1)
    count, _, height, width = images.shape
    line = max(1, width // 32)
    whole = torch.full((3, height, count * (width + line) - line), 255, dtype=torch.uint8)
    for number, image in enumerate(images):
        left = number * (width + line)
        whole[:, :, left : left + width] = image
    return whole


def _difference(images: Tensor, teacher: Tensor) -> Tensor:
    amount = (images.float() - teacher.float()).mean(dim=1, keepdim=True) / 64
    red, blue = amount.clamp(0, 1), (-amount).clamp(0, 1)
    # White where they are equal; Okabe and Ito's vermilion and blue at full color.
    colors = [
        1 - red * (1 - high / 255) - blue * (1 - low / 255) for high, low in ((213, 0), (94, 114), (0, 178))
    ]
    return (torch.cat(colors, dim=1) * 255).round().to(torch.uint8)


def strip_png(image: Tensor, count: int) -> bytes:
    """Return a strip of `count` images as PNG, made smaller if an image is larger than a thumbnail."""
    from PIL import Image

    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    width = image.shape[2] // count
    if width > _THUMBNAIL:
        scale = _THUMBNAIL / width
        size = round(picture.width * scale), round(picture.height * scale)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    if bool((image[0] == image[1]).all() and (image[0] == image[2]).all()):
        picture = picture.convert("L")
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return file.getvalue()


def write_grids(comparison: Comparison, folder: Path) -> list[Path]:
    """Write one grid per number of evaluations, and remove those of others."""
    wanted = {folder / f"nfe-{nfe}.png": nfe for nfe in comparison.nfes} if has_images(comparison) else {}
    for path in folder.glob("nfe-*.png"):
        if path not in wanted:
            path.unlink()
    for path, nfe in wanted.items():
        _write_grid(rows_of(comparison, nfe), nfe, path)
    return list(wanted)


def _write_grid(cells: list[Cell], nfe: int, path: Path) -> None:
    count, _, height, width = cells[0].shown.shape
    label, cell_width, top = 2.3, 0.62, 0.8
    cell_height = cell_width * height / width
    page = label + count * cell_width + 0.2, top + len(cells) * cell_height + 0.15
    figure = new_figure(*page)
    title = f"{nfe} network evaluation{'' if nfe == 1 else 's'}"
    figure.text(0.2 / page[0], 1 - 0.18 / page[1], title, fontsize=13, fontweight="bold", va="top")
    note = "Each column starts from the same noise.  L1: mean absolute difference to the teacher's sample."
    figure.text(0.2 / page[0], 1 - 0.46 / page[1], note, fontsize=8, color=MUTED_COLOR, va="top")
    for number, cell in enumerate(cells):
        bottom = page[1] - top - (number + 1) * cell_height
        axes = figure.add_axes(
            (label / page[0], bottom / page[1], count * cell_width / page[0], cell_height / page[1])
        )
        axes.imshow(strip(cell).permute(1, 2, 0).numpy(), interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        middle = (bottom + cell_height / 2) / page[1]
        caption = f"{cell.nfe} evaluations"
        if cell.estimate("l1") is not None:
            caption = f"L1 {value_text(MEASURES['l1'], cell.estimate('l1'))}"
        figure.text(
            0.2 / page[0],
            middle + 0.09 / page[1],
            _fitting(cell.label),
            fontsize=9.5,
            fontweight="bold",
            va="center",
        )
        figure.text(
            0.2 / page[0], middle - 0.1 / page[1], caption, fontsize=8, color=MUTED_COLOR, va="center"
        )
    save_figure(figure, path)


def _fitting(label: str, length: int = 26) -> str:
    """Return a label that fits beside the images.

    Examples
    --------
    >>> _fitting("unipc-3"), _fitting("a-very-long-name-of-a-solver-of-mine", 12)
    ('unipc-3', 'a-very-lo...')
    """
    return label if len(label) <= length else label[: length - 3] + "..."
