"""The Python of the home page, the quickstart and the guides runs; the site needs no other server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from docs_runner import ROOT, Page
from typer.main import get_command

from gas_ext.cli import app


@pytest.mark.slow
@pytest.mark.parametrize("name", ["index", "quickstart"])
def test_page_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Page(f"docs/{name}.md").run_all()


def test_command_page_lists_every_command() -> None:
    names = re.findall(r"^\| `(\w+)` \|", Page("docs/commands.md").text, re.MULTILINE)
    assert names == list(get_command(app).commands)


def test_home_page_shows_the_lines_of_the_readme() -> None:
    (block,) = Page("docs/index.md").blocks
    assert block in Page("README.md").blocks


@pytest.mark.slow
def test_custom_network_guide_reaches_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = Page("docs/guides/custom-network.md").run_all()
    assert names["target"].std().item() == pytest.approx(0.5, abs=0.02)
    losses = names["summary"].losses
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert names["x0"].std().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.slow
def test_diffusers_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    diffusers = pytest.importorskip("diffusers")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "tests/teachers/diffusers"))
    import tiny_pipelines

    monkeypatch.setattr(
        diffusers.DiffusionPipeline, "from_pretrained", lambda name: tiny_pipelines.stable_diffusion()
    )
    page = Page("docs/guides/diffusers.md")
    config = page.text.split("```yaml\n")[1].split("```")[0]
    for old, new in {
        "[4, 64, 64]": "[4, 8, 8]",
        "steps: 20": "steps: 4",
        "steps: [6]": "steps: [2]",
        "iterations: 300": "iterations: 2",
        "train_samples: 256, validation_samples: 44": "train_samples: 4, validation_samples: 2",
    }.items():
        assert old in config
        config = config.replace(old, new)
    Path("mine.yaml").write_text(config, "utf-8")
    names = page.run_all(replacing={"steps=6": "steps=2"})
    assert names["solver"].steps == 2
    assert names["images"].shape[:2] == (2, 3)


@pytest.mark.slow
def test_compare_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    few = {"50_200": "50_040", "schedule, 20": "schedule, 6"}
    names = Page("docs/guides/compare.md").run_all(replacing=few)
    assert names["difference"].value > 0
    assert not names["difference"].is_noise()
    assert Path("comparison/index.html").is_file()


@pytest.mark.slow
def test_site_is_built_and_needs_no_other_server(tmp_path: Path) -> None:
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    commands = pytest.importorskip("mkdocs.commands.build")
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True)
    commands.build(config)
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 30
    loaded = r"<(?:script|img|iframe)[^>]*\ssrc=\"(https?:|//)|<link[^>]*\shref=\"(https?:|//)"
    for page in pages:
        text = page.read_text("utf-8")
        assert not re.search(loaded, text), page
        assert "arithmatex" not in text, page  # every formula became MathML
    formulas = (tmp_path / "site/how-it-works/index.html").read_text("utf-8")
    assert formulas.count("<math") > 20
    reference = (tmp_path / "site/commands/index.html").read_text("utf-8")
    for name in ("demo", "import", "teach", "train", "sample", "evaluate", "compare", "info"):
        assert f'id="{name}"' in reference, name
    assert "--dry-run" in reference
