"""Weighted and negative terms: a query vector is a weighted sum of unit vectors.

    q = w_1 v_1 + w_2 v_2 + ... - u_1 t_1 - ...,  scaled to unit norm

`v` are the features of images and texts, `t` those of the texts that are searched *without*. Where no image or text has
a weight and there is at most one text, the images and the text make one vector: the composed feature of the mapper.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..settings import ParameterError

WITHOUT_WEIGHT = 0.5
"""Weight of a text that is searched without, if none is given."""

_WEIGHTED = re.compile(r"(?s)(.+):(\d*\.\d+|\d+)")
_MIN_NORM = 1e-4  # of the sum: less of it is rounding

Term = tuple[Any, float]


class Encoder(Protocol):
    """What makes the vectors; a `ComposedEncoder` does."""

    def encode_images(self, images: Sequence[Any]) -> np.ndarray:
        """Encode N images: `(N, D)`, unit L2 norm."""

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Encode N texts: `(N, D)`, unit L2 norm."""

    def encode_queries(self, images: Sequence[Any], texts: Sequence[str]) -> np.ndarray:
        """Encode N composed queries: `(N, D)`, unit L2 norm."""


@dataclass(frozen=True)
class Query:
    """What one search asks for: terms and their weights.

    Args:
        images (`list` of `(image, weight)`): Reference images.
        texts (`list` of `(str, weight)`): Texts that are not blank.
        without (`list` of `(str, weight)`): Texts that results should not show.
        composes (`bool`): Whether the mapper is used where it can be.

    Raises:
        ValueError: If there is neither image nor text, a text is no string, or a weight is no number above 0.
    """

    images: Sequence[Term]
    texts: Sequence[Term] = ()
    without: Sequence[Term] = ()
    composes: bool = True

    def __post_init__(self) -> None:
        if not self.images and not self.texts:
            raise ParameterError("A search needs an image, a text, or both, but found neither.", "image", "text")
        for name in ("images", "texts", "without"):
            for value, weight in getattr(self, name):
                if not (math.isfinite(weight) and weight > 0):
                    raise ValueError(f"A weight must be a number above 0, but one of {name} is {weight}.")
                if name != "images" and not (isinstance(value, str) and value.strip()):
                    raise ValueError(f"Each of {name} must be a text that is not blank, not {value!r}.")

    @property
    def is_composed(self) -> bool:
        """Whether the mapper composes images and text into one vector."""
        has_weights = any(weight != 1 for _, weight in (*self.images, *self.texts))
        return self.composes and bool(self.images) and len(self.texts) <= 1 and not has_weights

    @property
    def is_one_vector(self) -> bool:
        """Whether there is nothing to add up."""
        weights = [weight for _, weight in (*self.images, *self.texts)]
        return not self.without and (self.is_composed or weights == [1])


def read_terms(terms: Any, weight: float = 1.0) -> list[Term]:
    """Read one term, a `(term, weight)` pair, or a list of both. Blank texts and None are left out.

    Args:
        terms: As a user gives them.
        weight (`float`): Of a term that has none.
    """
    several = terms if isinstance(terms, list | tuple) and not _is_pair(terms) else [terms]
    pairs = [one if _is_pair(one) else (one, weight) for one in several]
    return [pair for pair in pairs if pair[0] is not None and not (isinstance(pair[0], str) and not pair[0].strip())]


def parse_term(text: str, weight: float = 1.0, is_known: Callable[[str], bool] | None = None) -> Term:
    """Read "red:0.6" from a command line.

    A text's weight needs a decimal point, so that "at 10:30" and "16:9" stay whole. A text that ends like a weight
    stays whole with a further ":1.0".

    Args:
        text (`str`): A term, with or without a weight.
        weight (`float`): Of a term that has none.
        is_known (function, *optional*): Whether a text is the name of an image. Such a name stays whole, and its weight
            needs no decimal point.
    """
    found = _WEIGHTED.fullmatch(text)
    if found is None or (("." not in found[2]) if is_known is None else (is_known(text) or not is_known(found[1]))):
        return text, weight
    return found[1], float(found[2])


def describe_terms(texts: Sequence[Term], without: Sequence[Term] = ()) -> str:
    """Name terms for a reader, with the weights that are not 1."""
    parts = [("", *term) for term in texts] + [("without ", *term) for term in without]
    return ", ".join(f"{sign}{text}" + (f" ({weight:g})" if weight != 1 else "") for sign, text, weight in parts)


def encode_terms(encoder: Encoder, queries: Sequence[Query]) -> np.ndarray:
    """Encode queries in three batches at most: composed ones, images and texts.

    Args:
        encoder (`ComposedEncoder`): Makes the vectors.
        queries (`Sequence[Query]` of length Q): The queries.

    Returns:
        `np.ndarray` of shape `(Q, D)`: Unit L2 norm. A row is zero where a query's terms cancel out.
    """
    composed: list[tuple[int, float, Any]] = []
    images, texts = list(composed), list(composed)
    for row, query in enumerate(queries):
        if query.is_composed:
            composed.append((row, 1.0, query))
        else:
            images += [(row, weight, image) for image, weight in query.images]
            texts += [(row, weight, text) for text, weight in query.texts]
        texts += [(row, -weight, text) for text, weight in query.without]
    batches = (
        (composed, lambda found: encoder.encode_queries(*_images_and_texts(found))),
        (images, encoder.encode_images),
        (texts, encoder.encode_texts),
    )
    sums = [_weighted_sum(terms, encode, len(queries)) for terms, encode in batches if terms]
    return _unit(np.sum(sums, axis=0), queries)


def _weighted_sum(terms: list[tuple[int, float, Any]], encode: Callable[[Any], np.ndarray], count: int) -> np.ndarray:
    """Encode terms and add each to its query's row: `(Q, D)`."""
    features = encode([value for _, _, value in terms])  # (T, D)
    total = np.zeros((count, features.shape[1]), dtype=np.float32)
    weights = np.array([weight for _, weight, _ in terms], dtype=np.float32)
    np.add.at(total, [row for row, _, _ in terms], weights[:, None] * features)
    return total


def _unit(sums: np.ndarray, queries: Sequence[Query]) -> np.ndarray:
    """Scale sums to unit norm; a query of one vector has it already."""
    norms = np.linalg.norm(sums, axis=1)
    for row, query in enumerate(queries):
        if query.is_one_vector:
            norms[row] = 1
    return np.where(norms[:, None] < _MIN_NORM, 0, sums / np.maximum(norms, _MIN_NORM)[:, None])


def _images_and_texts(queries: Sequence[Query]) -> tuple[list[list[Any]], list[str]]:
    images = [[image for image, _ in query.images] for query in queries]
    return images, [query.texts[0][0] if query.texts else "" for query in queries]


def _is_pair(term: Any) -> bool:
    return isinstance(term, tuple) and len(term) == 2 and isinstance(term[1], int | float)
