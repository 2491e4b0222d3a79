import io
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from report_tools import make_comparison

from gas_ext._utils.figures import new_figure
from gas_ext.evaluation.measures import MEASURES
from gas_ext.evaluation.report.grids import rows_of, strip, strip_png, write_grid, write_grids
from gas_ext.evaluation.report.plots import draw_panel, panel_svg, plotted, styles, write_plots


@pytest.mark.parametrize("channels", [1, 3])
def test_strip_shows_every_image_at_its_position(channels):
    comparison = make_comparison(shape=(channels, 8, 8))
    for cell in comparison.cells:
        picture = strip(cell)
        for number, image in enumerate(cell.shown):
            assert torch.equal(picture[:, :, number * 9 : number * 9 + 8], image.expand(3, -1, -1))


def test_difference_is_white_where_images_are_equal():
    teacher, cell = make_comparison().cells[:2]
    assert (strip(teacher, teacher) == 255).all()
    assert not (strip(cell, teacher) == 255).all()


def test_small_images_keep_their_pixels_and_large_ones_shrink():
    small, large = (make_comparison(shape=(1, size, size)).cells[1] for size in (8, 256))
    with Image.open(io.BytesIO(strip_png(strip(small), 12))) as picture:
        assert np.array_equal(np.asarray(picture), strip(small)[0].numpy())
    with Image.open(io.BytesIO(strip_png(strip(large), 12))) as picture:
        assert picture.width / 12 == pytest.approx(128, abs=1)


def test_one_grid_per_nfe(tmp_path):
    comparison = make_comparison()
    assert [cell.label for cell in rows_of(comparison, 4)] == ["teacher", "unipc-3", "mine"]
    (tmp_path / "nfe-99.png").write_bytes(b"of an earlier report")
    write_grids(comparison, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nfe-4.png", "nfe-6.png"]


@pytest.mark.slow
@pytest.mark.parametrize("differences", [False, True])
def test_grid_shows_every_image_and_difference(tmp_path, differences):
    levels = torch.arange(36).view(3, 12, 1, 1, 1).mul(7).to(torch.uint8)
    cells = make_comparison().cells[:3]
    cells = [
        replace(cell, shown=shown.expand(12, 1, 8, 8)) for cell, shown in zip(cells, levels, strict=True)
    ]
    write_grid(cells, "title", tmp_path / "grid.png", differences=differences)
    with Image.open(tmp_path / "grid.png") as picture:
        found = {tuple(color) for _, color in picture.convert("RGB").getcolors(2**24)}
    assert {(level,) * 3 for level in levels.flatten().tolist()} <= found
    # Differences of 84 and 168 levels to the teacher's are both above a quarter of the range: vermilion.
    assert ((213, 94, 0) in found) == differences
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]


@pytest.mark.slow
def test_plots(tmp_path):
    comparison = make_comparison()
    assert [measure.key for measure in plotted(comparison)] == ["l1", "psnr", "frechet_to_data"]
    names = [path.name for path in write_plots(comparison, tmp_path)]
    assert names == ["quality-nfe.png", "quality-time.png"]
    for name in names:
        with Image.open(tmp_path / name) as picture:
            pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
        for style in styles(comparison).values():
            color = [int(style["color"][i : i + 2], 16) for i in (1, 3, 5)]
            assert (pixels == color).all(axis=1).any()


@pytest.mark.slow
def test_earlier_plots_are_removed_if_there_is_nothing_to_plot(tmp_path):
    comparison = make_comparison()
    write_plots(comparison, tmp_path)
    assert write_plots(replace(comparison, cells=comparison.teachers), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_points_are_joined_and_labeled_by_nfe():
    """Also if more evaluations took less time."""
    comparison = make_comparison()
    cells = [
        replace(cell, numbers=replace(cell.numbers, ms_per_image=100.0 - cell.nfe))
        for cell in comparison.cells
    ]
    axes = new_figure(4, 3).add_axes((0.1, 0.1, 0.8, 0.8))
    draw_panel(axes, replace(comparison, cells=cells), MEASURES["l1"], "time")
    lines = [container[0].get_xdata().tolist() for container in axes.containers]
    assert lines == [[96.0, 94.0], [96.0, 94.0]]
    assert [text.get_text() for text in axes.texts] == ["4", "6", "4", "6"]


def test_many_solvers_have_different_styles():
    comparison = make_comparison()
    cells = [replace(comparison.cells[1], label=f"s{number}") for number in range(20)]
    found = styles(replace(comparison, cells=cells))
    assert len({(style["color"], style["marker"]) for style in found.values()}) == 20


@pytest.mark.parametrize("abscissa", ["nfe", "time"])
def test_panel_uses_the_colors_of_the_page(abscissa):
    svg = panel_svg(make_comparison(), MEASURES["l1"], abscissa)
    root = ElementTree.fromstring(svg)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    assert all(name.startswith(f"{abscissa}-l1-") for name in ids)
    for reference in re.findall(r'(?:href="#|url\(#)([^")]*)', svg):
        assert reference in ids
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert root.get("width") is None
    assert panel_svg(make_comparison(), MEASURES["l1"], abscissa) == svg
