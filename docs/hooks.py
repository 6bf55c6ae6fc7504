"""What mkdocs generates at build time: the tables of settings and the help of every command.

A page holds a line like `<!-- settings: hycir_hf.syncir.SynCirConfig -->` or `<!-- command: index -->`. The generated
part is put behind it. A setting's meaning is its field's `help`, or its line in the class's docstring.
"""

import dataclasses
import importlib
import os
import re
import subprocess
import sys
from typing import Any

_MARK = re.compile(r"^<!-- (settings|command): (.+?) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in a page's generated parts."""
    return _MARK.sub(lambda match: f"{match[0]}\n\n{_GENERATORS[match[1]](match[2])}", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Take the backticks and stars out of types: the docstrings write them as transformers' do."""
    return re.sub(r"\(<code>.*?</code>", lambda match: match[0].replace("`", "").replace("*", ""), html)


def settings_table(path: str) -> str:
    """Write the fields of a dataclass as Markdown tables, one for each group."""
    module, _, name = path.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    documented = _documented(cls.__doc__ or "")
    groups: dict[str, list[str]] = {}
    group = ""
    for field in dataclasses.fields(cls):
        meaning = field.metadata.get("help") or documented.get(field.name)
        if not meaning:
            raise ValueError(f"{path}.{field.name} has no help text. Document it in the class's docstring.")
        kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
        group = field.metadata.get("group") or group  # a group holds until the next one
        kind = kind.replace(" | ", " or ")
        groups.setdefault(group, []).append(f"| `{field.name}` | `{kind}` | {_default(field)} | {meaning} |")
    tables = [
        (f"### {group}\n\n" if group else "")
        + "| setting | type | default | meaning |\n|---|---|---|---|\n"
        + "\n".join(rows)
        for group, rows in groups.items()
    ]
    return "\n\n".join(tables)


def command_help(command: str) -> str:
    """Run a command's `--help`."""
    arguments = [] if command == "hycir" else command.split()
    environment = os.environ | {"COLUMNS": "88", "NO_COLOR": "1", "TERM": "dumb"}
    run = subprocess.run(
        [sys.executable, "-m", "hycir_hf.cli", *arguments, "--help"], capture_output=True, text=True, env=environment
    )
    if run.returncode:
        raise ValueError(f"`hycir {command} --help` ended with {run.returncode}: {run.stderr.strip()}")
    return f"```text\n{run.stdout.strip()}\n```"


def _documented(docstring: str) -> dict[str, str]:
    """Read `name (type): meaning` of a Google docstring's Args, continued lines included."""
    arguments = re.search(r"^\s*Args:\n(.*?)(?=^\s*\w+:\n|\Z)", docstring, re.MULTILINE | re.DOTALL)
    found = re.findall(r"^\s+(\w+) \([^)]*\): (.*?)(?=^\s+\w+ \(|\Z)", arguments[1] if arguments else "", re.M | re.S)
    return {name: " ".join(meaning.split()) for name, meaning in found}


def _default(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
        return f"`{value}`" if value else ""
    return "" if field.default in (None, "", dataclasses.MISSING) else f"`{field.default}`"


_GENERATORS = {"settings": settings_table, "command": command_help}
