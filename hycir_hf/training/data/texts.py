"""Texts without images: captions for LinCIR, and SEARLE's phrases by concept."""

import json
import re
from pathlib import Path
from typing import Any


def read_texts(path: str, column: str | None = None) -> list[str]:
    """Read texts, one a row.

    Args:
        path (`str`): A .txt file with one text a line, a .json list of strings, or a PATH[:CONFIG] that `datasets` can
            load.
        column (`str`, *optional*): Of a data set; by default the first of "text", "caption", "query_text".

    Raises:
        ValueError: If there is no such file or column, or no text in it.
    """
    if path.endswith((".txt", ".json")) and not Path(path).is_file():
        raise ValueError(f"Expected texts at {path}, but found nothing there. Check the path.")
    if path.endswith(".txt"):
        texts = Path(path).read_text(encoding="utf-8").splitlines()
    elif path.endswith(".json"):
        texts = _read_json(path)
        if not isinstance(texts, list):
            raise ValueError(f"Expected a JSON list of strings in {path}, but it is another form. Convert it.")
    else:
        texts = _read_column(path, column)
    found = [text.strip() for text in texts if isinstance(text, str) and text.strip()]
    if not found:
        raise ValueError(f"Expected texts in {path}, but found none. Check the path.")
    return found


def read_phrases(path: str) -> dict[str, list[str]]:
    """Read SEARLE's phrases: a JSON object, concept -> phrases that use its word; others are left out.

    Raises:
        ValueError: If there is no such file, or no phrase uses its concept's word.
    """
    if not Path(path).is_file():
        raise ValueError(f"Expected phrases at {path}, but found nothing there. Check the path.")
    given = _read_json(path)
    if not isinstance(given, dict) or not all(isinstance(phrases, list) for phrases in given.values()):
        raise ValueError(
            f'Expected a JSON object {{"dog": ["a dog on a bench", ...], ...}} in {path}, but found another form. '
            "Convert it."
        )
    kept = {
        concept: [
            phrase for phrase in phrases if isinstance(phrase, str) and len(split_at_concept(phrase, concept)) > 1
        ]
        for concept, phrases in given.items()
    }
    kept = {concept: phrases for concept, phrases in kept.items() if phrases}
    if not kept:
        raise ValueError(
            f"Expected phrases that use their concept's word in {path}, but none of {len(given)} concepts has one. "
            'Write them like {"dog": ["a dog on a bench"]}.'
        )
    return kept


def split_at_concept(phrase: str, concept: str) -> list[str]:
    """The pieces of a phrase around its concept's word: one more than the word's occurrences."""
    return re.split(rf"\b{re.escape(concept)}\b", phrase)


def _read_json(path: str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"Expected JSON in {path}, but found: {error}. Repair the file.") from error


def _read_column(path: str, column: str | None) -> list[str]:
    from ...images.sources import load_split, split_config

    dataset, _ = load_split(*split_config(path), None)
    names = [name for name in ((column,) if column else ("text", "caption", "query_text")) if name in dataset.features]
    if not names:
        raise ValueError(
            f"Expected a text column {column or 'text'!r} in {path}, but found {list(dataset.features)}. Name one of "
            "those."
        )
    return list(dataset[names[0]])
