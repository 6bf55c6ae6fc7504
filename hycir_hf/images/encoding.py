"""The one loop from images to stored values: decode in parallel, skip what is broken, resume, share, show progress."""

import contextlib
import logging
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..files import passing_error
from ..images_hycir import MAX_PIXELS, before_decoding
from .sources import ImageSource, ListSource
from .store import ImageStore, Skip
from .streams import ImageStream

logger = logging.getLogger(__name__)

BLOCK_SIZE = 1024  # images in a block of a fast encoder
FLUSH_SECONDS = 15.0  # the most that a killed run of a slow encoder loses
_MAX_READERS = 16

if "PILLOW_BLOCK_SIZE" not in os.environ:
    # Pillow's blocks of 16 MB stay with the thread that frees them: gigabytes with 16 threads. Larger ones go back.
    Image.core.set_block_size(2**28)


class ImageEncoder(Protocol):
    """Anything that turns images into values that a store can hold.

    Attributes:
        settings (`Mapping[str, Any]`): What the values depend on; JSON.
    """

    settings: Mapping[str, Any]

    def prepare(self, image_id: str, image: Any) -> Any:
        """Turn one PIL image into something small, in a reading thread; an error here skips the image."""

    def encode(self, prepared: Sequence[Any]) -> np.ndarray | Sequence[str]:
        """Turn B prepared images into values, `(B, ...)` or B texts."""


@dataclass
class EncodingReport:
    """What `encode_images` did.

    Args:
        num_encoded (`int`): Images encoded by this call.
        num_reused (`int`): Images whose values were stored before.
        skipped (`list[tuple[str, str]]`): Id and reason of each image that this call could not read.
        seconds (`float`): Time of this call.
    """

    num_encoded: int = 0
    num_reused: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class _Sample:
    id: str
    stamp: str
    load: Callable[[], Any]


def encode_images(
    source: ImageSource | ImageStream,
    encoder: ImageEncoder,
    directory: str | os.PathLike,
    *,
    batch_size: int = 64,
    num_shards: int = 1,
    shard_index: int = 0,
    num_workers: int | None = None,
    label: str = "Encoding",
    progress: bool = True,
    on_skip: Callable[[str, str], None] | None = None,
    prune: bool = True,
) -> tuple[ImageStore, EncodingReport]:
    """Store an encoder's value of each image of a source; only new and changed images are encoded.

    If interrupted, the same call resumes. Batches are cut at fixed rows of the source, so a resumed run computes the
    same values as an uninterrupted one.

    Args:
        source (`ImageSource` or `ImageStream`): The images.
        encoder (`ImageEncoder`): Makes the values.
        directory (`str` or `Path`): The store's folder.
        batch_size (`int`): Images encoded at once.
        num_shards (`int`): Number of processes or jobs that share the work.
        shard_index (`int`): Which of them this is, from 0. The last one to finish completes the store.
        num_workers (`int`, *optional*): Threads that read images; by default one per core, at most 16.
        label (`str`): Label of the progress bar.
        progress (`bool`): Whether to show a progress bar.
        on_skip (function, *optional*): Called with id and reason of each image that cannot be read.
        prune (`bool`): Whether to remove the values of images that the source does not hold.

    Returns:
        `tuple[ImageStore, EncodingReport]`: The store, complete unless other shards have still to finish.

    Raises:
        ValueError: If an option is out of range, or the folder holds values with other settings.
        OSError: If the storage of the images fails for a moment, or the store cannot be written. What was encoded
            before is kept, and no image is noted as broken.
    """
    if batch_size < 1 or not 0 <= shard_index < num_shards:
        raise ValueError(
            f"batch_size must be at least 1 and shard_index from 0 to num_shards - 1, but they are {batch_size} and "
            f"{shard_index} (num_shards: {num_shards})."
        )
    store, report, started = ImageStore.begin(directory, encoder.settings), EncodingReport(), time.monotonic()
    writer = _BlockWriter(store, on_skip or _log_skip, report)
    known: list[tuple[str, str]] = []
    reader = _Reader(source, encoder, batch_size, num_shards, shard_index, num_workers)
    with tqdm(total=reader.total, unit=" images", desc=label, disable=not progress) as bar:
        try:
            for batch, mine in reader.batches(known):
                waiting = [sample for sample in batch if mine and not store.holds(sample.id, sample.stamp)]
                report.num_reused += len(batch) - len(waiting) if mine else 0
                bar.update(len(batch) - len(waiting))
                reader.submit(waiting)
                for samples, prepared in reader.ready():
                    writer.add(samples, prepared, encoder)
                    bar.update(len(samples))
            for samples, prepared in reader.ready(last=True):
                writer.add(samples, prepared, encoder)
                bar.update(len(samples))
        finally:
            try:
                reader.close()
            finally:  # also after a second Ctrl-C
                writer.flush()
    if not known:
        raise ValueError("There are no images to encode: the source is empty.")
    if len({id_ for id_, _ in known}) < len(known):
        twice = Counter(id_ for id_, _ in known).most_common(1)[0]
        raise ValueError(f"The source holds the image id {twice[0]!r} {twice[1]} times. Give each image its own id.")
    is_whole = store.finish([id_ for id_, _ in known], [stamp for _, stamp in known], source.describe(), prune)
    if not is_whole and num_shards == 1:
        raise ValueError(
            f"Another process encodes other images into {directory}. Wait for it, then run the command again."
        )
    report.seconds = time.monotonic() - started
    return store, report


def encode_list(
    images: Sequence[Any],
    encoder: ImageEncoder,
    ids: Sequence[str] | None = None,
    *,
    batch_size: int = 64,
    label: str = "Encoding",
    progress: bool = True,
) -> np.ndarray:
    """Encode images given one by one, keeping nothing on disk.

    Args:
        images (`Sequence`): N images, as `ListSource` takes them.
        encoder (`ImageEncoder`): Makes the values.
        ids (`Sequence[str]` of length N, *optional*): Names for the messages; row numbers by default.
        batch_size (`int`): Images encoded at once.
        label (`str`): Label of the progress bar.
        progress (`bool`): Whether to show a progress bar.

    Returns:
        `np.ndarray` of shape `(N, ...)`: The values, in order.

    Raises:
        ValueError: If an image is broken, or there is none. The message names the image.
    """
    names = [str(row) for row in range(len(images))] if ids is None else list(ids)
    if not names:
        raise ValueError("There are no images to encode. Pass at least one.")

    def refuse(image_id: str, reason: str) -> None:
        raise ValueError(f"The image {image_id} cannot be read: {reason}")

    with tempfile.TemporaryDirectory() as folder:
        store, _ = encode_images(
            ListSource(images, names),
            encoder,
            Path(folder) / "store",
            batch_size=batch_size,
            label=label,
            progress=progress,
            on_skip=refuse,
        )
        return store.read(range(len(names)), views=None)


class _Reader:
    """Reads and prepares images in threads, one batch ahead of the encoder."""

    def __init__(
        self,
        source: ImageSource | ImageStream,
        encoder: ImageEncoder,
        batch_size: int,
        num_shards: int,
        shard_index: int,
        num_workers: int | None,
    ) -> None:
        self.source, self.encoder, self.batch_size = source, encoder, batch_size
        self.num_shards, self.shard_index = num_shards, shard_index
        self.total = None if isinstance(source, ImageStream) else len(source.ids)
        self._pool = ThreadPoolExecutor(max_workers=num_workers or min(_MAX_READERS, os.cpu_count() or 1))
        self._ahead: list[tuple[list[_Sample], list[Future]]] = []
        self._room = _Room(MAX_PIXELS)

    def batches(self, known: list[tuple[str, str]]) -> Iterator[tuple[list[_Sample], bool]]:
        """Go through the source in batches, each with whether this shard encodes it; `known` gets each id and stamp."""
        per_share = max(1, BLOCK_SIZE // self.batch_size)
        batch: list[_Sample] = []
        number = 0
        for sample in _samples(self.source):
            known.append((sample.id, sample.stamp))
            batch.append(sample)
            if len(batch) == self.batch_size:
                yield batch, number // per_share % self.num_shards == self.shard_index
                batch, number = [], number + 1
        if batch:
            yield batch, number // per_share % self.num_shards == self.shard_index

    def submit(self, samples: list[_Sample]) -> None:
        """Begin to read some images."""
        if samples:
            self._ahead.append((samples, [self._pool.submit(self._prepare, sample) for sample in samples]))

    def ready(self, last: bool = False) -> Iterator[tuple[list[_Sample], list[Any]]]:
        """Give batches out while more than one is being read (with `last`, all): images, and each prepared or a reason.

        A reason is a `_Broken`.
        """
        while len(self._ahead) > (0 if last else 1):
            samples, futures = self._ahead.pop(0)
            yield samples, [future.result() for future in futures]

    def close(self) -> None:
        """Let go of what is still being read."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, sample: _Sample) -> Any:
        try:
            with self._room.waiting():
                return self.encoder.prepare(sample.id, sample.load())
        except Exception as error:  # a decoder may raise anything on a damaged file
            passing = passing_error(error)
            if passing is not None:
                raise _storage_error(sample.id, passing) from error
            return _Broken(" ".join(str(error).split()) or type(error).__name__)


class _Room:
    """Memory for decoded images that several threads share: one largest image, or many small ones.

    Args:
        pixels (`int`): The most that is decoded at once.
    """

    def __init__(self, pixels: int) -> None:
        self._pixels = self._free = pixels
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Let this thread wait for room before it decodes an image, and give the room back at the end."""
        taken = 0

        def take(pixels: int) -> None:
            nonlocal taken
            wanted = 0 if taken else min(pixels, self._pixels)  # one that holds room must not wait for more
            with self._changed:
                self._changed.wait_for(lambda: self._free >= wanted)
                self._free -= wanted
            taken += wanted

        token = before_decoding.set(take)
        try:
            yield
        finally:
            before_decoding.reset(token)
            with self._changed:
                self._free += taken
                self._changed.notify_all()


@dataclass(frozen=True)
class _Broken:
    """Why an image cannot be read."""

    reason: str


@dataclass
class _BlockWriter:
    """Collects values and writes them in blocks."""

    store: ImageStore
    on_skip: Callable[[str, str], None]
    report: EncodingReport
    samples: list[_Sample] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)
    written_at: float = field(default_factory=time.monotonic)

    def add(self, samples: list[_Sample], prepared: list[Any], encoder: ImageEncoder) -> None:
        """Encode one batch."""
        for sample, one in zip(samples, prepared, strict=True):
            if isinstance(one, _Broken):
                self.skipped.append((sample.id, sample.stamp, one.reason))
                self.report.skipped.append((sample.id, one.reason))
                self.on_skip(sample.id, one.reason)
        readable = [(s, one) for s, one in zip(samples, prepared, strict=True) if not isinstance(one, _Broken)]
        if readable:
            self.values.append(encoder.encode([one for _, one in readable]))
            self.samples += [sample for sample, _ in readable]
            self.report.num_encoded += len(readable)
        if len(self.samples) >= BLOCK_SIZE or time.monotonic() - self.written_at >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is not yet on disk."""
        if self.samples or self.skipped:
            ids, stamps = [sample.id for sample in self.samples], [sample.stamp for sample in self.samples]
            self.store.append(ids, stamps, _joined(self.values), self.skipped)
            self.samples, self.values, self.skipped = [], [], []
        self.written_at = time.monotonic()


def _joined(values: list[Any]) -> np.ndarray | list[str]:
    if values and isinstance(values[0], np.ndarray):
        return np.concatenate(values)
    return [text for texts in values for text in texts]


def _samples(source: ImageSource | ImageStream) -> Iterator[_Sample]:
    if isinstance(source, ImageStream):
        for id_, image in source:
            yield _Sample(id_, _stream_stamp(image), partial(_same, image))
        return
    for row, id_ in enumerate(source.ids):
        try:
            stamp = source.stamp(row)
        except Exception as error:  # a broken image: its loading says what is wrong
            passing = passing_error(error)
            if passing is not None:
                raise _storage_error(id_, passing) from error
            stamp = "unreadable"
        yield _Sample(id_, stamp, partial(source.load, row))


def _same(image: Any) -> Any:
    return image


def _stream_stamp(image: Any) -> str:
    """The stamp of an undecoded image of a stream: a checksum of its bytes, or path, size and modification time."""
    path = image.get("path") if isinstance(image, Mapping) and not image.get("bytes") else image
    stamp = ListSource([image], [""]).stamp(0)
    return f"{path} {stamp}" if isinstance(path, str | os.PathLike) else stamp


def _storage_error(image_id: str, error: BaseException) -> OSError:
    text = (
        f"Reading the image {image_id} failed ({error}). The storage failed, not the image. Run the same command again."
    )
    return OSError(text)


def _log_skip(image_id: str, reason: str) -> None:
    logger.warning("Skipped %s: %s", image_id, reason)
