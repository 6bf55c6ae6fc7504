"""Names and secrets: what is a Hub id, a local folder or a credential, and how a path is shown to others.

This file travels with the model files as remote code, so it imports nothing but the standard library.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)

# Matched in snake case. A tokenizer's `pad_token` and a table's `sort_key` are not secrets: a token or key counts
# only together with the name of a service or a purpose.
_SECRET_KEY = re.compile(
    r"((.*_)?(api_?keys?|secrets?|passwords?|passwd|passphrase|credentials?|authorization)"
    r"|(.*_)?(access|secret|private|ssh|signing|encryption)_key"
    r"|(.*_)?(anthropic|aws|azure|cohere|comet|deepseek|gcp|gemini|github|gitlab|google|groq|hf|hub|huggingface|mistral"
    r"|neptune|openai|openrouter|replicate|slack|together|wandb)_(key|token|pat)"
    r"|((.*_)?(auth|access|api|bearer|private|refresh|session)_?)?token)"
)
_SECRET_VALUES = {
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{20,}\b"),
    # Words joined by hyphens are a slug; a key has one long run of characters.
    "an API key": re.compile(r"\bsk-(?:[A-Za-z0-9]+[_-])*[A-Za-z0-9]{16,}|\bAIza[A-Za-z0-9_-]{35}"),
    "a GitHub token": re.compile(r"\bgh[pousr]_[A-Za-z0-9]{30,}\b|\bgithub_pat_[A-Za-z0-9_]{20,}"),
    "a GitLab token": re.compile(r"\bglpat-[A-Za-z0-9_-]{16,}"),
    "a Slack token": re.compile(r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}"),
    "an AWS key": re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a URL with a password": re.compile(r"://[^/\s:@\"']+:[^/\s:@\"']+@"),
}
EXPORT_MANIFEST = "export.json"
"""The file that says which ONNX graphs a folder holds. transformers' exporters write it."""


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


@contextlib.contextmanager
def naming_model(name: str) -> Iterator[None]:
    """Name the model in an OSError of the libraries that load it; they name only the host that did not answer."""
    try:
        yield
    except OSError as error:
        raise OSError(f"The model {name} cannot be loaded: {error}") from error


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


def is_secret_key(key: str) -> bool:
    """Tell whether a key, in any case, names a credential: "token", "hf_token", "clientSecret", "api-key"."""
    normalized = re.sub(r"[-.\s]", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key)).lower()
    return _SECRET_KEY.fullmatch(normalized) is not None


def secrets_in(text: str) -> list[str]:
    """Say which kinds of credentials a text holds."""
    return [what for what, pattern in _SECRET_VALUES.items() if pattern.search(text)]


def without_secrets(value: Any) -> Any:
    """Return a JSON value without the entries that hold a credential, at any depth."""
    if isinstance(value, list):
        return [without_secrets(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: without_secrets(item)
        for key, item in value.items()
        if not (isinstance(item, str) and (is_secret_key(str(key)) or secrets_in(item)))
    }
