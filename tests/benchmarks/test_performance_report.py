"""Pages, plots and comparisons of a recorded run, and of the same run with known changes."""

import copy
import json
import re
from pathlib import Path

import pytest
from benchmark_modules import performance_tables, report, results
from PIL import Image

RECORDED = Path(__file__).with_name("recorded.json")
RUN = json.loads(RECORDED.read_text("utf-8"))
DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "performance.md"
TARGETS_PAGE = DOCS / "experiments" / "2026-11-24-performance-targets.md"


def write(path, run):
    path.write_text(json.dumps(run), "utf-8")
    return path


def changed(name_part, factor, peers=1.0):
    """The recorded run with times of some rows, and of their peers, multiplied."""
    run = copy.deepcopy(RUN)
    hit = 0
    for entry in run["benchmarks"]:
        if name_part in entry["fullname"]:
            hit += 1
            for key in ("median", "iqr"):
                entry["stats"][key] *= factor
                for peer in entry["extra_info"].get("peers", {}).values():
                    peer[key] *= peers
    assert hit
    return run


def steady(run):
    """The same without spread, which leaves only the arithmetic of the comparison."""
    for entry in run["benchmarks"]:
        entry["stats"]["iqr"] = 0.0
        for peer in entry["extra_info"].get("peers", {}).values():
            peer["drift"] = 0.0
    return run


def test_rows_are_times_of_one_piece_of_work():
    run = results.read_results(RECORDED)
    entry = next(entry for entry in RUN["benchmarks"] if "test_step.py" in entry["fullname"])
    row = next(row for row in run.rows if row.name == entry["fullname"])
    steps = entry["extra_info"]["per"]
    assert steps > 1
    assert row.median == pytest.approx(entry["stats"]["median"] / steps)
    for name, peer in entry["extra_info"]["peers"].items():
        assert row.speedup(name) == pytest.approx(1.0 / peer["ratio"], rel=2e-3)  # recorded to 4 figures


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with custom text, filled from the recorded run."""
    path = tmp_path_factory.mktemp("page") / "page.md"
    path.write_text(PAGE.read_text("utf-8").replace("# Performance", "# Mine"), "utf-8")
    assert report.main([str(RECORDED), "-o", str(path)]) == 0
    return path


@pytest.mark.slow
def test_every_part_is_filled_and_other_text_is_unchanged(page):
    text = page.read_text("utf-8")
    assert text.startswith("# Mine")
    parts = dict(re.findall(r"<!-- measured: ([a-z ]+) -->(.*?)<!-- end", text, re.DOTALL))
    assert set(parts) == set(performance_tables.SECTIONS) - {"targets"}
    for name, body in parts.items():
        assert "Not measured" not in body, name
        tables = [line for line in body.splitlines() if line.startswith("|")]
        assert name == "machine" or len(tables) > 2, name
        assert len({line.count("|") for line in tables}) <= 1, name


@pytest.mark.slow
def test_filling_again_changes_nothing(page):
    text = page.read_text("utf-8")
    assert report.fill(text, results.read_results(RECORDED)) == text


def test_every_plot_of_the_page_is_drawn(page):
    shown = re.findall(r"\((images/performance-[a-z]+\.png)\)", page.read_text("utf-8"))
    assert sorted(shown) == sorted(str(p.relative_to(page.parent)) for p in page.parent.glob("images/*"))
    for name in shown:
        with Image.open(page.parent / name) as image:
            assert image.width > 400
            assert len(image.convert("RGB").getcolors(1 << 20)) > 10  # more than an empty frame


def test_targets_have_a_page_without_plots(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(TARGETS_PAGE.read_text("utf-8").replace("**no**", "**unknown**"), "utf-8")
    assert report.main([str(RECORDED), "-o", str(path)]) == 0
    text = path.read_text("utf-8")
    assert "**unknown**" not in text
    assert all(f"| {target.text} |" in text for target in performance_tables.TARGETS)
    assert list(tmp_path.iterdir()) == [path]


def test_missing_subjects_are_reported(tmp_path):
    run = copy.deepcopy(RUN)
    run["benchmarks"] = [e for e in run["benchmarks"] if e["extra_info"]["subject"] == "metrics"]
    assert report.main([str(write(tmp_path / "few.json", run)), "-o", str(tmp_path / "page.md")]) == 0
    assert "Not measured in this run." in (tmp_path / "page.md").read_text("utf-8")
    targets = tmp_path / "targets.md"
    targets.write_text(TARGETS_PAGE.read_text("utf-8"), "utf-8")
    assert report.main([str(tmp_path / "few.json"), "-o", str(targets)]) == 0
    assert "| not measured |" in targets.read_text("utf-8")


def test_a_page_that_lacks_a_part_is_refused(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("<!-- measured: step -->\n<!-- end measured -->\n", "utf-8")
    assert report.main([str(RECORDED), "-o", str(page)]) == 2
    assert "needs one each for" in capsys.readouterr().err
    assert page.read_text("utf-8").startswith("<!-- measured: step -->\n<!-- end")


@pytest.mark.parametrize("content", ["{}", '{"benchmarks": []}', "not json"])
def test_other_files_are_refused(tmp_path, capsys, content):
    path = tmp_path / "other.json"
    path.write_text(content, "utf-8")
    assert report.main([str(path)]) == 2
    assert capsys.readouterr().err


def test_targets_use_the_worst_case():
    run = results.read_results(RECORDED)
    lines = {target.text: target.line(run) for target in performance_tables.TARGETS}
    steps = run.of("step", size=[1, 3, 32, 32])
    worst = max(row.median for row in steps)
    line = lines["one step of a small image, all from Python"]
    assert line[2] == performance_tables.seconds(worst)
    assert line[4] == ("yes" if worst <= 15e-6 else "**no**")


def test_a_target_follows_its_value(tmp_path):
    text = "the same against the public code's step"
    for factor, reached in ((1e-3, "yes"), (1e3, "**no**")):
        run = results.read_results(write(tmp_path / "run.json", changed("test_step.py", factor)))
        (line,) = (t.line(run) for t in performance_tables.TARGETS if t.text == text)
        assert line[4] == reached


def test_a_run_compared_with_itself_has_no_change(capsys):
    assert report.main([str(RECORDED), "--compare", str(RECORDED)]) == 0
    out = capsys.readouterr().out
    assert "Slower beyond noise: 0" in out
    assert "Faster beyond noise: 0" in out


def test_slower_rows_are_named(tmp_path, capsys):
    old = write(tmp_path / "old.json", steady(copy.deepcopy(RUN)))
    new = write(tmp_path / "new.json", steady(changed("test_baking.py", 1.3)))
    assert report.main([str(new), "--compare", str(old)]) == 1
    out = capsys.readouterr().out
    slower = out.split("Faster")[0]
    assert "test_baking.py" in slower
    assert "1.30 times as long" in slower
    assert slower.count("->") == sum("test_baking.py" in e["fullname"] for e in RUN["benchmarks"])
    assert report.main([str(old), "--compare", str(new)]) == 0
    assert "test_baking.py" in capsys.readouterr().out.split("Faster")[1]


def test_a_slower_machine_is_not_a_regression(tmp_path):
    old = write(tmp_path / "old.json", steady(copy.deepcopy(RUN)))
    new = write(tmp_path / "new.json", steady(changed("test_step.py", 2.0, peers=2.0)))
    assert report.main([str(new), "--compare", str(old)]) == 0


def test_changes_within_the_spread_are_not_a_regression(tmp_path):
    run = steady(changed("test_baking.py", 1.3))
    for entry in run["benchmarks"]:
        entry["stats"]["iqr"] = 0.2 * entry["stats"]["median"]
    old = write(tmp_path / "old.json", steady(copy.deepcopy(RUN)))
    assert report.main([str(write(tmp_path / "new.json", run)), "--compare", str(old)]) == 0


def test_missing_rows_are_named(tmp_path, capsys):
    run = copy.deepcopy(RUN)
    gone = run["benchmarks"].pop()["fullname"]
    report.main([str(write(tmp_path / "new.json", run)), "--compare", str(RECORDED)])
    assert gone in capsys.readouterr().out.split("Not measured any more: 1")[1]
