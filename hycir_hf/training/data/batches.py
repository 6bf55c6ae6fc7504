"""Batches of the training's streams. What a step sees depends on seed and step alone, not on the number of processes.

Each step has one global batch, and each process takes its share of the rows. A stream with access by row needs no
state: `RowOrder` gives the rows of any step. A stream that can only be read in order gives its place with each batch.
"""

import itertools
import logging
import pickle
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ...files import passing_error
from ...images import FeatureStore, ImageSource, ImageStream
from ...images_hycir import load_image
from ...processing_hycir import HyCIRProcessor
from ..interrupts import ignore_interrupts
from .triplets import TripletSource

logger = logging.getLogger(__name__)

VIEW, PHRASE, CONCEPT = range(3)
"""What each column of a batch's `draws` chooses. The columns are independent of each other."""


@dataclass
class ImageBatch:
    """Images of a batch: their stored features, or else the encoder's inputs.

    Args:
        ids (`list[str]` of length B): Their ids.
        features (`torch.FloatTensor` of shape `(B, D)`, *optional*): Not normalised.
        inputs (`dict[str, Tensor]`, *optional*): The processor's output.
    """

    ids: list[str]
    features: Tensor | None = None
    inputs: dict[str, Tensor] | None = None


@dataclass
class UnlabeledBatch:
    """Unlabeled images. `draws` `(B, 3)`, in [0, 1), choose each image's view, phrase and concept (`VIEW`, ...)."""

    images: ImageBatch
    draws: np.ndarray
    num_broken: int = 0


@dataclass
class TripletBatch:
    """Triplets: reference images, target images and query texts."""

    references: ImageBatch
    targets: ImageBatch
    query_texts: list[str]
    num_broken: int = 0


@dataclass
class TextBatch:
    """Texts without images. `noise` `(B, D)` is what LinCIR adds to their features."""

    texts: list[str]
    noise: Tensor
    num_broken: int = 0


@dataclass
class Batch:
    """One process's share of a step's global batch, and the places of the ordered streams after it."""

    step: int
    unlabeled: UnlabeledBatch | None = None
    triplets: TripletBatch | None = None
    texts: TextBatch | None = None
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def num_broken(self) -> int:
        """How many of this process's images could not be read."""
        return sum(part.num_broken for part in (self.unlabeled, self.triplets, self.texts) if part is not None)


@dataclass(frozen=True)
class Share:
    """Which part of each global batch a process takes.

    Args:
        index (`int`): The process's number, from 0.
        count (`int`): Number of processes. It divides the global batch sizes.
    """

    index: int = 0
    count: int = 1

    def of(self, values: Any) -> Any:
        """This process's rows of a global batch."""
        size = len(values) // self.count
        return values[self.index * size : (self.index + 1) * size]


class RowOrder:
    """The rows of each step's global batch. Each epoch has its own order, which depends on seed and epoch alone.

    Args:
        num_rows (`int`): N, rows of the source. What does not fill a batch at the end of an epoch is left out of that
            epoch, so that no row occurs twice in a batch.
        batch_size (`int`): B, at most N.
        seed (`list[int]`): Random seed for the order.
        name (`str`): What the rows are, for the message.

    Raises:
        ValueError: If the rows do not fill one batch.
    """

    def __init__(self, num_rows: int, batch_size: int, seed: list[int], name: str = "rows") -> None:
        if num_rows < batch_size:
            raise ValueError(
                f"A global batch needs {batch_size} {name}, but there are {num_rows}. Give more data, or choose a "
                "smaller batch size."
            )
        self.num_rows, self.batch_size, self.seed = num_rows, batch_size, seed
        self._epoch = -1
        self._order: np.ndarray = np.empty(0, dtype=np.int64)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return self.num_rows // self.batch_size

    def rows(self, step: int) -> np.ndarray:
        """Row numbers of a step's global batch: `(B,)`, int64."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([*self.seed, epoch]).permutation(self.num_rows)
        return self._order[place * self.batch_size : (place + 1) * self.batch_size]


class Stream:
    """One of the sources that a step reads, by default with access by row.

    All streams take `batch_size`, the size of the global batch; `seed`, the random seed for order and draws; `share`,
    this process's part of each global batch; and, if they read images, the `processor` that makes the encoder's inputs.
    """

    processor: HyCIRProcessor
    share: Share
    order: RowOrder  # with access by row
    is_ordered = False
    """Whether the stream can only be read in order, by one worker."""

    def batches(self, steps: range, state: Any = None) -> Iterator[tuple[Any, Any]]:
        """Yield this process's share of each step's global batch, and the stream's state after it.

        Args:
            steps (`range`): The steps.
            state (*optional*): The state after the step before. With access by row there is none.
        """
        return ((self.batch(step), None) for step in steps)

    def batch(self, step: int) -> Any:
        """Return this process's share of a step's global batch."""
        raise NotImplementedError

    def _load_replacing(
        self, load: Callable[[int], list[Any]], batch_size: int
    ) -> tuple[list[int], list[dict[str, Tensor]], int]:
        """Load a process's places of a global batch. A broken image is replaced by the next one that can be read.

        A batch therefore depends on its rows alone, and not on how many processes share it.

        Args:
            load (function): A place in the global batch -> its images, as `load_image` takes them.
            batch_size (`int`): Number of all places.

        Returns:
            The places taken; the encoder's inputs of each place's first image, second image, ...; how many were broken.

        Raises:
            OSError: If reading fails for a reason that passes by itself, such as a lost file server.
            ValueError: If no image of the global batch can be read.
        """
        loaded: dict[int, list[Any] | None] = {}

        def is_readable(place: int) -> bool:
            if place not in loaded:
                try:
                    images = [load_image(one) for one in load(place)]
                    loaded[place] = [self.processor(images=[image], return_tensors="pt") for image in images]
                except Exception as error:  # a decoder may raise anything on a damaged file
                    if passing_error(error) is not None:  # replacing the image would change the trained weights
                        raise OSError(f"Reading an image failed: {error}. Run the command again to resume.") from error
                    logger.warning("Skipped a broken image: %s", " ".join(str(error).split()))
                    loaded[place] = None
            return loaded[place] is not None

        own, taken = self.share.of(range(batch_size)), []
        for place in own:
            candidates = ((place + offset) % batch_size for offset in range(batch_size))
            found = next((candidate for candidate in candidates if is_readable(candidate)), None)
            if found is None:
                raise ValueError(f"No image of a global batch of {batch_size} can be read. See the warnings above.")
            taken.append(found)
        columns = zip(*(loaded[place] or [] for place in taken), strict=True)
        inputs = [{name: torch.cat([one[name] for one in column]) for name in column[0]} for column in columns]
        return taken, inputs, sum(loaded[place] is None for place in own)


class UnlabeledRows(Stream):
    """Unlabeled images by row, from stored features or from pixels.

    Args:
        images (`FeatureStore` or `ImageSource`): The images.
        processor, batch_size, seed, share: See `Stream`.
    """

    def __init__(
        self, images: FeatureStore | ImageSource, processor: HyCIRProcessor, batch_size: int, seed: int, share: Share
    ) -> None:
        self.images, self.processor, self.share, self.seed = images, processor, share, seed
        self.order = RowOrder(len(images.ids), batch_size, [seed, 0], "unlabeled images")

    def batch(self, step: int) -> UnlabeledBatch:
        """See `Stream.batch`."""
        source, rows = self.images, self.order.rows(step)
        draws = self.share.of(_draws(self.seed, step, len(rows)))
        if isinstance(source, FeatureStore):
            own = self.share.of(rows)
            views: np.ndarray = (draws[:, VIEW] * source.num_views).astype(np.int64)
            return UnlabeledBatch(ImageBatch([source.ids[row] for row in own], source.read(own, views)), draws)
        own, (inputs,), num_broken = self._load_replacing(lambda place: [source.load(int(rows[place]))], len(rows))
        return UnlabeledBatch(ImageBatch([source.ids[rows[place]] for place in own], inputs=inputs), draws, num_broken)


class UnlabeledStream(Stream):
    """Unlabeled images in a stream's order. What does not fill a batch at the end of an epoch starts the next batch.

    Every process reads the whole stream, but decodes only its own share.

    Args:
        images (`ImageStream`): The images.
        processor, batch_size, seed, share: See `Stream`.
    """

    is_ordered = True

    def __init__(
        self, images: ImageStream, processor: HyCIRProcessor, batch_size: int, seed: int, share: Share
    ) -> None:
        self.images, self.processor, self.share = images, processor, share
        self.batch_size, self.seed = batch_size, seed

    def batches(self, steps: range, state: Any = None) -> Iterator[tuple[UnlabeledBatch, Any]]:
        """See `Stream.batches`."""
        samples = self.images.samples(state)
        for step in steps:
            ids, contents, states = zip(*itertools.islice(samples, self.batch_size), strict=True)
            own, (inputs,), num_broken = self._load_replacing(lambda place: [contents[place]], self.batch_size)  # noqa: B023
            draws, images = self.share.of(_draws(self.seed, step, self.batch_size)), [ids[place] for place in own]
            yield UnlabeledBatch(ImageBatch(images, inputs=inputs), draws, num_broken), states[-1]


class TripletRows(Stream):
    """Triplets by row, of one or more sources. A global batch has each source's share of them, one after the other.

    Args:
        sources (`Sequence[TripletSource]`): All with stored features, or all without.
        processor, seed, share: See `Stream`.
    """

    def __init__(self, sources: Sequence[TripletSource], processor: HyCIRProcessor, seed: int, share: Share) -> None:
        self.sources, self.processor, self.share = sources, processor, share
        self.orders = [
            # The first source's order is that of a training with this source alone.
            RowOrder(len(one.triplets), one.batch_size, [seed, 5, number] if number else [seed, 1],
                     f"triplets of {one.triplets.name}")
            for number, one in enumerate(sources)
        ]  # fmt: skip
        self.order = self.orders[0]

    def batch(self, step: int) -> TripletBatch:
        """See `Stream.batch`."""
        places = [(number, row) for number, order in enumerate(self.orders) for row in order.rows(step)]
        if self.sources[0].features is not None:
            own, num_broken = self.share.of(places), 0
            parts = [{"features": self._read_features(own, column)} for column in (0, 1)]
        else:
            taken, inputs, num_broken = self._load_replacing(
                lambda place: self.sources[places[place][0]].load(places[place][1]), len(places)
            )
            own, parts = [places[place] for place in taken], [{"inputs": one} for one in inputs]
        found = [(self.sources[number].triplets, row) for number, row in own]
        references = ImageBatch([triplets.reference_ids[row] for triplets, row in found], **parts[0])
        targets = ImageBatch([triplets.target_ids[row] for triplets, row in found], **parts[1])
        return TripletBatch(references, targets, [triplets.query_texts[row] for triplets, row in found], num_broken)

    def _read_features(self, places: list[tuple[int, int]], column: int) -> Tensor:
        """The stored features `(B, D)` of the reference (column 0) or target images (1)."""
        parts = []
        for number, group in itertools.groupby(places, key=lambda place: place[0]):
            parts.append(self.sources[number].read_features([row for _, row in group], column))
        return torch.cat(parts)


class TextRows(Stream):
    """Texts without images by row, with the noise that LinCIR adds to their features.

    Args:
        texts (`list[str]`): The texts.
        feature_size (`int`): D, the noise's width.
        batch_size, seed, share: See `Stream`.
    """

    def __init__(self, texts: list[str], feature_size: int, batch_size: int, seed: int, share: Share) -> None:
        self.texts, self.feature_size, self.share, self.seed = texts, feature_size, share, seed
        self.order = RowOrder(len(texts), batch_size, [seed, 2], "texts")

    def batch(self, step: int) -> TextBatch:
        """See `Stream.batch`."""
        rng = np.random.default_rng([self.seed, 3, step])
        rows = self.order.rows(step)
        # LinCIR: normal noise whose length is random too, uniform in [0, 1).
        noise = rng.random((len(rows), 1)) * rng.standard_normal((len(rows), self.feature_size))  # (B, D)
        own = torch.from_numpy(self.share.of(noise).astype(np.float32))
        return TextBatch([self.texts[row] for row in self.share.of(rows)], own)


class TrainingBatches(IterableDataset):
    """The batches of a range of steps, from all streams.

    Args:
        streams (`dict[str, Stream]`): "unlabeled", "triplets" or "texts" -> the stream.
        start (`int`): The first step.
        stop (`int`): The step after the last.
        state (`dict`, *optional*): `Batch.state` after the step before `start`, for ordered streams.
    """

    def __init__(self, streams: dict[str, Stream], start: int, stop: int, state: dict[str, Any] | None = None) -> None:
        self.streams, self.start, self.stop, self.state = streams, start, stop, state or {}

    def loader(self, num_workers: int = 0) -> Iterator[Batch]:
        """Read the batches in worker processes. Their number changes the speed only: not a batch, and not an error."""
        if any(stream.is_ordered for stream in self.streams.values()):
            num_workers = min(num_workers, 1)
        for item in DataLoader(self, batch_size=None, num_workers=num_workers, worker_init_fn=ignore_interrupts):
            if isinstance(item, _Failure):
                raise item.error from RuntimeError(f"in a process that reads images:\n{item.traceback}")
            yield item

    def __iter__(self) -> Iterator["Batch | _Failure"]:
        worker = get_worker_info()
        try:
            yield from self._read(*(worker.id, worker.num_workers) if worker else (0, 1))
        except Exception as error:
            if worker is None:
                raise
            yield _Failure(_picklable(error), traceback.format_exc())

    def _read(self, first: int, stride: int) -> Iterator[Batch]:
        steps = range(self.start + first, self.stop, stride)
        parts = {name: stream.batches(steps, self.state.get(name)) for name, stream in self.streams.items()}
        for step in steps:
            batch = Batch(step)
            for name, shares in parts.items():
                share, state = next(shares)
                setattr(batch, name, share)
                if state is not None:
                    batch.state[name] = state
            yield batch


@dataclass
class _Failure:
    """An error of a worker process, in place of a batch. A DataLoader itself would make one long text of it."""

    error: Exception
    traceback: str


def _picklable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an exception's own pickling may raise anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _draws(seed: int, step: int, batch_size: int) -> np.ndarray:
    """A global batch's random numbers: `(B, 3)` in [0, 1)."""
    rng = np.random.default_rng([seed, 4, step])
    # Two calls: the first two columns stay what they were before there was a third.
    return np.concatenate([rng.random((batch_size, 2)), rng.random((batch_size, 1))], axis=1)
