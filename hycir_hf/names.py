"""Names of models and paths: what is a Hub id, what is a local folder, and how a path is shown to others.

This file travels with the model files as remote code, so it imports nothing but the standard library.
"""

import re
from pathlib import Path
from typing import Any

_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)


def is_hub_id(name: Any) -> bool:
    """Tell whether a name reads as a Hub id, "OWNER/NAME", and is no file or folder here."""
    return isinstance(name, str) and _HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def shown(text: str) -> str:
    """Escape what a terminal or a reader could misread: control characters, bidirectional marks, half surrogates."""
    harmless = "\u200c\u200d\xa0\u3000"  # joiners of scripts and emoji, wide spaces
    return "".join(one if one.isprintable() or one in harmless else repr(one)[1:-1] for one in text)


def resolve_model(name: str, what: str = "model") -> str:
    """Check that a name can be a model, before anything is loaded: a saved folder, or a Hub id.

    Args:
        name (`str`): Folder or Hub id.
        what (`str`): What the caller wants, for the message: "model", "encoder", "captioner".

    Returns:
        `str`: The same name.

    Raises:
        ValueError: If there is no such folder and the name is no Hub id, or the folder holds no saved model.
    """
    folder = Path(name)
    if folder.is_dir():
        if not any((folder / file).is_file() for file in ("config.json", "modules.json")):
            raise ValueError(f"The folder {name} holds no saved {what}: there is no config.json in it.")
        return name
    if not is_hub_id(name):
        raise ValueError(
            f"There is no {what} at {name!r}. Give the folder it was saved in, or its Hub id (OWNER/NAME)."
        )
    return name


def public_path(text: str) -> str:
    """Show a path or address without what is private: relative to the working folder, or its last part; no password."""
    if "://" in text:
        scheme, _, rest = text.partition("://")
        host, slash, place = rest.partition("/")
        return f"{scheme}://{host.rpartition('@')[2]}{slash}{place.partition('?')[0]}"
    path = Path(text)
    if not path.is_absolute():
        return text
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name
