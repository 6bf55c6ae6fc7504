"""Encoding a source of images into a gallery folder, so that a run cut short goes on where it stopped.

Features are kept in shards under OUTPUT/.partial/KEY, written aside and renamed, where KEY stands for encoder,
preprocessing and source. They are removed once the gallery is saved.
"""

import hashlib
import json
import logging
import os
import secrets
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..images.sources import ImageSource
from .gallery import Gallery, encode_images, prepare_image, sync
from .indexes import check_kind

logger = logging.getLogger(__name__)

PARTIAL_NAME = ".partial"
FLUSH_SECONDS = 5.0


@dataclass
class IndexReport:
    """What `index_images` did.

    Args:
        gallery (`Gallery`): As saved.
        num_encoded (`int`): Images encoded in this run.
        num_resumed (`int`): Images whose features an earlier run had left.
        skipped (`list[tuple[str, str]]`): Id and reason of each image that could not be read.
        seconds (`float`): Encoding time of this run.
    """

    gallery: Gallery
    num_encoded: int
    num_resumed: int
    skipped: list[tuple[str, str]]
    seconds: float


@dataclass
class _PartialFeatures:
    """Features found so far, on disk in shards and in memory by (id, stamp)."""

    directory: Path
    found: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    unsaved: list[tuple[str, str]] = field(default_factory=list)
    saved_at: float = field(default_factory=time.monotonic)

    def read(self) -> None:
        """Read the shards that an earlier run left; a damaged one is dropped."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for path in sorted(self.directory.glob("shard-*.npz")):
            try:
                with np.load(path, allow_pickle=False) as shard:
                    entries = zip(shard["ids"].tolist(), shard["stamps"].tolist(), shard["features"], strict=True)
                    self.found.update(((id_, stamp), feature) for id_, stamp, feature in entries)
            except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
                logger.warning("Dropping the damaged shard %s: %s", path, error)
                path.unlink()

    def add(self, keys: list[tuple[str, str]], features: np.ndarray) -> None:
        """Take in one batch's features (B, D); written out when the last writing is some seconds ago."""
        self.found.update(zip(keys, features, strict=True))
        self.unsaved.extend(keys)
        if time.monotonic() - self.saved_at >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is not yet on disk as one shard: aside, synced, renamed."""
        if not self.unsaved:
            return
        path = self.directory / f"shard-{secrets.token_hex(8)}.npz"
        aside = path.with_suffix(".tmp")
        with aside.open("wb") as file:
            np.savez(
                file,
                ids=np.array([id_ for id_, _ in self.unsaved]),
                stamps=np.array([stamp for _, stamp in self.unsaved]),
                features=np.stack([self.found[key] for key in self.unsaved]),  # (M, D)
            )
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync(self.directory)
        self.unsaved.clear()
        self.saved_at = time.monotonic()


def index_images(
    model: Any,
    processor: Any,
    source: ImageSource,
    output: str | os.PathLike,
    *,
    batch_size: int = 64,
    kind: str = "flat",
    model_path: str | None = None,
    progress: bool = True,
    on_skip: Callable[[str, str], None] | None = None,
) -> IndexReport:
    """Encode a source's images and save them as a gallery; the same call again goes on where one was cut short.

    Args:
        model (`HyCIRModel`): Its image encoder makes the features.
        processor (`HyCIRProcessor`): The model's.
        source (`ImageSource`): See `open_source`.
        output (`str` or `Path`): The gallery's folder; a gallery that it holds is replaced.
        batch_size (`int`): Images encoded at once.
        kind (`str`): Kind of index, see `Gallery.from_features`.
        model_path (`str`, *optional*): Recorded in the manifest for `hycir search`.
        progress (`bool`): Show a progress bar with images per second.
        on_skip (`Callable[[str, str], None]`, *optional*): Called with id and reason of each unreadable image; logged
            as a warning by default.

    Raises:
        ValueError: If no image can be read, or the kind needs more of them.
    """
    check_kind(kind)
    if batch_size < 1:
        raise ValueError(f"Expected a batch size of at least 1, but found {batch_size}. Pass for example 64.")
    output = Path(output)
    fingerprint = model.encoder_fingerprint()
    partial = _PartialFeatures(output / PARTIAL_NAME / _partial_key(fingerprint, processor, source))
    partial.read()
    keys = [(id_, source.stamp(row)) for row, id_ in enumerate(source.ids)]
    num_resumed = sum(key in partial.found for key in keys)
    started = time.monotonic()
    skipped: list[tuple[str, str]] = []
    report_skip = on_skip or _log_skip
    with tqdm(total=len(keys), initial=num_resumed, unit=" images", desc="Indexing", disable=not progress) as bar:
        try:
            for rows, inputs in _prepared_batches(source, processor, keys, partial, batch_size):
                for row, reason in zip(rows, inputs, strict=True):
                    if isinstance(reason, str):
                        skipped.append((source.ids[row], reason))
                        report_skip(source.ids[row], reason)
                readable = [row for row, one in zip(rows, inputs, strict=True) if not isinstance(one, str)]
                if readable:
                    prepared = [one for one in inputs if not isinstance(one, str)]
                    partial.add([keys[row] for row in readable], encode_images(model, prepared))
                bar.update(len(rows))
        finally:
            partial.flush()
    seconds = time.monotonic() - started
    gallery = _assemble(source, keys, partial, kind, fingerprint, model_path, output)
    gallery.save(output)
    shutil.rmtree(output / PARTIAL_NAME)
    return IndexReport(gallery, len(gallery) - num_resumed, num_resumed, skipped, seconds)


def _assemble(
    source: ImageSource,
    keys: list[tuple[str, str]],
    partial: _PartialFeatures,
    kind: str,
    fingerprint: str,
    model_path: str | None,
    output: Path,
) -> Gallery:
    present = [key for key in keys if key in partial.found]
    if not present:
        raise ValueError(f"Expected readable images, but none of {len(keys)} could be read. See the lines above.")
    return Gallery.from_features(
        np.stack([partial.found[key] for key in present]),  # (N, D)
        [id_ for id_, _ in present],
        encoder_fingerprint=fingerprint,
        kind=kind,
        model_path=model_path,
        source=source.describe(output),
    )


def _prepared_batches(
    source: ImageSource, processor: Any, keys: list[tuple[str, str]], partial: _PartialFeatures, batch_size: int
) -> Iterator[tuple[list[int], list[Any]]]:
    """Rows still to be encoded and the encoder's inputs (a string: why it is broken), one batch read ahead.

    Batches are cut at fixed rows, so that a resumed run sees the batches of an uninterrupted one.
    """
    cuts = range(0, len(keys), batch_size)
    blocks = [[r for r in range(cut, min(cut + batch_size, len(keys))) if keys[r] not in partial.found] for cut in cuts]
    blocks = [block for block in blocks if block]
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        ahead: list[Future] = []
        try:
            for number, block in enumerate(blocks):
                futures = ahead or [pool.submit(_inputs_or_reason, source, processor, row) for row in block]
                following = blocks[number + 1] if number + 1 < len(blocks) else []
                ahead = [pool.submit(_inputs_or_reason, source, processor, row) for row in following]
                yield block, [future.result() for future in futures]
        finally:
            for future in ahead:
                future.cancel()


def _inputs_or_reason(source: ImageSource, processor: Any, row: int) -> Any:
    try:
        return prepare_image(processor, source.load(row))
    except Exception as error:  # a decoder may raise anything on a damaged file, and resizing on an odd shape
        return " ".join(str(error).split()) or type(error).__name__


def _log_skip(id_: str, reason: str) -> None:
    logger.warning("Skipped %s: %s", id_, reason)


def _partial_key(fingerprint: str, processor: Any, source: ImageSource) -> str:
    image_processor = getattr(processor, "image_processor", processor)
    to_json = getattr(image_processor, "to_json_string", None)
    preprocessing = to_json() if to_json is not None else type(image_processor).__name__
    parts = json.dumps([fingerprint, preprocessing, source.describe()], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()[:16]
