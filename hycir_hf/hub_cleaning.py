"""Find secrets and local paths in text files before an upload: a secret stops it, local paths are removed."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from .names import is_hub_id, is_secret_key, secrets_in

TEXT_SUFFIXES = (".json", ".jsonl", ".txt", ".md", ".py", ".html", ".svg", ".yaml", ".yml", ".csv")
_STRUCTURED_SUFFIXES = (".json", ".jsonl", ".yaml", ".yml")
# Strings in these files are vocabulary, whatever they look like.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "added_tokens.json", "vocab.txt", "merges.txt")

_WHOLE_PATH = re.compile(r"^((/[^/\n]+){2,}/?|~[\\/].*|\.\.?[\\/].*|[A-Za-z]:[\\/].*)$")
# Within a text only the usual root folders count: "and/or" and the path of a URL are not local paths. A Windows path
# needs two names, because code contains "Q:\n".
_EMBEDDED_PATH = re.compile(
    r"(?:file://|(?<![\w./~-]))"
    r"(?:/(?:home|Users|root|mnt|media|data|scratch|srv|tmp|var|work|workspace|Volumes)/|~/"
    r"|[A-Za-z]:(?:\\{1,2}[\w.-]+\\|/Users/))"
    r"[^\s\"'<>,;:)\]}`]*[^\s\"'<>,;:).\]}`\\]"
)


def clean_texts(texts: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Replace local paths in texts by their last name.

    Args:
        texts (`dict[str, str]`): File name -> content.

    Returns:
        File name -> new content of the texts that changed, and "file: key" or "file: line 3" of each removed path.

    Raises:
        ValueError: If a text holds a secret, or is JSON or YAML that cannot be read.
    """
    complaints = [f"{name} holds {what}" for name, text in texts.items() for what in secrets_in(text)]
    cleaners: dict[str, _Cleaner] = {}
    contents: dict[str, Any] = {}
    for name, text in texts.items():
        if name.endswith(_STRUCTURED_SUFFIXES) and not _is_vocabulary(name):
            cleaners[name] = _Cleaner()
            contents[name] = cleaners[name].clean(_parse(name, text))
            complaints += [f"{name} holds a value for {key!r}" for key in cleaners[name].secret_keys]
    if complaints:
        raise ValueError(f"Secrets found: {'; '.join(complaints)}. Remove them; revoke them if the folder was shared.")
    local_paths = set[str]().union(*(cleaner.paths for cleaner in cleaners.values()))
    changed: dict[str, str] = {}
    stripped: list[str] = []
    for name, text in texts.items():
        if _is_vocabulary(name):
            continue
        keys = cleaners[name].stripped if name in cleaners else []
        if name.endswith((".json", ".jsonl")):
            new = _rewritten(name, text, contents[name]) if keys else text
        else:
            new = _without_paths(text, local_paths)
            if keys and not _reads_as(new, contents[name]):  # a path over two lines, or escaped
                new = yaml.safe_dump_all(contents[name], sort_keys=False, allow_unicode=True)
        if new != text:
            changed[name] = new
            stripped += [f"{name}: {place}" for place in keys or _changed_lines(text, new)]
    return changed, stripped


def _is_vocabulary(name: str) -> bool:
    return Path(name).name in _VOCABULARIES


def _parse(name: str, text: str) -> Any:
    """Read a JSON, JSON lines or YAML file."""
    try:
        if name.endswith(".json"):
            return json.loads(text)
        if name.endswith(".jsonl"):
            return [json.loads(line) for line in _lines(text)]
        return list(yaml.safe_load_all(text))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"{name} cannot be searched for secrets, because it is damaged: {error}. Repair it, or remove it."
        ) from error


def _reads_as(text: str, content: Any) -> bool:
    try:
        return list(yaml.safe_load_all(text)) == content
    except yaml.YAMLError:
        return False


def _lines(text: str) -> list[str]:
    """JSON lines; `splitlines` would also break a string at U+2028."""
    return [line for line in text.split("\n") if line.strip()]


def _rewritten(name: str, text: str, content: Any) -> str:
    """Write a JSON file with new content; of JSON lines only the changed ones are written again."""
    if name.endswith(".json"):
        return _json(content, indent=2) + "\n"
    pairs = zip(_lines(text), content, strict=True)
    return "".join((line if json.loads(line) == record else _json(record)) + "\n" for line, record in pairs)


def _json(content: Any, indent: int | None = None) -> str:
    text = json.dumps(content, indent=indent, ensure_ascii=False)
    # A lone surrogate has no UTF-8.
    return json.dumps(content, indent=indent) if re.search("[\ud800-\udfff]", text) else text


def _without_paths(text: str, local_paths: set[str]) -> str:
    """Replace local paths by their last name, except within a longer word or the path of a URL."""
    for path in sorted(local_paths, key=len, reverse=True):
        text = _replace_path(text, path)
    return _replace_path(_without_embedded(text), str(Path.home()))


def _without_embedded(text: str) -> str:
    return _EMBEDDED_PATH.sub(lambda found: _last_name(found[0]), text)


def _replace_path(text: str, path: str) -> str:
    pattern = rf"(?<![\w.-]){re.escape(path)}(?![\w-])"
    return re.sub(pattern, lambda found: _last_name(found[0]), text) if len(path) > 1 else text


def _changed_lines(old: str, new: str) -> list[str]:
    pairs = zip(old.split("\n"), new.split("\n"), strict=False)
    return [f"line {number}" for number, (before, after) in enumerate(pairs, 1) if before != after]


def _last_name(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]


class _Cleaner:
    """Goes through JSON values: replaces local paths by their last name and notes the keys of secrets."""

    def __init__(self) -> None:
        self.stripped: list[str] = []
        self.secret_keys: list[str] = []
        self.paths: set[str] = set()

    def clean(self, value: Any, key: str = "") -> Any:
        """Return a value without local paths."""
        if isinstance(value, dict):
            cleaned: dict[Any, Any] = {}
            for name, item in value.items():
                if not self._is_local_name(name, item):
                    cleaned[self._clean_key(name, cleaned)] = self.clean(item, str(name))
            return cleaned
        if isinstance(value, list):
            return [self.clean(item, key) for item in value]
        if not isinstance(value, str) or not value:
            return value
        if is_secret_key(key):
            self.secret_keys.append(key)
        return self._clean_text(value, key)

    def _clean_key(self, key: Any, taken: dict[Any, Any]) -> Any:
        """Return a key without local paths; a number is added if another entry has that key."""
        if not isinstance(key, str):
            return key
        cleaned = new = self._clean_text(key, "a key")
        number = 2
        while new != key and new in taken:
            new, number = f"{cleaned} ({number})", number + 1
        return new

    def _is_local_name(self, key: Any, value: Any) -> bool:
        """Tell whether an entry such as `encoder_name_or_path` names a local folder: its last name would mislead."""
        is_name = isinstance(key, str) and key.endswith("name_or_path") and isinstance(value, str)
        if is_name and ("/" in value or "\\" in value) and not is_hub_id(value):
            self.stripped.append(key)
            self.paths.add(value)
            return True
        return False

    def _clean_text(self, text: str, key: str) -> str:
        if _WHOLE_PATH.match(text):
            self.paths.add(text)
            cleaned = _last_name(text)
        else:
            cleaned = _without_embedded(text)
        if cleaned != text:
            self.stripped.append(_without_embedded(key))
        return cleaned
