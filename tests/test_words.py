"""Phrases that read as if translated are refused in pages, help, messages, docstrings and comments."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import pytest
from docs_runner import ROOT
from typer.main import get_command

from gas_ext.cli import app

# (what is refused, what to write instead, an example); patterns see one space between words.
PHRASES = [
    (
        r"\b(go|goes|gone|going|went) on\b(?! (a|the) )",
        "resume, continue",
        "the run goes on with its samples",
    ),
    (
        r"\btold\b(?! apart)|\btell(s|ing)? the (network|model|denoiser)\b|\b(does|do|did) not tell\b",
        "is given, is evaluated at, is conditioned on",
        "the time that the network is told",
    ),
    (
        r"(?<!-)\b(stands?|stood|standing)\b(?!-| for\b| in for\b)",
        "is (in, at)",
        "two states stand at each time",
    ),
    (r"\basked for\b", "requested", "no derivative is asked for"),
    (
        r"\bnumbers of (a|the|each|every|its|all) (\w+ )?(solve|solver|student)s?\b"
        r"|\b(solve|solver|student)s?'s? (\w+ )?numbers\b|\blearned numbers\b",
        "coefficients",
        "every number and all numbers of a solve",
    ),
    (r"\brivals?\b", "baseline", "its rivals from the literature"),
    (
        r"\bkinds? of (solver|student|teacher|source|file|condition|loss|model)s?\b|\bsolver kinds?\b"
        r"|\bof (the|an?|this|that|one|the same) kind\b"
        r"|\b(known|unknown|each|every|per|another|these|those) kinds?\b",
        "preset (of a solver), type",
        "another kind of solver",
    ),
    (r"\bmend(s|ed|ing)?\b", "repair, fix", "damaged shards are mended"),
    (
        r"\b(nearer|closer) by (a|an|one|the)\b|\bnearer by\b",
        "at least 5 % closer",
        "a solver that is nearer by a twentieth",
    ),
    (
        r"(?<!there )\b(is|are|was|were) no (?!longer\b|more\b|less\b|fewer\b|better\b|worse\b|larger\b)\w+",
        "is not a, is not an, are not",
        "with other weights the numbers are no LPIPS",
    ),
    (
        r"(?<!there )(?<!there can )(?<!there may )(?<!there must )(?<!there should )(?<!there will )"
        r"\bbe no (?!longer\b|more\b|less\b|fewer\b|better\b|worse\b|larger\b)\w+",
        "not be a, not be an",
        "it must be no folder",
    ),
    (
        r"(?<!there )\b(is|are|was|were) (?-i:none)\b(?! of| else)",
        "is not a, is not one",
        "TypeError if the value is none",
    ),
    (r"\bbesides?\b", "with, next to, except", "it loads beside a CUDA build"),
    (r"\bof (one's|your|my|our) own\b", "custom, your", "a network of your own"),
    (
        r"\b(what|that|which) (is|are|was|were) (already )?there\b",
        "existing files, installed",
        "it resumes with what is there",
    ),
    (
        r"\bkept(?= (in|on|under) )(?! in (order|step|sync|mind|place|float|half|double|memory|full)\b)"
        r"|\bwhat is kept\b",
        "cached, stored",
        "features are kept in a folder",
    ),
    (
        r"\b(first|second|last|next|same|n-th|i-th|other|own|these) places?\b|\b\d+x\d+ places\b"
        r"|\b(over|at|of) (all |the |its |their )?places\b|\bplaces? in the (list|row|table|batch|file)\b",
        "index, position",
        "averaged over places and layers",
    ),
    (r"\bown recipe\b", "default recipe", "the package's own recipe"),
    (r"\bdays? with a GPU\b", "GPU validation", "a report for the day with a GPU"),
    (
        r"(?<![\w.%:+,\[{}<>^\\)/])\.\d+\b(?!\.?\w)",
        "a digit before the point: 0.0246",
        "the distance is .0246",
    ),
]
CODE = (".py", ".h", ".cpp", ".cu", ".cuh", ".md")
PATTERNS = [re.compile(pattern, re.IGNORECASE) for pattern, _, _ in PHRASES]

# Sentences as they should be, and innocent uses of the same words.
GOOD = [
    "A run cannot be resumed with different settings; the error lists the differences.",
    "Three noise levels are tried for the first evaluation (the true one, 1/4 and 1/8 of it). "
    "The fit closest to the teacher is kept.",
    "Evaluated at a lower noise level, it treats the noise as structure.",
    "If `solver` is not a solver, `denoiser` is not callable, or `guidance_scale` is not a number.",
    "Returns None if the operator rejects the inputs.",
    "There is no LPIPS network 'resnet'; there is none of them.",
    "Verify existing shards and regenerate damaged ones.",
    "It learns a solver, a few hundred numbers, that reaches in 4-10 network evaluations the quality.",
    "The update is made in place, and takes place on the GPU; a mock stands in for it.",
    "Any kind of error may follow; amend the file, commend it, and tell both apart.",
    "None stands for the default; the distance grows by a fifth, and the curve bends in four places.",
    "The ratio is 0.51 to 0.54, at f'{x:.4f}' and version 2.14.1, in setup.cfg.",
    "It must be no more than 3, and there must be no file.",
]


def faults(text: str, first_line: int = 1) -> Iterator[tuple[int, str, str]]:
    """Yield line, phrase and replacement for every refused phrase, also across the end of a line."""
    lines = text.splitlines()
    words = [(word, number) for number, line in enumerate(lines, first_line) for word in line.split()]
    starts = list(accumulate((len(word) + 1 for word, _ in words), initial=0))
    joined = " ".join(word for word, _ in words)
    for pattern, (_, instead, _) in zip(PATTERNS, PHRASES, strict=True):
        for match in pattern.finditer(joined):
            yield words[bisect_right(starts, match.start()) - 1][1], match[0], instead


def strings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the first line and text of every string with a space: docstrings, messages, help."""
    parts = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in parts:
            text = node.value
        else:
            continue
        if " " in text:
            yield node.lineno, text


def comments(source: str) -> Iterator[tuple[int, str]]:
    """Yield the first line and text of every block of comments."""
    block: list[str] = []
    last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        if block and token.start[0] != last + 1:
            yield last - len(block) + 1, "\n".join(block)
            block = []
        block.append(token.string.lstrip("# "))
        last = token.start[0]
    if block:
        yield last - len(block) + 1, "\n".join(block)


def faults_of_file(path: Path) -> list[str]:
    source = path.read_text(encoding="utf-8")
    texts = [(1, source)]
    if path.suffix == ".py":
        texts = [*strings(ast.parse(source)), *comments(source)]
    found = sorted({fault for line, text in texts for fault in faults(text, line)})
    return [f'{path.relative_to(ROOT)}:{n}: "{phrase}": write {instead}' for n, phrase, instead in found]


def groups() -> dict[str, list[Path]]:
    """Return pages by name, the files of the package by room, and all other folders."""
    found = {path.relative_to(ROOT).as_posix(): [path] for path in sorted(ROOT.glob("*.md"))}
    found |= {path.relative_to(ROOT).as_posix(): [path] for path in sorted(ROOT.glob("docs/**/*.md"))}
    for path in sorted((ROOT / "gas_ext").rglob("*")):
        if path.suffix in (".py", ".md", ".yaml", ".html", ".js"):
            room = path.relative_to(ROOT / "gas_ext").parts[0].removesuffix(".py")
            found.setdefault(f"gas_ext/{room}", []).append(path)
    found |= {name: [ROOT / name] for name in ("setup.py", "noxfile.py", "CITATION.cff")}
    for folder in ("benchmarks", "examples", "csrc", "tests"):
        paths = sorted((ROOT / folder).rglob("*"))
        found[folder] = [path for path in paths if path.suffix in CODE and path != Path(__file__).resolve()]
    return found


def wide_lines(path: Path) -> list[str]:
    """Return the lines of prose over 110 columns; tables, code, and lines of one address are excluded."""
    fenced, found = False, []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.strip()
        if text.startswith("```") or text == "$$":
            fenced = not fenced
        elif len(line) > 110 and not (
            fenced or text.startswith("|") or re.fullmatch(r"\S*https?://\S+", text)
        ):
            found.append(f"{path.relative_to(ROOT)}:{number}")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("group", groups())
def test_no_refused_phrase(group: str) -> None:
    found = [fault for path in groups()[group] for fault in faults_of_file(path)]
    assert not found, f"{len(found)} phrases of the glossary:\n" + "\n".join(found)


def test_lines_of_prose_are_at_most_110_columns() -> None:
    pages = [ROOT / "CITATION.cff", *ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    assert [line for page in sorted(pages) for line in wide_lines(page)] == []


def test_tables_code_and_addresses_may_be_wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path, long = tmp_path / "page.md", "word " * 30
    path.write_text(f"| {long} |\n```\n{long}\n```\nhttps://x.org/{'a' * 110}\n{long}\n- {long}\n")
    assert wide_lines(path) == ["page.md:6", "page.md:7"]


def help_texts() -> dict[str, str]:
    texts = {}
    command = get_command(app)
    for name, sub in {"gas-ext": command, **command.commands}.items():
        options = [getattr(option, "help", None) for option in sub.params]
        texts[name] = "\n\n".join(filter(None, [sub.help, sub.epilog, sub.short_help, *options]))
    return texts


@pytest.mark.parametrize(("command", "text"), help_texts().items(), ids=list(help_texts()))
def test_no_refused_phrase_in_help(command: str, text: str) -> None:
    found = [f'gas-ext {command} --help: "{phrase}": write {instead}' for _, phrase, instead in faults(text)]
    assert text
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("pattern", "instead", "example"), PHRASES, ids=[example for *_, example in PHRASES])
def test_each_pattern_catches_its_example_also_across_lines(pattern: str, instead: str, example: str) -> None:
    for text in (example, example.replace(" ", "\n    "), f"{example[0].upper()}{example[1:]}."):
        assert instead in {fault[2] for fault in faults(text)}


@pytest.mark.parametrize("sentence", GOOD)
def test_good_sentences_pass(sentence: str) -> None:
    assert list(faults(sentence)) == []


def test_where_a_phrase_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        '"""Docstring that is asked\n    for."""\n\n# A comment: mended\n\n'
        'raise ValueError(\n    f"{x} is no"\n    f" number of {y}"\n)\nprint("rival")\n'
    )
    path = tmp_path / "module.py"
    path.write_text(source)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    places = [line.split(": ", 1)[0] for line in faults_of_file(path)]
    assert places == ["module.py:1", "module.py:4", "module.py:7"]
