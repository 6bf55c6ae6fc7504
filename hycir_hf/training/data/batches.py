"""Batches of the training's streams: what a step sees is a function of seed and step, however many processes share it.

A global batch is drawn for each step, and each process takes its own share of the rows. Sources with access by row need
no state: `RowOrder` gives any step's rows. Streams that can only be read in order carry their place along.
"""

import logging
import pickle
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ...images.feature_cache import FeatureCache
from ...images.streams import ImageSource, ImageStream, loader_of, returning
from ...images_hycir import load_image
from .triplets import Triplets

logger = logging.getLogger(__name__)

T = TypeVar("T")

VIEW, PHRASE, CONCEPT = range(3)
"""What the columns of a batch's `draws` choose; each is independent of the others."""


@dataclass
class ImageBatch:
    """Images of a batch: their features where a cache has them, or else the encoder's inputs.

    Args:
        ids (`list[str]` of length B): Their ids.
        features (`torch.FloatTensor` of shape `(B, D)`, *optional*): Not normalised.
        inputs (`dict[str, Tensor]`, *optional*): As the processor makes them.
    """

    ids: list[str]
    features: Tensor | None = None
    inputs: dict[str, Tensor] | None = None


@dataclass
class UnlabeledBatch:
    """Unlabeled images; `draws` `(B, 3)` in [0, 1) choose each image's view, phrase and concept (`VIEW`, ...)."""

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
    """Texts without images; `noise` `(B, D)` is what LinCIR adds to their features."""

    texts: list[str]
    noise: Tensor
    num_broken: int = 0


@dataclass
class Batch:
    """One process's share of a step's global batch, and where the ordered streams stand after it."""

    step: int
    unlabeled: UnlabeledBatch | None = None
    triplets: TripletBatch | None = None
    texts: TextBatch | None = None
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def num_broken(self) -> int:
        """This process's pictures that could not be read."""
        return sum(part.num_broken for part in (self.unlabeled, self.triplets, self.texts) if part is not None)


@dataclass(frozen=True)
class Share:
    """Which part of each global batch a process takes.

    Args:
        index (`int`): The process's number, from 0.
        count (`int`): Number of processes; it divides the global batches.
    """

    index: int = 0
    count: int = 1

    def of(self, values: Any) -> Any:
        """This process's rows of a global batch."""
        size = len(values) // self.count
        return values[self.index * size : (self.index + 1) * size]


class RowOrder:
    """The rows of each step's global batch: every row once an epoch, in an order of seed and epoch alone.

    Args:
        num_rows (`int`): N, rows of the source. What is left over at an epoch's end sits it out, so that no row comes
            twice in a batch.
        batch_size (`int`): B, at most N.
        seed (`list[int]`): Of the order.
        name (`str`): What the rows are, for the message.

    Raises:
        ValueError: If there is not one whole batch.
    """

    def __init__(self, num_rows: int, batch_size: int, seed: list[int], name: str = "rows") -> None:
        if num_rows < batch_size:
            raise ValueError(
                f"Expected at least {batch_size} {name}, one global batch, but found {num_rows}. Give more data, or a "
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


class RowStream(Protocol):
    """A stream with access by row."""

    def batch(self, step: int) -> Any:
        """This process's share of a step's global batch."""


class UnlabeledRows:
    """Unlabeled images by row, from a feature cache or from pixels.

    Args:
        images (`FeatureCache` or `ImageSource`): Where they come from.
        processor (`HyCIRProcessor`): Makes the encoder's inputs from pixels.
        batch_size (`int`): Of the global batch.
        seed (`int`): Of order and views.
        share (`Share`): This process's.
    """

    def __init__(
        self, images: FeatureCache | ImageSource, processor: Any, batch_size: int, seed: int, share: Share
    ) -> None:
        self.images, self.processor, self.share, self.seed = images, processor, share, seed
        self.order = RowOrder(len(images.ids), batch_size, [seed, 0], "unlabeled images")

    def batch(self, step: int) -> UnlabeledBatch:
        """See `RowStream.batch`."""
        rows, draws = self.order.rows(step), _draws(self.seed, step, self.order.batch_size)
        if isinstance(self.images, FeatureCache):
            views: np.ndarray = (draws[:, VIEW] * self.images.num_views).astype(np.int64)
            own = self.share.of(rows)
            features = self.images.read(own, self.share.of(views))
            images = ImageBatch([self.images.ids[row] for row in own], features=features)
            return UnlabeledBatch(images, self.share.of(draws))
        samples = [(self.images.ids[row], loader_of(self.images, row)) for row in rows]
        images, num_broken = _prepare(self.processor, samples, self.share)
        return UnlabeledBatch(images, self.share.of(draws), num_broken)


class UnlabeledStream:
    """Unlabeled images in a stream's order; what is left over at an epoch's end goes into the next batch.

    Every process reads the whole stream, and decodes its own share only.

    Args:
        images (`ImageStream`): Where they come from.
        processor (`HyCIRProcessor`): Makes the encoder's inputs.
        batch_size (`int`): Of the global batch.
        seed (`int`): Of the draws.
        share (`Share`): This process's.
    """

    def __init__(self, images: ImageStream, processor: Any, batch_size: int, seed: int, share: Share) -> None:
        self.images, self.processor, self.share = images, processor, share
        self.batch_size, self.seed = batch_size, seed

    def batches(self, step: int, state: dict[str, Any] | None) -> Iterator[tuple[UnlabeledBatch, dict[str, Any]]]:
        """This process's shares from a step on, each with the state after it.

        Args:
            step (`int`): The first batch's step.
            state (`dict`, *optional*): The state after the step before.
        """
        samples: list[tuple[str, Callable[[], Any]]] = []
        for id_, picture, after in self.images.samples(state):
            samples.append((id_, returning(picture)))
            if len(samples) == self.batch_size:
                images, num_broken = _prepare(self.processor, samples, self.share)
                draws = self.share.of(_draws(self.seed, step, self.batch_size))
                yield UnlabeledBatch(images, draws, num_broken), after
                samples, step = [], step + 1


class TripletRows:
    """Triplets by row, from a feature cache or from pixels.

    Args:
        triplets (`Triplets`): The triplets.
        cache (`FeatureCache`, *optional*): Features of their images; triplets whose images it could not read are left
            out.
        processor (`HyCIRProcessor`): Makes the encoder's inputs from pixels.
        batch_size (`int`): Of the global batch.
        seed (`int`): Of the order.
        share (`Share`): This process's.

    Raises:
        ValueError: If a triplet points to an unknown image.
    """

    def __init__(
        self,
        triplets: Triplets,
        cache: FeatureCache | None,
        processor: Any,
        batch_size: int,
        seed: int,
        share: Share,
    ) -> None:
        self.triplets = triplets if cache is None else triplets.without(cache.skipped_ids())
        self.cache, self.processor, self.share = cache, processor, share
        references, targets = self.triplets.rows(None if cache is None else cache.ids)
        self.reference_rows, self.target_rows = np.array(references, np.int64), np.array(targets, np.int64)
        self.order = RowOrder(len(references), batch_size, [seed, 1], f"triplets of {triplets.name}")

    def batch(self, step: int) -> TripletBatch:
        """See `RowStream.batch`."""
        rows = self.order.rows(step)
        if self.cache is None:
            return self._from_pixels(rows)
        own = self.share.of(rows)
        references, targets = self._ids(own)
        return TripletBatch(
            ImageBatch(references, features=self.cache.read(self.reference_rows[own])),
            ImageBatch(targets, features=self.cache.read(self.target_rows[own])),
            [self.triplets.query_texts[row] for row in own],
        )

    def _ids(self, rows: Sequence[int]) -> tuple[list[str], list[str]]:
        triplets = self.triplets
        return [triplets.reference_ids[row] for row in rows], [triplets.target_ids[row] for row in rows]

    def _from_pixels(self, rows: np.ndarray) -> TripletBatch:
        images = self.triplets.images

        def load(position: int) -> tuple[int, Any, Any]:
            row = rows[position]
            pair = (images.load(self.reference_rows[row]), images.load(self.target_rows[row]))
            return row, *(self.processor(images=[load_image(one)], return_tensors="pt") for one in pair)

        found, num_broken = _load_replacing(load, self.share.of(range(len(rows))), len(rows))
        references, targets = self._ids([row for row, _, _ in found])
        return TripletBatch(
            ImageBatch(references, inputs=_joined([reference for _, reference, _ in found])),
            ImageBatch(targets, inputs=_joined([target for _, _, target in found])),
            [self.triplets.query_texts[row] for row, _, _ in found],
            num_broken,
        )


class TextRows:
    """Texts without images by row, with the noise that LinCIR adds to their features.

    Args:
        texts (`list[str]`): The texts.
        feature_size (`int`): D, the noise's width.
        batch_size (`int`): Of the global batch.
        seed (`int`): Of order and noise.
        share (`Share`): This process's.
    """

    def __init__(self, texts: list[str], feature_size: int, batch_size: int, seed: int, share: Share) -> None:
        self.texts, self.feature_size, self.share, self.seed = texts, feature_size, share, seed
        self.order = RowOrder(len(texts), batch_size, [seed, 2], "texts")

    def batch(self, step: int) -> TextBatch:
        """See `RowStream.batch`."""
        rng = np.random.default_rng([self.seed, 3, step])
        rows = self.order.rows(step)
        # LinCIR: normal noise of a length that is itself random, uniform in [0, 1).
        noise = rng.random((len(rows), 1)) * rng.standard_normal((len(rows), self.feature_size))  # (B, D)
        own = torch.from_numpy(self.share.of(noise).astype(np.float32))
        return TextBatch([self.texts[row] for row in self.share.of(rows)], own)


class TrainingBatches(IterableDataset):
    """The steps' batches from all streams, in order.

    Args:
        streams (`dict`): "unlabeled", "triplets" or "texts" -> the stream.
        start (`int`): The first step.
        stop (`int`): The step after the last.
        state (`dict`, *optional*): `Batch.state` after the step before `start`, for streams read in order.
    """

    def __init__(
        self,
        streams: dict[str, RowStream | UnlabeledStream],
        start: int,
        stop: int,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.streams, self.start, self.stop, self.state = streams, start, stop, state or {}

    @property
    def has_ordered_stream(self) -> bool:
        """Whether a stream can only be read in order, by one worker."""
        return any(isinstance(stream, UnlabeledStream) for stream in self.streams.values())

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        ordered = {
            name: stream.batches(self.start, self.state.get(name))
            for name, stream in self.streams.items()
            if isinstance(stream, UnlabeledStream)
        }
        for step in range(self.start + first, self.stop, stride):
            batch = Batch(step)
            for name, stream in self.streams.items():
                if isinstance(stream, UnlabeledStream):
                    drawn, batch.state[name] = next(ordered[name])
                else:
                    drawn = stream.batch(step)
                setattr(batch, name, drawn)
            yield batch

    def loader(self, num_workers: int = 0) -> Iterator[Batch]:
        """The batches, read by worker processes; their number changes nothing but speed, also not what is raised."""
        num_workers = min(num_workers, 1) if self.has_ordered_stream else num_workers
        for item in DataLoader(_HandingOver(self), batch_size=None, num_workers=num_workers):
            if isinstance(item, _Failure):
                raise item.error from RuntimeError(f"in a process that reads pictures:\n{item.traceback}")
            yield item


@dataclass
class _Failure:
    """What a worker process raised, in place of the batch."""

    error: Exception
    traceback: str


class _HandingOver(IterableDataset):
    """Batches whose errors go over to the main process as they are: a DataLoader would make a long text of them."""

    def __init__(self, batches: TrainingBatches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch | _Failure]:
        try:
            yield from self.batches
        except Exception as error:
            if get_worker_info() is None:
                raise
            yield _Failure(_picklable(error), traceback.format_exc())


def _picklable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an exception's own pickling may raise anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _draws(seed: int, step: int, batch_size: int) -> np.ndarray:
    """A global batch's random numbers: `(B, 3)` in [0, 1)."""
    rng = np.random.default_rng([seed, 4, step])
    # One after the other: the first two columns stay what they were before there was a third.
    return np.concatenate([rng.random((batch_size, 2)), rng.random((batch_size, 1))], axis=1)


def _prepare(processor: Any, samples: list[tuple[str, Callable[[], Any]]], share: Share) -> tuple[ImageBatch, int]:
    """Decode a process's share of a global batch of (id, how to load it)."""

    def load(position: int) -> tuple[str, Any]:
        id_, load_one = samples[position]
        return id_, processor(images=[load_image(load_one())], return_tensors="pt")

    found, num_broken = _load_replacing(load, share.of(range(len(samples))), len(samples))
    return ImageBatch([id_ for id_, _ in found], inputs=_joined([inputs for _, inputs in found])), num_broken


def _load_replacing(load: Callable[[int], T], own: range, batch_size: int) -> tuple[list[T], int]:
    """Load a process's positions of a global batch; a broken one is replaced by the next that can be read.

    So what a batch holds depends on nothing but its rows, not on how many processes share it.
    """
    loaded: dict[int, T] = {}
    broken: set[int] = set()
    found = []
    for position in own:
        for candidate in ((position + step) % batch_size for step in range(batch_size)):
            if candidate in broken:
                continue
            try:
                if candidate not in loaded:
                    loaded[candidate] = load(candidate)
            except Exception as error:  # a decoder may raise anything on a damaged file
                logger.warning("Skipped a broken picture: %s", " ".join(str(error).split()))
                broken.add(candidate)
                continue
            found.append(loaded[candidate])
            break
        else:
            raise ValueError(
                f"Expected readable pictures, but none of a global batch of {batch_size} can be read. Check where they "
                "lie; the warnings above name them."
            )
    return found, len(broken.intersection(own))


def _joined(inputs: list[Any]) -> dict[str, Tensor]:
    return {name: torch.cat([one[name] for one in inputs]) for name in inputs[0]}
