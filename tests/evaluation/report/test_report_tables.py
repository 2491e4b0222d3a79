import csv
import io

import pytest
from report_tools import make_comparison

from gas_ext.evaluation.report import print_table, to_csv, to_markdown


def test_csv_has_every_number():
    comparison = make_comparison()
    rows = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    assert [(row["solver"], int(row["nfe"])) for row in rows] == [
        (cell.label, cell.nfe) for cell in comparison.cells
    ]
    row = rows[3]
    assert float(row["l1"]) == 0.05
    low, high = comparison.cell("mine", 4).estimate("l1").interval()
    assert (float(row["l1_low"]), float(row["l1_high"])) == (low, high)
    assert row["l1_mark"] == "best"
    assert rows[4]["frechet_to_data"] == ""
    assert rows[2]["psnr_mark"] == "within noise of the best"
    assert rows[2]["samples"] == "200"


def test_markdown_marks_the_best_and_those_within_noise():
    text = to_markdown(make_comparison())
    assert text.startswith("# Toy comparison\n")
    assert text.count("| solver |") == 2  # distances to the teacher's samples, and to real data
    sample = text[text.index("## Distance to the teacher's sample") :]
    assert "| mine | 4 | **0.0500** \u00b10.0055 | **30.00**" in sample
    assert "| unipc-3 | 6 | 0.1000 \u00b10.0055 | *24.00*" in sample
    assert "seeds 0-199" in text
    assert "SHA-256 efefefefefef" in text
    assert "- edm with 4 evaluations: edm takes an odd number" in text


def test_several_features_have_separate_columns():
    comparison = make_comparison(further=True)
    row = list(csv.DictReader(io.StringIO(to_csv(comparison))))[3]
    assert (float(row["frechet_to_data"]), float(row["frechet_to_data@other"])) == (0.2, 0.7)
    markdown, text = to_markdown(comparison), io.StringIO()
    assert "## Distance to real images, features of other" in markdown
    assert markdown.count("- Features: ") == 2
    print_table(comparison, text)
    assert "(other)" in text.getvalue()
    assert "0.7000" in text.getvalue()


@pytest.mark.parametrize(
    ("label", "escaped"), [("a|b", r"a\|b"), ("x*y_`", r"x\*y\_\`"), ("<b>[c\\", r"\<b>\[c\\")]
)
def test_labels_are_escaped_in_markdown(label, escaped):
    assert f"\n| {escaped} | 4 | " in to_markdown(make_comparison(label))


def test_table_on_the_terminal():
    text = io.StringIO()
    print_table(make_comparison("[red]mine[/red]"), text)
    lines = [line for line in text.getvalue().splitlines() if "0.0500" in line]
    assert len(lines) == 1
    assert "[red]mine[/red]" in lines[0]
    assert "0.0500 \u00b10.0055 *" in lines[0]
    assert "95% intervals over 200 seeds" in text.getvalue()
