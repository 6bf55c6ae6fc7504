"""The filter in language space: does reference plus query text lead to the target? And why a triplet is dropped.

Paper: Pseudo Triplet Generation, third step. sem is a sentence embedding; a triplet is kept if
cos(sem(reference caption) + sem(query text), sem(target caption)) >= 0.7.

T triplets, D width of the sentence embedding. Triplets are columns: name -> one value for each triplet.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..settings import ParameterError

EmbedSentences = Callable[[list[str]], np.ndarray]
"""Texts -> `(T, D)`; the vectors need not have unit norm (BERT's mean-pooled ones do not)."""

THRESHOLD = 0.7  # Paper: with BERT it keeps 95.6%. For another embedder choose the threshold by the share it keeps.
EQUAL_CAPTIONS, NO_CAPTION = "equal_captions", "no_caption"
NO_ANSWER, UNUSABLE_ANSWER = "no_answer", "unusable_answer"
_BLOCK = 16_384  # triplets


class Reason(NamedTuple):
    """Why a triplet was dropped: columns `reason` and `detail` of the config "dropped".

    Args:
        kind (`str`): "equal_captions", "no_caption", "no_answer", "unusable_answer", or "low_" and a score's name.
        detail (`str`): More about this triplet, such as "0.5912 < 0.7"; may be empty.
    """

    kind: str
    detail: str = ""

    def __str__(self) -> str:
        """As a reader sees it: "low similarity: 0.5912 < 0.7"."""
        words = self.kind.replace("_", " ", 1)  # the rest of a score's kind is the name of its column
        return f"{words}: {self.detail}" if self.detail else words


@dataclass(frozen=True)
class FilterResult:
    """What a filter kept and what it dropped.

    Args:
        kept (`dict[str, list]`): Columns of the kept triplets, `similarity` among them.
        dropped (`dict[str, list]`): The same columns, `reason` (a `Reason`'s kind) and `detail`.
    """

    kept: dict[str, list[Any]]
    dropped: dict[str, list[Any]]

    def counts(self) -> dict[str, Any]:
        """Count the kept triplets, and the dropped ones by kind; unusable answers also by what is wrong with them."""
        kinds = (
            f"{kind}: {detail}" if kind == UNUSABLE_ANSWER else kind
            for kind, detail in zip(self.dropped["reason"], self.dropped["detail"], strict=True)
        )
        return {"kept": len(next(iter(self.kept.values()))), "dropped": dict(sorted(Counter(kinds).items()))}

    def why_nothing_is_kept(self, thresholds: Mapping[str, float]) -> str | None:
        """Say why no triplet is kept, with the highest value of each score; None if one is kept.

        Args:
            thresholds (`Mapping[str, float]`): Score column -> lowest value that is kept.
        """
        counts = self.counts()
        if counts["kept"]:
            return None
        scores = []
        for name, threshold in thresholds.items():
            values = [score for score in self.dropped[name] if score is not None]
            highest = f"at most {max(values):.4f}" if values else "never computed"
            scores.append(f"{name} is {highest} (threshold {threshold:g})")
        return f"No triplet is kept. Dropped: {counts['dropped']}. {'; '.join(scores)}."


def filter_triplets(
    triplets: Mapping[str, Sequence[Any]], embed_sentences: EmbedSentences, threshold: float = THRESHOLD
) -> FilterResult:
    """Drop triplets whose captions are equal or whose query text does not lead to the target caption.

    *Input columns*: `reference_caption`, `query_text`, `target_caption`, and any others.
    *Output columns*: the same and `similarity` in [-1, 1] (None where the captions are equal); dropped triplets also
    have `reason` and `detail`.

    Args:
        triplets (`Mapping[str, Sequence]`): Columns of equal length.
        embed_sentences (`Callable`): Texts -> `(T, D)`.
        threshold (`float`): Lowest similarity that is kept, in [-1, 1].

    Raises:
        ValueError: If a column is missing, the columns differ in length, or the threshold is out of range.
    """
    columns = _checked(triplets)
    references, targets = columns["reference_caption"], columns["target_caption"]
    differs = np.array([not are_equal(a, b) for a, b in zip(references, targets, strict=True)], dtype=bool)
    similarity: list[float | None] = [None] * len(references)
    rows = np.flatnonzero(differs)
    if len(rows):
        reference, query, target = (
            [columns[name][row] for row in rows] for name in ("reference_caption", "query_text", "target_caption")
        )
        for row, value in zip(rows, language_similarity(reference, query, target, embed_sentences), strict=True):
            similarity[row] = float(value)
    reasons = [None if is_different else Reason(EQUAL_CAPTIONS) for is_different in differs]
    return split_triplets({**columns, "similarity": similarity}, reasons, {"similarity": threshold})


def split_triplets(
    columns: Mapping[str, Sequence[Any]], reasons: Sequence[Reason | None], thresholds: Mapping[str, float]
) -> FilterResult:
    """Split triplets by scores that are already there; nothing is computed again.

    Args:
        columns (`Mapping[str, Sequence]`): The triplets.
        reasons (`Sequence[Reason | None]`): Why a triplet is dropped already; with None the scores decide.
        thresholds (`Mapping[str, float]`): Score column -> lowest value that is kept, in [-1, 1].
    """
    for name, threshold in thresholds.items():
        if not -1 <= threshold <= 1:
            raise ParameterError(f"The threshold of {name} must be in [-1, 1], but it is {threshold}.", "threshold")
    kept: dict[str, list[Any]] = {name: [] for name in columns}
    dropped: dict[str, list[Any]] = {name: [] for name in (*columns, "reason", "detail")}
    for row, given in enumerate(reasons):
        reason = given or _reason_by_scores(columns, row, thresholds)
        part = kept if reason is None else dropped
        for name, values in columns.items():
            part[name].append(values[row])
        if reason is not None:
            dropped["reason"].append(reason.kind)
            dropped["detail"].append(reason.detail)
    return FilterResult(kept, dropped)


def low_score(name: str) -> str:
    """The kind of the reason of a triplet that a score drops."""
    return f"low_{name}"


def _reason_by_scores(columns: Mapping[str, Sequence[Any]], row: int, thresholds: Mapping[str, float]) -> Reason | None:
    for name, threshold in thresholds.items():
        score = columns[name][row]
        if score is None or not score >= threshold:
            return Reason(low_score(name), f"{'none' if score is None else f'{score:.4f}'} < {threshold:g}")
    return None


def language_similarity(
    reference_captions: Sequence[str],
    query_texts: Sequence[str],
    target_captions: Sequence[str],
    embed_sentences: EmbedSentences,
) -> np.ndarray:
    """Compute cos(sem(reference) + sem(query), sem(target)); each distinct text is embedded once.

    Returns:
        `np.ndarray` of shape `(T,)`, float32, in [-1, 1].
    """
    different = sorted({*reference_captions, *query_texts, *target_captions})
    row_of_text = {text: row for row, text in enumerate(different)}
    embedded = np.asarray(embed_sentences(different), dtype=np.float32)  # (texts, D)
    sides = [
        np.array([row_of_text[text] for text in texts], dtype=np.int64)
        for texts in (reference_captions, query_texts, target_captions)
    ]
    similarity: np.ndarray = np.zeros(len(query_texts), dtype=np.float32)
    for start in range(0, len(similarity), _BLOCK):  # keeps memory flat
        reference, query, target = (embedded[side[start : start + _BLOCK]] for side in sides)
        similarity[start : start + _BLOCK] = cosine(reference + query, target)
    return similarity


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of the rows of two arrays `(T, D)`: `(T,)`, 0 where a row is zero."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.clip((a * b).sum(1) / np.where(norms > 0, norms, 1.0), -1.0, 1.0).astype(np.float32)


def are_equal(reference_caption: str, target_caption: str) -> bool:
    """Whether two captions are equal, apart from case and outer spaces."""
    # Paper: does not define equal captions. This is the narrow reading.
    return reference_caption.strip().lower() == target_caption.strip().lower()


def _checked(triplets: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    missing = [name for name in ("reference_caption", "query_text", "target_caption") if name not in triplets]
    if missing:
        raise ValueError(f"The triplets lack the columns {missing} (found: {list(triplets)}). Rename the columns.")
    columns = {name: list(values) for name, values in triplets.items()}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"The triplets' columns must be of equal length, but their lengths are {lengths}.")
    return columns
