"""The first stages of a SynCir run: features, pairs, captions. The query texts (questions.py) and scores follow.

Each stage keeps its results in OUTPUT/.work. A stage that was interrupted resumes, and its result does not depend on
where it was interrupted. N images, D feature width, P pairs, T triplets (pairs with a query text).
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from ..files import atomic_file
from ..images import FileSource
from .blocks import BlockStore, map_images
from .config import SynCirConfig
from .models import LoadedModels
from .pairs import find_image_groups, pairs_of_groups
from .provenance import model_key, source_key

logger = logging.getLogger(__name__)

_BATCHES_A_BLOCK = 8


@dataclass
class Workplace:
    """What all stages work with.

    Args:
        source (`FileSource`): The N images.
        directory (`Path`): OUTPUT/.work.
        config (`SynCirConfig`): Settings.
        models (`LoadedModels`): The models.
        progress (`bool`): Whether to show progress bars.
    """

    source: FileSource
    directory: Path
    config: SynCirConfig
    models: LoadedModels
    progress: bool

    @cached_property
    def source_key(self) -> str:
        """What the images are."""
        return source_key(self.source)

    def image_store(self, name: str, *key: Any) -> BlockStore:
        """The stored values of all images under a name; `key` is what they depend on besides the images."""
        block_size = _BATCHES_A_BLOCK * self.config.batch_size
        return BlockStore(self.directory / name, [self.source_key, *key], len(self.source.ids), block_size)

    def fill(
        self,
        store: BlockStore,
        apply: Callable[[list[Image]], Sequence[str] | np.ndarray],
        label: str,
        num_shards: int = 1,
        shard_index: int = 0,
    ) -> None:
        """Compute what is missing in a store of image values."""
        map_images(
            store,
            self.source,
            apply,
            label,
            batch_size=self.config.batch_size,
            num_workers=self.config.num_workers,
            num_shards=num_shards,
            shard_index=shard_index,
            progress=self.progress,
        )


class FeatureStage:
    """Encode each image for the pair extraction.

    *Input*: the images. *Output*: features `(M, D)` of the M readable images, and why the others cannot be read.
    """

    name = "features"

    def __init__(self, work: Workplace) -> None:
        self.work = work
        self.key = [model_key(work.config.image_encoder), work.config.batch_size]

    @cached_property
    def _store(self) -> BlockStore:
        return self.work.image_store("features", *self.key)

    def run(self, num_shards: int = 1, shard_index: int = 0) -> None:
        """Encode this shard's images."""
        if self._store.pending(num_shards, shard_index):
            self.work.fill(self._store, self.work.models.embed_images, "Features", num_shards, shard_index)

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Features `(M, D)` and the rows of their images in the source, `(M,)`."""
        _check_complete(self._store, self.name)
        return self._store.vectors()

    @cached_property
    def unreadable(self) -> dict[int, str]:
        """Row of each image that cannot be read -> why."""
        return self._store.reasons()


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
        features, rows = self.features.read()
        norms = np.linalg.norm(features, axis=1) if len(rows) else np.zeros(0)
        usable = np.isfinite(norms) & (norms > 0)
        if not usable.all():
            logger.warning("%d images have no usable features. They are in no pair.", int((~usable).sum()))
        if not usable.any():
            reason = next(iter(self.features.unreadable.values()), "their features are zero or not finite")
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
    """Caption each image, or read its caption from a column of the dataset.

    *Input*: the images. *Output*: one caption for each image; None where the image cannot be read.
    """

    name = "captions"

    def __init__(self, work: Workplace, features: FeatureStage) -> None:
        self.work, self.features = work, features

    @cached_property
    def _store(self) -> BlockStore:
        config = self.work.config
        return self.work.image_store("captions", model_key(config.captioner), config.batch_size)

    def run(self, num_shards: int = 1, shard_index: int = 0) -> None:
        """Caption this shard's images."""
        if self.work.config.caption_column is not None or not self._store.pending(num_shards, shard_index):
            return
        caption = self.work.models.caption
        self.work.fill(
            self._store,
            lambda images: [storable(text) for text in caption(images)],
            "Captions",
            num_shards,
            shard_index,
        )

    @cached_property
    def captions(self) -> list[str | None]:
        """The captions, in the order of the source."""
        name = self.work.config.caption_column
        if name is None:
            _check_complete(self._store, self.name)
            return self._store.values()
        column = getattr(self.work.source, "column", None)
        if column is None:
            raise ValueError("caption_column needs a dataset, but the images are in a folder. Leave it out.")
        unreadable = self.features.unreadable
        return [None if row in unreadable else storable(str(text or "")) for row, text in enumerate(column(name))]


def storable(text: str) -> str:
    """Replace half surrogates, which no file can hold."""
    return text.encode("utf-8", errors="replace").decode()


def _check_complete(store: BlockStore, stage: str) -> None:
    missing = store.pending()
    if missing:
        raise ValueError(
            f"The stage {stage!r} is not complete: {len(missing)} of {store.num_blocks} blocks are missing. Wait for "
            "the other shards, or run the stage in one process."
        )
