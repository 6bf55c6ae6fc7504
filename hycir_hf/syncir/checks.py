"""Two further checks that the paper's Discussion asks for: the triplets' pictures have a say.

Each gives scores in [-1, 1] for every triplet; thresholds decide. T triplets, D joint width.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np


class Check(Protocol):
    """Scores triplets by their pictures.

    `thresholds` names the score columns, each with the lowest value that is kept; `key` is what the scores depend on.
    """

    thresholds: dict[str, float]
    key: str

    def encode_images(self, images: list[Any]) -> np.ndarray:
        """PIL pictures -> features `(B, D)`, kept and given back to `score`."""

    def score(
        self, reference_features: np.ndarray, target_features: np.ndarray, triplets: Mapping[str, Sequence[str]]
    ) -> np.ndarray:
        """Scores `(T, S)`, in the order of `thresholds`; the features are `(T, D)` each."""


class _ModelCheck:
    """A check by a HyCIR model, whose encoder gives the features."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model.eval(), processor
        self.key = f"{type(self).__name__} {model.encoder_fingerprint()}"

    def encode_images(self, images: list[Any]) -> np.ndarray:
        """Features `(B, D)`, not normalised: the mapper takes them so."""
        import torch

        with torch.inference_mode():
            inputs = self.processor(images=images, return_tensors="pt").to(self.model.device)
            return self.model.get_image_features(**inputs, normalize=False).float().cpu().numpy()

    def _texts(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        with torch.inference_mode():
            inputs = self.processor(text=list(texts), compose=False, return_tensors="pt").to(self.model.device)
            return self.model.get_text_features(**inputs).float().cpu().numpy()  # (T, D)


class ComposedCheck(_ModelCheck):
    """A trained CIR model: how near the composed query comes to the target picture.

    Args:
        model (`HyCIRModel`): With a trained mapper.
        processor (`HyCIRProcessor`): The model's.
        threshold (`float`): Lowest similarity that is kept.
    """

    def __init__(self, model: Any, processor: Any, threshold: float) -> None:
        super().__init__(model, processor)
        self.thresholds = {"composed_similarity": threshold}
        mapper = b"".join(p.detach().float().cpu().numpy().tobytes() for p in model.mapper.parameters())
        self.key += f" {_digest(mapper)} {processor.prompt}"

    def score(
        self, reference_features: np.ndarray, target_features: np.ndarray, triplets: Mapping[str, Sequence[str]]
    ) -> np.ndarray:
        """cos(composed(reference, query text), target): `(T, 1)`."""
        import torch

        with torch.inference_mode():
            inputs = self.processor(text=list(triplets["query_text"]), return_tensors="pt").to(self.model.device)
            features = torch.from_numpy(reference_features).to(self.model.device)
            composed = self.model.get_composed_features(**inputs, image_features=features).float().cpu().numpy()
        return (composed * _unit(target_features)).sum(1, keepdims=True)


class PictureCheck(_ModelCheck):
    """An image-text model: do the captions fit their pictures, and does the query text lead from one to the other?

    Args:
        model (`HyCIRModel`): Any encoder; the mapper is not used.
        processor (`HyCIRProcessor`): The model's.
        caption_threshold (`float`): Lowest similarity of the worse caption with its own picture.
        query_threshold (`float`): Lowest gain of the query text's similarity from the reference to the target picture.
    """

    def __init__(self, model: Any, processor: Any, caption_threshold: float, query_threshold: float) -> None:
        super().__init__(model, processor)
        self.thresholds = {"caption_similarity": caption_threshold, "query_gain": query_threshold}

    def score(
        self, reference_features: np.ndarray, target_features: np.ndarray, triplets: Mapping[str, Sequence[str]]
    ) -> np.ndarray:
        """The lower of the two captions' similarities, and the query text's gain: `(T, 2)`."""
        reference, target = _unit(reference_features), _unit(target_features)
        captions = np.minimum(
            (self._texts(triplets["reference_caption"]) * reference).sum(1),
            (self._texts(triplets["target_caption"]) * target).sum(1),
        )
        gain = (self._texts(triplets["query_text"]) * (target - reference)).sum(1)
        return np.stack([captions, gain], axis=1)


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
