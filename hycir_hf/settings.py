"""Settings as a dataclass: each field has a meaning, a group and a range, and comes from Python, a YAML file or a flag.

A field is declared once, with `setting`. The checks, the YAML keys, the flags and the help pages follow from it. This
module is light: no torch, so that `hycir train --help` is quick.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml

if typing.TYPE_CHECKING:
    from typing_extensions import Self


class ParameterError(ValueError):
    """Arguments that are wrong, or that do not go together.

    Args:
        message (`str`): What is wrong and what to do, with the parameters' Python names.
        *parameters (`str`): The Python names. The command line adds the flags that belong to them.
    """

    def __init__(self, message: str, *parameters: str) -> None:
        super().__init__(message)
        self.parameters = parameters


def setting(
    default: Any,
    help: str,
    *,
    group: str | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Any:
    """Declare a field of a `Settings` dataclass.

    Args:
        default (`Any`): Its default; an empty list or mapping is made anew for each object.
        help (`str`): Its meaning, one line.
        group (`str`, *optional*): Heading on the help page; the fields below belong to it too, until the next one.
        at_least (`float`, *optional*): Smallest value.
        at_most (`float`, *optional*): Largest value.
        below (`float`, *optional*): Upper bound that is itself not allowed.
    """
    metadata = {"help": help, "group": group, "at_least": at_least, "at_most": at_most, "below": below}
    if isinstance(default, list | dict):
        return field(default_factory=type(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Settings:
    """Base of a job's settings.

    Raises:
        ParameterError: With every complaint about the values at once.
    """

    title: ClassVar[str] = "Settings"

    def __post_init__(self) -> None:
        complaints = self._type_complaints() or [*self._range_complaints(), *self.complaints()]
        if complaints:
            raise ParameterError(f"{self.title}: {'; '.join(complaints)}.")

    def complaints(self) -> Iterable[str]:
        """Yield what is wrong with values that have the right type: for subclasses."""
        return ()

    @classmethod
    def from_yaml(cls, path: str | Path | None, /, **overrides: Any) -> "Self":
        """Build the settings from a YAML file, with `overrides` over it.

        Args:
            path (`str` or `Path`, *optional*): The file; None reads none.
            **overrides (`Any`): Settings that win over the file's.

        Raises:
            ParameterError: If the file cannot be used, a setting is unknown (the nearest known one is named), or
                values are wrong.
        """
        values = {} if path is None else read_config(path)
        known = [entry.name for entry in dataclasses.fields(cls)]
        unknown = [f"{name!r}{did_you_mean(name, known)}" for name in {**values, **overrides} if name not in known]
        if unknown:
            place = "" if path is None else f" in {path}"
            raise ParameterError(f"{cls.title}: there is no setting {', '.join(unknown)}{place}.")
        try:
            return cls(**cls._overridden(values, overrides))
        except ParameterError as error:
            raise ParameterError(f"{error} (Read from {path}.)" if path else str(error), *error.parameters) from error

    @classmethod
    def _overridden(cls, values: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
        """The file's values with the overrides over them."""
        return {**values, **overrides}

    def to_dict(self) -> dict[str, Any]:
        """Return all settings by name, as plain values."""
        return dataclasses.asdict(self)

    def _type_complaints(self) -> list[str]:
        found = []
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            try:
                setattr(self, entry.name, _converted(value, *kind_of(entry)))
            except (AttributeError, TypeError, ValueError):
                found.append(f"{entry.name} must be {_expected(*kind_of(entry))}, but it is {value!r}")
        return found

    def _range_complaints(self) -> list[str]:
        found = []
        for entry in dataclasses.fields(self):
            value, rule = getattr(self, entry.name), entry.metadata
            if value is None:
                continue
            kind, is_optional = kind_of(entry)
            if typing.get_origin(kind) is Literal and value not in typing.get_args(kind):
                found.append(f"{entry.name} must be {_expected(kind, is_optional)}, but it is {value!r}")
            if rule["at_least"] is not None and not value >= rule["at_least"]:  # `not`: NaN is in no range
                found.append(f"{entry.name} must be at least {rule['at_least']}, but it is {value}")
            if rule["at_most"] is not None and not value <= rule["at_most"]:
                found.append(f"{entry.name} must be at most {rule['at_most']}, but it is {value}")
            if rule["below"] is not None and not value < rule["below"]:
                found.append(f"{entry.name} must be below {rule['below']}, but it is {value}")
        return found


def read_config(path: str | Path) -> dict[str, Any]:
    """Read a YAML file of settings; a name may be written with hyphens.

    Raises:
        ParameterError: If it is not there, or holds no `name: value` lines.
    """
    if not Path(path).is_file():
        raise ParameterError(f"There is no settings file {path}.")
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParameterError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict | None):
        raise ParameterError(f"Expected 'name: value' lines in {path}, but found a {type(values).__name__}.")
    return {str(name).replace("-", "_"): value for name, value in (values or {}).items()}


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'X'?)" for the nearest known name, or "" if none is near."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""


def kind_of(entry: dataclasses.Field) -> tuple[Any, bool]:
    """Return a setting's type, and whether it may be None."""
    kind: Any = entry.type
    if isinstance(kind, types.UnionType):
        return next(part for part in typing.get_args(kind) if part is not type(None)), True
    return kind, False


def _converted(value: Any, kind: Any, is_optional: bool) -> Any:
    """A value in a setting's type: YAML reads 1e-4 as a text, and 1 as a whole number."""
    if value is None and is_optional:
        return None
    origin = typing.get_origin(kind) or kind
    if kind is bool or isinstance(value, bool):
        if kind is bool and isinstance(value, bool):
            return value
        raise TypeError
    if origin is Literal:  # which text is a question of range
        origin = str
    if kind is int and isinstance(value, float):
        if not value.is_integer():  # also infinity and NaN
            raise ValueError
        return int(value)
    if kind in (int, float) and isinstance(value, int | float | str):
        return kind(value)
    if kind == list[str] and isinstance(value, str | list):
        texts = [value] if isinstance(value, str) else value
        return [part.strip() for text in texts for part in text.split(",") if part.strip()]
    if origin is list and isinstance(value, tuple):
        return list(value)
    if not isinstance(value, origin):
        raise TypeError
    return value


_IN_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", list: "a list"}


def _expected(kind: Any, is_optional: bool) -> str:
    if typing.get_origin(kind) is Literal:
        return f"one of {list(typing.get_args(kind))}"
    return _IN_WORDS.get(typing.get_origin(kind) or kind, "a mapping") + (" or null" if is_optional else "")
