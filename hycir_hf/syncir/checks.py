"""Two further checks of the triplets, by their images. They are off by default.

Each gives scores for every triplet, and thresholds decide. T triplets, D joint width, S scores.
"""

# Paper: its filter reads captions only, and its Discussion asks for a check by the images. These two are ours.

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from PIL.Image import Image

from ..modeling_hycir import HyCIRModel
from ..processing_hycir import HyCIRProcessor


class Check(Protocol):
    """Scores triplets by their images.

    Attributes:
        thresholds (`dict[str, float]`): Score column -> lowest value that is kept, in [-1, 1].
        key (`str`): What the scores depend on.
    """

    thresholds: dict[str, float]
    key: str

    def encode_images(self, images: list[Image]) -> np.ndarray:
        """Turn B images into features `(B, D)`, which are stored and passed to `score`."""

    def score(
        self, reference_features: np.ndarray, target_features: np.ndarray, triplets: Mapping[str, Sequence[str]]
    ) -> np.ndarray:
        """Compute scores `(T, S)` in the order of `thresholds`, from features `(T, D)` and the triplets' texts."""


class _ModelCheck:
    """A check by a HyCIR model, whose encoder gives the features."""

    def __init__(self, model: HyCIRModel, processor: HyCIRProcessor) -> None:
        self.model, self.processor = model.eval(), processor
        self.key = f"{type(self).__name__} {model.encoder_fingerprint()}"

    def encode_images(self, images: list[Image]) -> np.ndarray:
        """Encode images: `(B, D)`, not normalised, as the mapper needs them."""
        with torch.inference_mode():
            inputs = self.processor(images=images, return_tensors="pt").to(self.model.device)
            return self.model.get_image_features(**inputs, normalize=False).float().cpu().numpy()

    def _texts(self, texts: Sequence[str]) -> np.ndarray:
        with torch.inference_mode():
            inputs = self.processor(text=list(texts), compose=False, return_tensors="pt").to(self.model.device)
            return self.model.get_text_features(**inputs).float().cpu().numpy()  # (T, D)


class ComposedCheck(_ModelCheck):
    """How similar is the composed query of a trained HyCIR model to the target image? Score `composed_similarity`.

    Args:
        model (`HyCIRModel`): With a trained mapper.
        processor (`HyCIRProcessor`): The model's processor.
        threshold (`float`): Lowest similarity that is kept, in [-1, 1].
    """

    def __init__(self, model: HyCIRModel, processor: HyCIRProcessor, threshold: float) -> None:
        super().__init__(model, processor)
        self.thresholds = {"composed_similarity": threshold}
        mapper = b"".join(p.detach().float().cpu().numpy().tobytes() for p in model.mapper.parameters())
        self.key += f" {_digest(mapper)} {processor.prompt}"

    def score(
        self, reference_features: np.ndarray, target_features: np.ndarray, triplets: Mapping[str, Sequence[str]]
    ) -> np.ndarray:
        """Compute cos(composed(reference, query text), target): `(T, 1)`."""
        with torch.inference_mode():
            inputs = self.processor(text=list(triplets["query_text"]), return_tensors="pt").to(self.model.device)
            features = torch.from_numpy(reference_features).to(self.model.device)
            composed = self.model.get_composed_features(**inputs, image_features=features).float().cpu().numpy()
        return (composed * _unit(target_features)).sum(1, keepdims=True)


class PictureCheck(_ModelCheck):
    """Do the captions fit their images, and does the query text fit the target image better than the reference image?

    Scores `caption_similarity` and `query_gain`.

    Args:
        model (`HyCIRModel`): Any encoder; the mapper is not used.
        processor (`HyCIRProcessor`): The model's processor.
        caption_threshold (`float`): Lowest similarity of a caption with its own image; the worse of the two counts.
        query_threshold (`float`): Lowest gain: the query text's similarity with the target image, less that with the
            reference image.
    """

    def __init__(
        self, model: HyCIRModel, processor: HyCIRProcessor, caption_threshold: float, query_threshold: float
    ) -> None:
        super().__init__(model, processor)
        self.thresholds = {"caption_similarity": caption_threshold, "query_gain": query_threshold}

    def score(
        self, reference_features: np.ndarray, target_features: np.ndarray, triplets: Mapping[str, Sequence[str]]
    ) -> np.ndarray:
        """Compute the lower of the two captions' similarities, and the query text's gain: `(T, 2)`."""
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
