"""The first stages of a SynCir run: features, pairs, captions. The query texts (questions.py) and scores follow.

Each stage keeps its results in OUTPUT/.work. A stage that was interrupted resumes, and its result does not depend on
where it was interrupted. N images, D feature width, P pairs, T triplets (pairs with a query text).
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from ..files import atomic_file
from ..images import FileSource, ImageStore, encode_images
from ..images.store import key_of
from .captions import GivenCaptions
from .config import SynCirConfig
from .models import LoadedModels
from .pairs import find_image_groups, pairs_of_groups
from .provenance import model_key, source_key

logger = logging.getLogger(__name__)

ImageModel = Callable[[list[Image]], Sequence[str] | np.ndarray]
"""B images in RGB -> `(B, D)`, or B texts."""

MAX_SIDE = 1024  # pixels


@dataclass
class Workplace:
    """What all stages work with.

    Args:
        source (`FileSource`): The N images.
        directory (`Path`): OUTPUT/.work.
        config (`SynCirConfig`): Settings.
        models (`LoadedModels`): The models.
        progress (`bool`): Whether to show progress bars.
        given (`GivenCaptions`, *optional*): Captions that are there already.
    """

    source: FileSource
    directory: Path
    config: SynCirConfig
    models: LoadedModels
    progress: bool
    given: GivenCaptions | None = None

    @cached_property
    def source_key(self) -> str:
        """What the images are."""
        return source_key(self.source)


@dataclass
class _ModelEncoder:
    """A model as an `ImageEncoder`, loaded when it is first needed."""

    settings: Mapping[str, Any]
    load: Callable[[], ImageModel]

    @cached_property
    def model(self) -> ImageModel:
        return self.load()

    def prepare(self, image_id: str, image: Image) -> Image:
        """Shrink a large image: every model here takes fewer pixels."""
        if max(image.size) > MAX_SIDE:
            image.thumbnail((MAX_SIDE, MAX_SIDE), reducing_gap=3.0)
        return image

    def encode(self, prepared: Sequence[Image]) -> np.ndarray | list[str]:
        values = self.model(list(prepared))
        is_text = len(values) > 0 and isinstance(values[0], str)
        return [str(text) for text in values] if is_text else np.asarray(values, np.float32)


class ImageValues:
    """What a model says of each image (a vector or a text), stored under OUTPUT/.work.

    Args:
        work (`Workplace`): The images, and where values are stored.
        name (`str`): Folder and label of the values.
        key (`Sequence`): What the values depend on besides the images; JSON.
        load (`Callable`): Loads the model; called only if a value is missing. The model takes B images in RGB and gives
            `(B, D)` or B texts.
    """

    def __init__(self, work: Workplace, name: str, key: Sequence[Any], load: Callable[[], ImageModel]) -> None:
        self.work, self.name = work, name
        self._encoder = _ModelEncoder({"stage": name, "key": list(key)}, load)
        self._directory = work.directory / name / key_of(self._encoder.settings)

    def run(self, num_shards: int = 1, shard_index: int = 0) -> None:
        """Compute this shard's missing values."""
        encode_images(
            self.work.source,
            self._encoder,
            self._directory,
            batch_size=self.work.config.batch_size,
            num_workers=self.work.config.num_workers or None,
            num_shards=num_shards,
            shard_index=shard_index,
            label=self.name.replace("_", " ").capitalize(),
            progress=self.work.progress,
        )

    @cached_property
    def _store(self) -> ImageStore:
        """The values of all images; ValueError if another shard is not done."""
        store = ImageStore.begin(self._directory, self._encoder.settings)
        source = self.work.source
        if not store.finish(source.ids, [source.stamp(row) for row in range(len(source.ids))]):
            raise ValueError(
                f"The stage {self.name!r} is not complete. Wait for the other shards, or run the stage in one process."
            )
        return store

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {id_: row for row, id_ in enumerate(self.work.source.ids)}

    def vectors(self) -> tuple[np.ndarray, np.ndarray]:
        """Vectors `(M, D)` of the readable images, and their rows in the source, `(M,)`."""
        rows = np.array([self._rows[id_] for id_ in self._store.ids], np.int64)
        return self._store.read(range(len(rows)), views=None), rows

    def texts(self) -> list[str | None]:
        """One text for each image; None where it cannot be read."""
        found = self._store.texts()
        return [found.get(id_) for id_ in self.work.source.ids]

    @cached_property
    def unreadable(self) -> dict[int, str]:
        """Row of each image that cannot be read -> why."""
        return {self._rows[id_]: reason for id_, reason in self._store.skipped}


class FeatureStage:
    """Encode each image for the pair extraction.

    *Input*: the images. *Output*: features `(M, D)` of the M readable images, and why the others cannot be read.
    """

    name = "features"

    def __init__(self, work: Workplace) -> None:
        self.work = work

    @cached_property
    def key(self) -> list[Any]:
        """What the features depend on besides the images."""
        return [model_key(self.work.config.image_encoder), self.work.config.batch_size]

    @cached_property
    def values(self) -> ImageValues:
        """The features."""
        return ImageValues(self.work, self.name, self.key, lambda: self.work.models.embed_images)

    def run(self, num_shards: int = 1, shard_index: int = 0) -> None:
        """Encode this shard's images."""
        self.values.run(num_shards, shard_index)


@dataclass(frozen=True)
class ImagePairs:
    """The pairs to make triplets from.

    Args:
        rows (`np.ndarray` of shape `(P, 2)`): Rows of reference and target in the source.
        group_ids (`np.ndarray` of shape `(P,)`): The group that each pair was taken from.
        num_groups (`int`): Number of groups.
        num_pairs (`int`): Number of distinct pairs before `max_pairs`.
    """

    rows: np.ndarray
    group_ids: np.ndarray
    num_groups: int
    num_pairs: int


class PairStage:
    """Find groups of similar images and take pairs from them.

    *Input*: features. *Output*: `ImagePairs`.
    """

    name = "pairs"

    def __init__(self, work: Workplace, features: FeatureStage) -> None:
        self.work, self.features = work, features

    @cached_property
    def _path(self) -> Path:
        config = self.work.config
        rule = [config.max_similarity, config.min_similarity_gap, config.group_size, config.max_pairs, config.seed]
        key = json.dumps([self.work.source_key, self.features.key, rule])
        return self.work.directory / "pairs" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"

    def run(self, num_shards: int = 1, shard_index: int = 0) -> None:
        """Find the pairs, in one process."""
        if self._path.exists():
            return
        features, rows = self._usable_features()
        config = self.work.config
        groups = find_image_groups(
            features,
            config.max_similarity,
            config.min_similarity_gap,
            config.group_size,
            config.seed,
            progress=self.work.progress,
        )
        pairs, group_ids = pairs_of_groups(groups)
        if not len(pairs):
            raise ValueError(
                f"The {len(rows)} images hold no group of {config.group_size} similar images. Use more images, a "
                "smaller group_size, or a higher max_similarity."
            )
        num_pairs = len(pairs)
        if config.max_pairs is not None:
            chosen = np.sort(np.random.default_rng(config.seed).permutation(len(pairs))[: config.max_pairs])
            pairs, group_ids = pairs[chosen], group_ids[chosen]
        with atomic_file(self._path) as file:
            np.savez(file, rows=rows[pairs], group_ids=group_ids, num_groups=len(groups), num_pairs=num_pairs)

    def _usable_features(self) -> tuple[np.ndarray, np.ndarray]:
        """Features that have a direction, and the rows of their images."""
        features, rows = self.features.values.vectors()
        norms = np.linalg.norm(features, axis=1) if len(rows) else np.zeros(0)
        usable = np.isfinite(norms) & (norms > 0)
        if usable.all() and len(rows):
            return features, rows
        logger.warning("%d images have no usable features. They are in no pair.", int((~usable).sum()))
        if not usable.any():
            reason = next(iter(self.features.values.unreadable.values()), "their features are zero or not finite")
            raise ValueError(f"None of the {len(self.work.source.ids)} images can be used (the first: {reason}).")
        return features[usable], rows[usable]

    @cached_property
    def pairs(self) -> ImagePairs:
        """The pairs; ValueError if the stage has not run."""
        if not self._path.exists():
            raise ValueError("The image pairs are missing. Run the stage 'pairs' first (until='pairs').")
        with np.load(self._path) as stored:
            return ImagePairs(stored["rows"], stored["group_ids"], int(stored["num_groups"]), int(stored["num_pairs"]))


class CaptionStage:
    """Caption each image, unless its caption is given.

    *Input*: the images. *Output*: one caption for each image; None where the image cannot be read.
    """

    name = "captions"

    def __init__(self, work: Workplace, features: FeatureStage) -> None:
        self.work, self.features = work, features

    @cached_property
    def _values(self) -> ImageValues:
        config = self.work.config
        return ImageValues(self.work, self.name, [model_key(config.captioner), config.batch_size], self._load)

    def _load(self) -> ImageModel:
        caption = self.work.models.caption
        return lambda images: [storable(text) for text in caption(images)]

    def run(self, num_shards: int = 1, shard_index: int = 0) -> None:
        """Caption this shard's images, unless their captions are given."""
        if self.work.given is None:
            self._values.run(num_shards, shard_index)

    @cached_property
    def captions(self) -> list[str | None]:
        """The captions, in the order of the source."""
        given = self.work.given
        if given is None:
            return self._values.texts()
        unreadable = self.features.values.unreadable
        return [None if row in unreadable else text for row, text in enumerate(given.texts)]


def storable(text: str) -> str:
    """Replace half surrogates, which no file can hold."""
    return text.encode("utf-8", errors="replace").decode()
