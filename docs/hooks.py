"""Hooks of the documentation: formulas become MathML, and commands.md is made from the command line.

Both happen while the site is built, so the pages need no script and nothing from another server.
"""

from __future__ import annotations

import html
import re
from typing import Any

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
COMMANDS = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the command reference."""
    return markdown.replace(COMMANDS, command_reference()) if COMMANDS in markdown else markdown


def on_page_content(content: str, **_: Any) -> str:
    """Replace the formulas of a page, as marked by pymdownx.arithmatex, by MathML."""
    return FORMULA.sub(_mathml, content)


def _mathml(found: re.Match[str]) -> str:
    from latex2mathml.converter import convert

    tag, latex = found[1], html.unescape(found[2])
    if tag == "span":
        return convert(latex, display="inline")
    return f'<div class="formula">{convert(latex, display="block")}</div>'


def command_reference() -> str:
    """Return one section per command of ``gas-ext``: usage, description, options and examples."""
    import typer

    from gas_ext.cli import app

    group = typer.main.get_command(app)
    return "\n\n".join(_command(name, command) for name, command in group.commands.items())


def _command(name: str, command: Any) -> str:
    arguments = [parameter for parameter in command.params if not parameter.opts[0].startswith("-")]
    options = [parameter for parameter in command.params if parameter.opts[0].startswith("-")]
    usage = " ".join(["gas-ext", name, *(parameter.name.upper() for parameter in arguments), "[OPTIONS]"])
    described = [f"`{parameter.name.upper()}`\n:   {_help(parameter)}" for parameter in arguments]
    described += [
        f"{_names(parameter)}\n:   {_help(parameter)}" for parameter in options if not parameter.hidden
    ]
    return "\n\n".join(
        [
            f"## {name}",
            f"```console\n{usage}\n```",
            html.escape(command.help or "", quote=False),
            *described,
            _epilog(command.epilog or ""),
        ]
    )


def _names(parameter: Any) -> str:
    names = sorted(parameter.opts, key=len, reverse=True)
    value = "" if parameter.is_flag else " " + (parameter.metavar or parameter.name.upper())
    return ", ".join(f"`{name}{value}`" for name in names + parameter.secondary_opts)


def _help(parameter: Any) -> str:
    text = html.escape(" ".join((parameter.help or "").split()), quote=False)
    text = text.replace("{", "&#123;").replace("*", "&#42;")
    if parameter.required:
        text += " **Required.**"
    elif parameter.show_default and parameter.default is not None and not callable(parameter.default):
        default = getattr(parameter.default, "value", parameter.default)
        if not isinstance(default, (bool, list, tuple)):
            text += f" Default: `{default}`."
    if getattr(parameter, "multiple", False):
        text += " Repeatable." if "repeatable" not in text else ""
    return text


def _epilog(epilog: str) -> str:
    """Return the examples of a command as one block, and what follows them as a paragraph."""
    examples, rest = [], ""
    for part in (part.strip() for part in epilog.split("  |  ")):
        if part.startswith("Solvers:"):
            rest = html.escape(part, quote=False)
        elif part:
            examples.append(part.removeprefix("Examples:").strip())
    block = "```bash\n" + "\n".join(examples) + "\n```" if examples else ""
    return "\n\n".join(filter(None, [block, rest]))
