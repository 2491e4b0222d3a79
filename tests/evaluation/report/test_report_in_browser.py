"""The page in headless Chromium, through Playwright; skipped if either is missing."""

import os
import shutil

import pytest
from report_tools import make_comparison

from gas_ext.evaluation.report import write_report

pytestmark = pytest.mark.browser

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra test)")
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser():
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.skip(f"Chromium is not found ({', '.join(_NAMES)}, or the path in CHROMIUM)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    comparison = make_comparison("a-solver-with-a-long-name@1,0.75,0.5,0.25,0.001")
    return write_report(comparison, tmp_path_factory.mktemp("report")).as_uri()


@pytest.fixture
def open_page(browser, address):
    opened = []

    def open_page(width=1280, height=900, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        complaints = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith(("file:", "data:")) else complaints.append(request.url)
            ),
        )
        page.goto(address)
        opened.append((page, complaints))
        return page

    yield open_page
    for page, complaints in opened:
        page.close()
        assert complaints == []


def shown(page, column):
    """Visible texts of a column, without intervals."""
    texts = page.eval_on_selector_all(
        "#numbers tbody tr",
        "(rows, column) => rows.filter((row) => !row.hidden).map((row) => row.cells[column].innerText)",
        column,
    )
    return [text.split("\u00b1")[0].strip() for text in texts]


def test_headings_sort(open_page):
    page = open_page()
    heading = page.locator("th[data-column='2']")  # L1: lower is better
    assert "L1" in heading.inner_text()
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert shown(page, 2) == ["0.0400", "0.0500", "0.1000", "0.2000", "\u2013"]
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert shown(page, 2) == ["0.2000", "0.1000", "0.0500", "0.0400", "\u2013"]  # missing values stay last
    page.locator("th[data-column='3'] button").click()  # PSNR: higher is better
    assert heading.get_attribute("aria-sort") is None
    assert shown(page, 3) == ["30.00", "24.05", "24.00", "20.00", "\u2013"]
    page.locator("th[data-column='0'] button").click()
    names = shown(page, 0)
    assert names == sorted(names)


def test_rows_are_filtered_by_evaluations(open_page):
    page = open_page()
    page.get_by_role("button", name="NFE 4").click()
    assert shown(page, 1) == ["20", "4", "4"]
    page.get_by_role("button", name="all", exact=True).click()
    assert shown(page, 1) == ["20", "4", "4", "6", "6"]


def test_differences_are_shown_on_demand(open_page):
    page = open_page()
    difference = page.locator("img.difference").first
    assert not difference.is_visible()
    page.get_by_role("button", name="show differences").click()
    assert difference.is_visible()
    assert page.locator("img").evaluate_all("images => images.every((image) => image.naturalWidth > 0)")


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_the_screen(open_page, width, scheme):
    page = open_page(width, 844, scheme)
    page.get_by_role("button", name="show differences").click()
    page.locator("summary").last.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width <= 390:
        box = page.locator("#numbers .scroll")
        assert box.evaluate("box => box.scrollWidth > box.clientWidth")
    ink, paper = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert (sum(map(int, paper[4:-1].split(","))) < 384) == (scheme == "dark")
    assert page.locator(".panels svg text").first.evaluate("text => getComputedStyle(text).fill") == ink
