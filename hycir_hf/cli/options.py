"""Options that several commands share, what a command returns, and how a settings class becomes flags."""

import dataclasses
import json
import textwrap
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

from cyclopts import Group, Parameter

from ..files import check_new_folder
from ..names import shown
from ..settings import Settings, kind_of

_SHOWN_NAMES = 5

_DATASET = Group("Dataset options (if IMAGES is a dataset)", sort_key=900)
_OUTPUT = Group("General options", sort_key=1000)


def _check_folder(kind: Any, path: str | None) -> None:
    if path is not None and Path(path).exists() and not Path(path).is_dir():
        raise ValueError("It is a file. Give a folder.")


def _check_file(kind: Any, path: str | None) -> None:
    if path is not None and Path(path).is_dir():
        raise ValueError("It is a folder. Give a file.")


def _check_device(kind: Any, name: str | None) -> None:
    if name is None:
        return
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"It is no device of this machine: {str(error).splitlines()[0]}") from error


Model = Annotated[str, Parameter(alias="-m")]
OutputFolder = Annotated[str, Parameter(alias="-o", validator=_check_folder)]
NewFolder = Annotated[str, Parameter(alias="-o", validator=lambda kind, path: check_new_folder(path))]
OutputFile = Annotated[str | None, Parameter(validator=_check_file)]
Switch = Annotated[bool, Parameter(negative="", show_default=False)]
Device = Annotated[
    str | None,
    Parameter(
        help="Device, such as cpu or cuda:1. By default a GPU if there is one.", group=_OUTPUT, validator=_check_device
    ),
]


@Parameter(name="*", group=_DATASET)
@dataclass
class Columns:
    """Which part of a dataset holds the images."""

    split: Annotated[str | None, Parameter(help="Split. Needed if the dataset has several.")] = None
    image_column: Annotated[str | None, Parameter(help="Image column. By default 'image', or the only one.")] = None
    id_column: Annotated[str | None, Parameter(help="Id column. By default 'image_id', or the row number.")] = None


@Parameter(name="*", group=_OUTPUT)
@dataclass
class Debug:
    """What every command has; `main` reads it."""

    debug: Annotated[Switch, Parameter(help="Show the whole traceback of an error.")] = False


@Parameter(name="*", group=_OUTPUT)
@dataclass
class Common(Debug):
    """What every command with results has; `main` reads it."""

    json: Annotated[Switch, Parameter(help="Print the result as one JSON object.")] = False


@dataclass
class Report:
    """What a command found.

    Args:
        values (`dict`): For `--json`.
        lines (`list[str]`): For a reader.
        status (`int`): The exit status.
    """

    values: dict[str, Any]
    lines: list[str]
    status: int = 0


def flags_of(settings: type[Settings]) -> Any:
    """Make a settings class's flags: the type of a dictionary that holds those that were given."""
    make_type: Any = TypedDict
    groups: dict[str, Group] = {}
    flags = {}
    for entry, name in _with_groups(settings):
        group = groups.setdefault(name, Group(name, sort_key=1 + len(groups)))
        flags[entry.name] = _flag(entry, group)
    return Annotated[make_type("Flags", flags, total=False), Parameter(name="*")]


def list_settings(settings: type[Settings]) -> str:
    """List a settings class by groups, for a help page."""
    lines, width = [], max(len(entry.name) for entry in dataclasses.fields(settings)) + 2
    heading = ""
    for entry, group in _with_groups(settings):
        if group != heading:
            lines.append(f"\n{group}")
            heading = group
        indent = " " * (width + 2)
        text = f"  {entry.name:{width}}{_help(entry)}"
        lines.append(textwrap.fill(text, 79, subsequent_indent=indent, break_on_hyphens=False))
    return "\n".join(lines).strip()


def some(names: Sequence[str]) -> str:
    """Return the first of some names, and how many more there are."""
    more = f" and {len(names) - _SHOWN_NAMES:,} more" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(map(shown, names[:_SHOWN_NAMES])) + more


def _with_groups(settings: type[Settings]) -> Iterator[tuple[dataclasses.Field, str]]:
    group = ""
    for entry in dataclasses.fields(settings):
        group = entry.metadata["group"] or group
        yield entry, group


def _flag(entry: dataclasses.Field, group: Group) -> Any:
    """A setting as cyclopts takes it; nested values are given as JSON."""
    kind, _ = kind_of(entry)
    if kind == list[str]:
        return Annotated[kind, Parameter(help=_help(entry), group=group, consume_multiple=True)]
    if typing.get_origin(kind) in (list, dict):
        reader = Parameter(converter=_read_json, accepts_keys=False, n_tokens=1)
        return Annotated[Any, Parameter(help=_help(entry), group=group), reader]
    return Annotated[kind, Parameter(help=_help(entry), group=group)]


def _read_json(kind: Any, tokens: Sequence[Any]) -> Any:
    return json.loads(tokens[0].value)


def _help(entry: dataclasses.Field) -> str:
    default = entry.default
    if default is False or default in (None, "", dataclasses.MISSING):
        return entry.metadata["help"]
    return f"{entry.metadata['help']} [default: {'yes' if default is True else default}]"
