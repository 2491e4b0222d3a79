"""The Python of docs/evaluation.md runs."""

import re

import pytest
from docs_runner import Page
from typer.testing import CliRunner

from gas_ext.cli import app

PAGE = Page("docs/evaluation.md")


@pytest.mark.slow
def test_a_comparison_of_ten_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    few = {"range(50_000, 50_500)": "range(50_000, 50_020)", "schedule, 20": "schedule, 6"}
    PAGE.run("compare", replacing=few)
    assert (tmp_path / "comparison" / "index.html").is_file()
    assert "ipndm-3" in capsys.readouterr().out


def test_options_that_are_named_exist():
    text = CliRunner().invoke(app, ["compare", "--help"], env={"COLUMNS": "200"}).stdout
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE.text)) - {"--nproc-per-node"}
    assert len(named) > 5
    for option in named:
        assert option in text, option
