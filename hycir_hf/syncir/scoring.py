"""Scores of all triplets in blocks, so that a run goes on where it was stopped. T triplets, D width, S scores."""

import hashlib
from pathlib import Path

import numpy as np

from .blocks import BlockStore, map_rows
from .checks import Check
from .filter import EmbedSentences, cosine

TEXTS = ("reference_caption", "query_text", "target_caption")
_TEXT_BLOCK, _CHECK_BLOCK = 4096, 256  # rows


class Scoring:
    """The triplets to score.

    Args:
        work (`Path`): Where blocks are kept.
        triplets (`dict[str, list[str]]`): The columns of `TEXTS`.
        progress (`bool`): Show progress bars.
    """

    def __init__(self, work: Path, triplets: dict[str, list[str]], progress: bool) -> None:
        self.work, self.triplets, self.progress = work, triplets, progress
        self.key = [_digest(triplets[name]) for name in TEXTS]

    def similarity(self, embed_sentences: EmbedSentences, name: str) -> np.ndarray:
        """The language-space similarity, `(T,)`; each caption is embedded once for all.

        Args:
            embed_sentences (`Callable`): Texts -> `(T, D)`.
            name (`str`): Its name, which tells stored results apart.
        """
        references, texts, targets = (self.triplets[column] for column in TEXTS)
        captions = sorted({*references, *targets})
        row_of_caption = {caption: row for row, caption in enumerate(captions)}
        caption_store = BlockStore(self.work / "sentences", [name, _digest(captions)], len(captions), _TEXT_BLOCK)
        embed = lambda rows: embed_sentences(captions[rows.start : rows.stop])  # noqa: E731
        map_rows(caption_store, embed, "Caption embeddings", " captions", progress=self.progress)
        embedded, _ = caption_store.vectors()  # (captions, D)

        def score(rows: range) -> list[float]:
            part = slice(rows.start, rows.stop)
            different = sorted(set(texts[part]))
            row_of_text = {text: row for row, text in enumerate(different)}
            queries = embed_sentences(different)[[row_of_text[text] for text in texts[part]]]  # (T, D)
            reference, target = (embedded[[row_of_caption[c] for c in side[part]]] for side in (references, targets))
            return cosine(reference + queries, target).tolist()

        store = BlockStore(self.work / "similarity", [name, *self.key], len(texts), _TEXT_BLOCK)
        map_rows(store, score, "Similarities", " triplets", progress=self.progress)
        return np.array(store.values(), dtype=np.float32)

    def check(self, check: Check, images: BlockStore, pairs: np.ndarray, source_key: str) -> np.ndarray:
        """A check's scores, `(T, S)`.

        Args:
            check (`Check`): Scores by pictures.
            images (`BlockStore`): The check's features of the source's images.
            pairs (`np.ndarray` of shape `(T, 2)`): Rows of reference and target in the source.
            source_key (`str`): What the images are.
        """
        features, found = images.vectors()  # (M, D)
        place: np.ndarray = np.full(images.num_rows, -1, dtype=np.int64)
        place[found] = np.arange(len(found))
        if (place[pairs] < 0).any():
            row = int(pairs[place[pairs] < 0][0])
            raise ValueError(
                f"Expected features of every triplet's pictures, but image {row} of the source has none "
                f"({images.reasons().get(row)}). Look at it, then run the same command again."
            )

        def score(rows: range) -> np.ndarray:
            part = slice(rows.start, rows.stop)
            triplets = {name: values[part] for name, values in self.triplets.items()}
            return check.score(features[place[pairs[part, 0]]], features[place[pairs[part, 1]]], triplets)

        key = [source_key, check.key, _digest(list(map(str, pairs.tolist()))), *self.key]
        store = BlockStore(self.work / "check_scores", key, len(pairs), _CHECK_BLOCK)
        map_rows(store, score, type(check).__name__, " triplets", progress=self.progress)
        return store.vectors()[0]


def _digest(texts: list[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
