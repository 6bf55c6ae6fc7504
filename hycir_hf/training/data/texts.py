"""Texts without images: captions for LinCIR, and SEARLE's phrases by concept."""

import re
from pathlib import Path

from ...files import read_json
from ...images.tables import load_split, split_config

_TEXT_COLUMNS = ("text", "caption", "query_text")


def read_texts(path: str, column: str | None = None) -> list[str]:
    """Read texts, one per row. Empty ones are left out.

    Args:
        path (`str`): A .txt file with one text per line, a .json list of strings, or a PATH[:CONFIG] that `datasets`
            can load.
        column (`str`, *optional*): Text column of a dataset; by default the first of "text", "caption", "query_text".

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is no such column, or no text.
    """
    if path.endswith(".txt"):
        if not Path(path).is_file():
            raise FileNotFoundError(f"There is no file {path}. Give a .txt file with one text per line.")
        texts = Path(path).read_text(encoding="utf-8").splitlines()
    elif path.endswith(".json"):
        texts = read_json(path, list, remedy="Give a JSON list of strings.")
    else:
        dataset, _ = load_split(*split_config(path), None)
        names = [name for name in ((column,) if column else _TEXT_COLUMNS) if name in dataset.features]
        if not names:
            wanted = repr(column) if column else f"one of {list(_TEXT_COLUMNS)}"
            raise ValueError(f"Expected the column {wanted} in {path}, but found {list(dataset.features)}.")
        texts = list(dataset[names[0]])
        wrong = next((row for row, text in enumerate(texts) if not isinstance(text, str)), None)
        if wrong is not None:
            raise ValueError(
                f"Row {wrong} of {path} holds {texts[wrong]!r} as {names[0]!r}, which is no text. Fill it in."
            )
    found = [text.strip() for text in texts if isinstance(text, str) and text.strip()]
    if not found:
        raise ValueError(f"There are no texts in {path}. Give another file.")
    return found


def read_phrases(path: str) -> dict[str, list[str]]:
    """Read SEARLE's phrases: a JSON object, concept -> phrases that use its word. Other phrases are left out.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it has another form, or no phrase uses its concept's word.
    """
    remedy = 'Write the phrases like {"dog": ["a dog on a bench"]}.'
    kept: dict[str, list[str]] = {}
    for concept, phrases in read_json(path, dict, remedy=remedy).items():
        if not isinstance(phrases, list):
            raise ValueError(f"Expected a list as {concept!r} in {path}, but found {phrases!r}. {remedy}")
        using = [one for one in phrases if isinstance(one, str) and len(split_at_concept(one, concept)) > 1]
        if using:
            kept[concept] = using
    if not kept:
        raise ValueError(f"No phrase in {path} uses its concept's word. {remedy}")
    return kept


def split_at_concept(phrase: str, concept: str) -> list[str]:
    """Split a phrase at its concept's word. There is one piece more than there are occurrences."""
    return re.split(rf"\b{re.escape(concept)}\b", phrase)
