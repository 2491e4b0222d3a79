import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from report_tools import make_comparison

from gas_ext.evaluation.report import write_report
from gas_ext.evaluation.report.page import to_html

VOID = {"meta", "link", "img", "br", "wbr", "input"}


class Page(HTMLParser):
    """Checks that elements nest, and records their attributes and texts."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_page_is_self_contained_and_its_ids_are_unique():
    page = Page(to_html(make_comparison()))
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "data"):
            target = attributes.get(name)
            assert target is None or target.startswith(("data:", "#")), (tag, target)
    assert {tag for tag, _ in page.elements} >= {"table", "svg", "img", "script", "style"}
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


@pytest.mark.slow
def test_labels_are_text():
    page = Page(to_html(make_comparison("<script>alert(1)</script>&")))
    assert "<script>alert(1)</script>&" in page.texts
    assert sum(tag == "script" for tag, _ in page.elements) == 1


def test_rows_have_their_values():
    comparison = make_comparison()
    page = Page(to_html(comparison))
    values = [attributes.get("data-value") for tag, attributes in page.elements if tag == "td"]
    for cell in comparison.cells:
        for found in cell.numbers.estimates.values():
            assert repr(found.value) in values


@pytest.mark.slow
def test_page_without_images_and_distributions():
    comparison = make_comparison()
    cells = [replace(cell, shown=torch.zeros(0, 1, 1, 1, dtype=torch.uint8)) for cell in comparison.cells]
    settings = {**comparison.settings, "features": []}
    page = Page(to_html(replace(comparison, cells=cells, settings=settings, reference=None)))
    assert not any(tag == "img" for tag, _ in page.elements)


@pytest.mark.slow
def test_several_features_have_separate_columns():
    texts = Page(to_html(make_comparison(further=True))).texts
    assert "to real images, features of toy" in texts
    assert "to real images, features of other" in texts
    assert "Frechet to data (other), lower is better" in texts  # in a plot
    assert "0.7000" in texts
    assert not any("features of" in text for text in Page(to_html(make_comparison())).texts)


@pytest.mark.slow
def test_report_is_written(tmp_path):
    page = write_report(make_comparison(), tmp_path / "deep" / "report")
    names = {str(path.relative_to(page.parent)) for path in page.parent.rglob("*") if path.is_file()}
    pictures = {"grids/nfe-4.png", "grids/nfe-6.png", "quality-nfe.png", "quality-time.png"}
    assert names == {"index.html", "results.csv", "results.json", "results.md", *pictures}
    record = json.loads((page.parent / "results.json").read_text())
    assert record["cells"][3]["measures"]["l1"]["value"] == 0.05
    assert record["cells"][3]["measures"]["l1"]["mark"] == "best"
    assert record["settings"]["features"][0]["weights_sha256"] == "ab" * 32
    assert record["reference"]["sha256"] == "ef" * 32
    assert record["versions"]["torch"]


@pytest.mark.slow
def test_failed_write_preserves_the_earlier_report(tmp_path, monkeypatch):
    page = write_report(make_comparison(), tmp_path)
    before = page.read_text()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(make_comparison("other"), tmp_path)
    assert page.read_text() == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
