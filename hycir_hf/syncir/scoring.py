"""The stage of the scores, block by block: if a run is killed, the next one resumes. T triplets, D width, S scores."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..files import atomic_file
from .checks import Check
from .filter import EmbedSentences, cosine
from .questions import QueryTexts
from .stages import ImageValues, Workplace

TEXTS = ("reference_caption", "query_text", "target_caption")
_TEXT_BLOCK, _CHECK_BLOCK = 4096, 256  # rows


class ScoreStage:
    """Score the triplets in language space, and by further checks.

    *Input*: the columns of `QueryTexts`. *Output*: score name -> one value for each pair, None without a query text.
    """

    def __init__(self, work: Workplace) -> None:
        self.work = work

    @property
    def thresholds(self) -> dict[str, float]:
        """Score name -> lowest value that is kept."""
        thresholds = {"similarity": self.work.config.threshold}
        for check in self.work.models.checks:
            thresholds |= check.thresholds
        return thresholds

    def run(self, texts: QueryTexts, pairs: np.ndarray) -> dict[str, list[float | None]]:
        """Compute all scores.

        Args:
            texts (`QueryTexts`): The query texts of the P pairs.
            pairs (`np.ndarray` of shape `(P, 2)`): Rows of reference and target in the source.
        """
        scores: dict[str, list[float | None]] = {name: [None] * len(pairs) for name in self.thresholds}
        rows = np.array([row for row, reason in enumerate(texts.reasons) if reason is None], dtype=np.int64)
        if not len(rows):
            return scores
        triplets = {name: [texts.columns[name][row] for row in rows] for name in TEXTS}
        scoring = Scoring(self.work.directory, triplets, self.work.progress)
        models, encoder = self.work.models, self.work.config.sentence_encoder
        found = {"similarity": scoring.similarity(models.embed_sentences, encoder)}
        for check in models.checks:
            features, places = self._check_features(check, pairs[rows])
            found |= dict(zip(check.thresholds, scoring.check(check, features, places).T, strict=True))
        for name, values in found.items():
            for row, value in zip(rows, values.tolist(), strict=True):
                scores[name][row] = value
        return scores

    def _check_features(self, check: Check, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A check's features of all images, `(M, D)`, and the pairs as rows of them, `(T, 2)`."""
        values = ImageValues(self.work, "check_features", [check.key], lambda: check.encode_images)
        values.run()
        features, found = values.vectors()
        place: np.ndarray = np.full(len(self.work.source.ids), -1, dtype=np.int64)
        place[found] = np.arange(len(found))
        places = place[pairs]
        if (places < 0).any():
            row = int(pairs[places < 0][0])
            raise ValueError(
                f"{type(check).__name__} needs the image {self.work.source.ids[row]}, but it can no longer be read "
                f"({values.unreadable.get(row)}). Restore it and run the same command again."
            )
        return features, places


class Scoring:
    """The triplets to score.

    Args:
        work (`Path`): Folder for the blocks.
        triplets (`dict[str, list[str]]`): The columns of `TEXTS`; at least one triplet.
        progress (`bool`): Whether to show progress bars.
    """

    def __init__(self, work: Path, triplets: dict[str, list[str]], progress: bool) -> None:
        self.work, self.triplets, self.progress = work, triplets, progress
        self.key = [_digest(triplets[name]) for name in TEXTS]

    def similarity(self, embed_sentences: EmbedSentences, name: str) -> np.ndarray:
        """Compute the language-space similarity, `(T,)`; each distinct caption is embedded once.

        Args:
            embed_sentences (`Callable`): Texts -> `(T, D)`.
            name (`str`): The model's name; stored results belong to it.
        """
        references, texts, targets = (self.triplets[column] for column in TEXTS)
        captions = sorted({*references, *targets})
        row_of_caption = {caption: row for row, caption in enumerate(captions)}
        embedded = self._in_blocks(
            "sentences",
            [name, _digest(captions)],
            len(captions),
            lambda rows: embed_sentences(captions[rows]),
            "Caption embeddings",
        )  # (captions, D)

        def score(rows: slice) -> np.ndarray:
            distinct = sorted(set(texts[rows]))
            row_of_text = {text: row for row, text in enumerate(distinct)}
            queries = embed_sentences(distinct)[[row_of_text[text] for text in texts[rows]]]  # (B, D)
            reference, target = (embedded[[row_of_caption[c] for c in side[rows]]] for side in (references, targets))
            return cosine(reference + queries, target)

        return self._in_blocks("similarity", [name, *self.key], len(texts), score, "Similarities")

    def check(self, check: Check, features: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        """Compute a check's scores, `(T, S)`.

        Args:
            check (`Check`): Scores triplets by their images.
            features (`np.ndarray` of shape `(M, D)`): The check's image features.
            pairs (`np.ndarray` of shape `(T, 2)`): Rows of reference and target in the features.
        """

        def score(rows: slice) -> np.ndarray:
            triplets = {name: values[rows] for name, values in self.triplets.items()}
            return check.score(features[pairs[rows, 0]], features[pairs[rows, 1]], triplets)

        used, rows = np.unique(pairs, return_inverse=True)
        key = [check.key, hashlib.sha256(features[used].tobytes() + rows.tobytes()).hexdigest(), *self.key]
        return self._in_blocks("check_scores", key, len(pairs), score, type(check).__name__, _CHECK_BLOCK)

    def _in_blocks(
        self,
        name: str,
        key: list[Any],
        num_rows: int,
        compute: Callable[[slice], np.ndarray],
        label: str,
        block_size: int | None = None,
    ) -> np.ndarray:
        """Compute the values of N rows, float32, in blocks that are stored; `key` is what they depend on."""
        size = block_size or _TEXT_BLOCK
        folder = self.work / name / _digest([json.dumps([key, num_rows, size])])[:16]
        blocks = {
            folder / f"block-{number:06d}.npy": slice(start, min(start + size, num_rows))
            for number, start in enumerate(range(0, num_rows, size))
        }
        waiting = {path: rows for path, rows in blocks.items() if not path.exists()}
        done = num_rows - sum(rows.stop - rows.start for rows in waiting.values())
        with tqdm(total=num_rows, initial=done, desc=label, unit=" rows", disable=not self.progress) as bar:
            for path, rows in waiting.items():
                values = np.asarray(compute(rows), np.float32)
                with atomic_file(path) as file:
                    np.save(file, values)
                bar.update(len(values))
        return np.concatenate([np.load(path) for path in blocks])


def _digest(texts: list[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
