"""From settings to the streams of a training: images, triplets and texts, with their feature caches."""

import logging
import re
from collections.abc import Callable
from typing import Any

from ..images import (
    FeatureCache,
    ImageStream,
    build_feature_cache,
    check_pictures,
    open_images,
    preprocessing_fingerprint,
)
from .arguments import HybridTrainingArguments
from .data import Share, TextRows, TripletRows, UnlabeledRows, UnlabeledStream, open_triplets, read_texts

logger = logging.getLogger(__name__)


def open_streams(
    names: list[str],
    arguments: HybridTrainingArguments,
    model: Any,
    processor: Any,
    share: Share,
    wait_for_everyone: Callable[[], None],
) -> dict[str, Any]:
    """Open the streams that an objective reads.

    Args:
        names (`list[str]`): Of "unlabeled", "triplets", "texts".
        arguments (`HybridTrainingArguments`): Where they come from, and their global batch sizes.
        model (`HyCIRModel`): Makes a feature cache that is not there yet.
        processor (`HyCIRProcessor`): The model's.
        share (`Share`): This process's.
        wait_for_everyone (function): Returns when all processes have come to it.

    Raises:
        ValueError: If a source cannot be opened, a global batch cannot be shared evenly, or a feature cache was made by
            another encoder, another preprocessing or from other pictures.
    """
    opener = _Opener(arguments, model, processor, share, wait_for_everyone)
    openers = {"unlabeled": opener.unlabeled, "triplets": opener.triplets, "texts": opener.texts}
    return {name: openers[name]() for name in names}


class _Opener:
    def __init__(
        self,
        arguments: HybridTrainingArguments,
        model: Any,
        processor: Any,
        share: Share,
        wait_for_everyone: Callable[[], None],
    ) -> None:
        self.arguments, self.model, self.processor, self.share = arguments, model, processor, share
        self.wait_for_everyone = wait_for_everyone

    def unlabeled(self) -> UnlabeledRows | UnlabeledStream:
        """Unlabeled images, from a cache or from pixels."""
        arguments, size = self.arguments, self._batch_size("unlabeled_batch_size")
        directory, path = arguments.unlabeled_features, arguments.unlabeled
        if directory:
            cache = self._features(directory, self._images if path else None, arguments.num_views, has_same_ids=True)
            if arguments.num_views not in (1, cache.num_views):
                raise ValueError(
                    f"Expected {arguments.num_views} views of each image, as num_views says, but {directory} has "
                    f"{cache.num_views}. Make another cache, or set num_views to that."
                )
            return UnlabeledRows(cache, self.processor, size, arguments.seed, self.share)
        images = self._images()
        stream = UnlabeledStream if isinstance(images, ImageStream) else UnlabeledRows
        return stream(images, self.processor, size, arguments.seed, self.share)

    def triplets(self) -> TripletRows:
        """Triplets, with their images from a cache or from pixels."""
        arguments, size = self.arguments, self._batch_size("triplet_batch_size")
        path = str(arguments.triplets)
        triplets = open_triplets(path, arguments.triplet_kind, arguments.triplet_images, arguments.triplet_split)
        triplets.rows()  # an unknown image is found before anything is encoded
        cache = None
        if arguments.triplet_features:
            cache = self._features(arguments.triplet_features, lambda: triplets.images, num_views=1, has_same_ids=False)
        return TripletRows(triplets, cache, self.processor, size, arguments.seed, self.share)

    def texts(self) -> TextRows:
        """Texts without images."""
        arguments, size = self.arguments, self._batch_size("text_batch_size")
        texts = read_texts(str(arguments.texts), arguments.text_column)
        return TextRows(texts, self.model.config.feature_size, size, arguments.seed, self.share)

    def _batch_size(self, name: str) -> int:
        size, count = getattr(self.arguments, name), self.share.count
        if size % count:
            raise ValueError(
                f"Expected a {name} that {count} processes can share evenly, but it is {size}. Choose a multiple of "
                f"{count}."
            )
        return size

    def _images(self) -> Any:
        arguments, path = self.arguments, str(self.arguments.unlabeled)
        columns = (arguments.unlabeled_split, arguments.unlabeled_image_column, arguments.unlabeled_id_column)
        try:
            if arguments.unlabeled_streaming:
                return ImageStream(path, *columns, arguments.stream_buffer_size, arguments.seed)
            return open_images(path, *columns, arguments.unlabeled_tsv_folder)
        except ValueError as error:  # which speaks of another command's flags
            flags = re.sub(r"--(split|image-column|id-column)", r"--unlabeled-\1", str(error))
            raise ValueError(flags) from error

    def _features(
        self, directory: str, open_source: Callable[[], Any] | None, num_views: int, has_same_ids: bool
    ) -> FeatureCache:
        """Open a feature cache; where it is not there yet, all processes make it together first."""
        fingerprint, cache = self.model.encoder_fingerprint(), None
        try:
            cache = FeatureCache.open(directory, fingerprint)
        except FileNotFoundError:
            if open_source is None:
                raise
        # All have looked before one begins: else a late one would find a part, or wait at another barrier.
        self.wait_for_everyone()
        if cache is None and open_source is not None:
            self._make_features(directory, open_source(), num_views)
        self.wait_for_everyone()
        was_there = cache is not None
        cache = cache if cache is not None else FeatureCache.open(directory, fingerprint)
        cache.check_preprocessing(preprocessing_fingerprint(self.processor, cache.num_views, cache.manifest["seed"]))
        if was_there and open_source is not None:
            self._check_pictures(cache, directory, open_source, has_same_ids)
        return cache

    def _check_pictures(
        self, cache: FeatureCache, directory: str, open_source: Callable[[], Any], has_same_ids: bool
    ) -> None:
        """Check a cache against its pictures, where they are still there: it can be used without them."""
        try:
            source = open_source()
        except (ValueError, OSError) as error:
            logger.warning("The pictures of %s cannot be compared with it: %s", directory, error)
            return
        check_pictures(cache, directory, self.model.eval(), self.processor, source, has_same_ids)

    def _make_features(self, directory: str, source: Any, num_views: int) -> None:
        """Make this process's share of a feature cache; the last process puts it together."""
        arguments = self.arguments
        build_feature_cache(
            self.model.eval(),
            self.processor,
            source,
            directory,
            batch_size=arguments.encode_batch_size,
            dtype=arguments.features_dtype,
            num_views=num_views,
            seed=arguments.seed,
            num_shards=self.share.count,
            shard_index=self.share.index,
            progress=arguments.progress and self.share.index == 0,
        )
