"""Draft your own benchmark from pseudo triplets: a CSV table for a person to correct, in a spreadsheet."""

import csv
import io
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ..files import write_text
from .benchmarks.table import SEPARATOR

_NEEDED = ("reference_id", "target_id", "query_text")
_COPIED = ("reference_caption", "target_caption", "similarity")
_PLAIN_ID = re.compile(rf"\w[^{SEPARATOR}]*\.[A-Za-z]\w{{1,4}}")
"""A file's name, which a spreadsheet keeps. It changes "007" or "2024-01-05": such ids are written as JSON lists."""


def draft_queries(
    triplets: Sequence[Mapping[str, Any]], gallery_ids: Collection[str], num_queries: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Draw queries from triplets; references and targets differ as long as there are enough.

    Args:
        triplets (`Sequence[Mapping]`): *Input columns*: `reference_id`, `target_id`, `query_text`; captions and
            similarity are copied, if they are there.
        gallery_ids (`Collection[str]`): Triplets of other images are left out.
        num_queries (`int`): At most so many are drawn.
        seed (`int`): Random seed of the draw.

    Returns:
        `list[dict]`: Rows of a table, in the triplets' order.

    Raises:
        ValueError: If there is no triplet of the gallery's images, or a triplet lacks a column.
    """
    known = set(gallery_ids)
    missing = [name for name in _NEEDED if any(not row.get(name) for row in triplets)]
    if missing:
        raise ValueError(f"Some triplets have no {' and no '.join(missing)}. Give SynCir's triplets.")
    rows = [row for row in triplets if row["reference_id"] in known and row["target_id"] in known]
    if not rows:
        raise ValueError(f"None of the {len(triplets)} triplets is about the gallery's {len(known)} images.")
    seen: set[tuple[str, str]] = set()
    new: list[int] = []
    again: list[int] = []
    for number in np.random.default_rng(seed).permutation(len(rows)).tolist():
        sides = {("reference", rows[number]["reference_id"]), ("target", rows[number]["target_id"])}
        is_new = seen.isdisjoint(sides)
        (new if is_new else again).append(number)
        seen |= sides if is_new else set()
    chosen = sorted([*new, *again][:num_queries])
    return [
        {
            "query_id": f"q{place}",
            "reference_id": [rows[number]["reference_id"]],
            "query_text": rows[number]["query_text"],
            "target_ids": [rows[number]["target_id"]],
            **{name: rows[number][name] for name in _COPIED if name in rows[number]},
        }
        for place, number in enumerate(chosen, start=1)
    ]


def write_table(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Write rows as CSV, so that a spreadsheet shows every cell as it is, and `read_table` reads it again."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(rows[0])
    writer.writerows([_cell(value) for value in row.values()] for row in rows)
    write_text(path, "\ufeff" + text.getvalue())  # without the mark, spreadsheets take UTF-8 for another encoding


def _cell(value: Any) -> str:
    if isinstance(value, list):
        is_plain = all(_PLAIN_ID.fullmatch(id_) and id_ == id_.strip() for id_ in value)
        return f" {SEPARATOR} ".join(value) if is_plain else json.dumps(value, ensure_ascii=False)
    text = f"{value:.4f}" if isinstance(value, float) else str("" if value is None else value)
    return f" {text}" if text.startswith(("=", "+", "-", "@")) and isinstance(value, str) else text  # else a formula
