"""Images of all solvers, one row per solver, one column per seed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gas_ext._utils.figures import MUTED_COLOR, new_figure, save_figure
from gas_ext.evaluation.measures import MEASURES
from gas_ext.evaluation.report.wording import value_text
from gas_ext.evaluation.results import Cell, Comparison

_THUMBNAIL = 128  # pixels of an image on the page, at most


def rows_of(comparison: Comparison, nfe: int) -> list[Cell]:
    """Return the solvers of an NFE, after the teachers that they are compared with."""
    judged = [cell for cell in comparison.judged if cell.nfe == nfe]
    wanted = {cell.teacher for cell in judged}
    return [cell for cell in comparison.teachers if cell.folder in wanted] + judged


def has_images(comparison: Comparison) -> bool:
    """Return whether the samples are images."""
    return any(cell.shown.numel() for cell in comparison.cells)


def strip(cell: Cell, teacher: Cell | None = None) -> Tensor:
    """Return the images of a cell side by side, (3, H, W) uint8, with a white line between.

    With a teacher, return the signed difference to the teacher's images: blue is darker, red is brighter, and
    full color is a quarter of the range.
    """
    images = cell.shown
    if teacher is not None:
        amount = (images.float() - teacher.shown.float()).mean(dim=1, keepdim=True) / 64
        red, blue = amount.clamp(0, 1), (-amount).clamp(0, 1)
        # White where the images are equal; Okabe and Ito's vermilion and blue at full color.
        colors = [
            1 - red * (1 - high / 255) - blue * (1 - low / 255)
            for high, low in ((213, 0), (94, 114), (0, 178))
        ]
        images = (torch.cat(colors, dim=1) * 255).round().to(torch.uint8)
    images = images.expand(-1, 3, -1, -1)
    count, _, height, width = images.shape
    line = max(1, width // 32)
    whole = torch.full((3, height, count * (width + line) - line), 255, dtype=torch.uint8)
    for number, image in enumerate(images):
        left = number * (width + line)
        whole[:, :, left : left + width] = image
    return whole


def strip_png(image: Tensor, count: int) -> bytes:
    """Return a strip of `count` images as PNG, scaled down if an image is larger than a thumbnail."""
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
    """Write one grid per NFE, and remove those of other NFEs."""
    wanted = {folder / f"nfe-{nfe}.png": nfe for nfe in comparison.nfes} if has_images(comparison) else {}
    for path in folder.glob("nfe-*.png"):
        if path not in wanted:
            path.unlink()
    for path, nfe in wanted.items():
        write_grid(rows_of(comparison, nfe), f"{nfe} network evaluation{'' if nfe == 1 else 's'}", path)
    return list(wanted)


def write_grid(cells: list[Cell], title: str, path: Path, *, differences: bool = False) -> None:
    """Write the images of solvers, teacher first, optionally with their differences to the teacher."""
    rows: list[tuple[Tensor, list[str]]] = []
    for cell in cells:
        about = [_shorten(cell.description, 40)] if cell.description != cell.label else []
        rows.append((strip(cell), [_shorten(cell.label, 26), *about, caption(cell)]))
        if differences and cell is not cells[0]:
            rows.append((strip(cell, cells[0]), ["", "difference to the teacher"]))
    count, _, height, width = cells[0].shown.shape
    label, cell_width, top = 2.55, 0.62, 0.8  # inches
    cell_height = cell_width * height / width
    page = label + count * cell_width + 0.2, top + len(rows) * cell_height + 0.15
    figure = new_figure(*page)

    def write(text: str, down: float, **style: Any) -> None:
        figure.text(0.2 / page[0], 1 - down / page[1], text, va="center", **style)

    write(title, 0.26, fontsize=13, fontweight="bold")
    note = "Each column starts from the same noise.  L1: mean absolute difference to the teacher's sample."
    if differences:
        note += "  Differences: blue is darker, red is brighter."
    write(note, 0.52, fontsize=8, color=MUTED_COLOR)
    for number, (picture, texts) in enumerate(rows):
        down = top + number * cell_height
        corner = label / page[0], 1 - (down + cell_height) / page[1]
        axes = figure.add_axes((*corner, count * cell_width / page[0], cell_height / page[1]))
        axes.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        down += cell_height / 2 - 0.085 * (len(texts) - 1)
        write(texts[0], down, fontsize=9.5, fontweight="bold")
        for line, text in enumerate(texts[1:], 1):
            write(text, down + 0.17 * line, fontsize=7.5, color=MUTED_COLOR)
    save_figure(figure, path)


def caption(cell: Cell) -> str:
    """Return the L1 distance of a solver to the teacher, or the number of evaluations of the teacher."""
    l1 = cell.estimate("l1")
    return f"{cell.nfe} evaluations" if l1 is None else f"L1 {value_text(MEASURES['l1'], l1)}"


def _shorten(label: str, length: int) -> str:
    """Return a label that fits next to the images.

    >>> _shorten("unipc-3", 12), _shorten("a-very-long-name-of-a-solver", 12)
    ('unipc-3', 'a-very-lo...')
    """
    return label if len(label) <= length else label[: length - 3] + "..."
