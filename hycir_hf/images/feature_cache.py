"""The feature cache: each image is encoded once, and training then runs only the mapper and the text encoder.

A cache is one folder: `features.npy` (N, V, D), memory-mapped, `ids.json`, and `manifest.json` with the fingerprints of
what made the features and the images that were skipped. While it is being built, blocks of rows lie in `blocks/`, each
written aside and renamed, so that a run cut short, or several processes, lose and repeat nothing.
"""

import contextlib
import hashlib
import io
import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from ..images_hycir import load_image
from .sources import ImageSource
from .streams import ImageStream, loader_of, returning

logger = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"
FORMAT_NAME, FORMAT_VERSION = "hycir-features", 1
BLOCKS_NAME = "blocks"
BLOCK_SIZE = 1024
DTYPES = ("float16", "float32")
NUM_COMPARED = 16  # pictures that are encoded again to see whether a cache was made from them
TOLERANCE = 0.05  # of a feature's length: float16 and another device change it by less than a hundredth


class FeatureCache:
    """Features of a source's images, read from disk as they are asked for.

    Make one with `build_feature_cache`, open it with `FeatureCache.open`.

    Args:
        features (`np.ndarray` of shape `(N, V, D)`): Not normalised; V views of each image, the first one plain.
        ids (`list[str]` of length N): The images' ids.
        manifest (`dict`): What made the features.
    """

    def __init__(self, features: np.ndarray, ids: list[str], manifest: dict[str, Any]) -> None:
        self.features, self.ids, self.manifest = features, ids, manifest

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_views(self) -> int:
        """V, the views of each image."""
        return self.features.shape[1]

    @classmethod
    def open(cls, directory: str | os.PathLike, encoder_fingerprint: str | None = None) -> "FeatureCache":
        """Open a cache, memory-mapped.

        Args:
            directory (`str` or `Path`): Its folder.
            encoder_fingerprint (`str`, *optional*): `HyCIRModel.encoder_fingerprint()` of the model to be trained.

        Raises:
            FileNotFoundError: If there is no cache, or it is not finished.
            ValueError: If another encoder made it.
        """
        directory = Path(directory)
        manifest = _read_manifest(directory)
        if manifest is None or not manifest["is_complete"]:
            found = "none" if manifest is None else "a part"
            raise FileNotFoundError(
                f"Expected a finished feature cache in {directory}, but it has {found}. "
                "Make it with `hycir features`; the same command again finishes it."
            )
        if encoder_fingerprint is not None:
            _check_fingerprint("encoder", manifest, encoder_fingerprint, str(directory))
        ids = json.loads((directory / "ids.json").read_text(encoding="utf-8"))
        return cls(np.load(directory / "features.npy", mmap_mode="r"), ids, manifest)

    def read(self, rows: Sequence[int] | np.ndarray, views: np.ndarray | None = None) -> Tensor:
        """Features of some images.

        Args:
            rows (`Sequence[int]` of length B): Row numbers.
            views (`np.ndarray` of shape `(B,)`, *optional*): Which view of each; the plain one by default.

        Returns:
            `torch.FloatTensor` of shape `(B, D)`: float32, not normalised.
        """
        rows = np.asarray(rows, dtype=np.int64)
        views = np.zeros(len(rows), dtype=np.int64) if views is None else views
        return torch.from_numpy(self.features[rows, views].astype(np.float32))

    def check_preprocessing(self, preprocessing: str) -> None:
        """Check that the features were made from pictures prepared in this way.

        Args:
            preprocessing (`str`): `preprocessing_fingerprint(...)`, with this cache's views and seed.

        Raises:
            ValueError: If they were not.
        """
        _check_fingerprint("preprocessing", self.manifest, preprocessing, "the feature cache")

    def skipped_ids(self) -> list[str]:
        """Ids of the images that could not be read."""
        return [id_ for id_, _ in self.manifest["skipped"]]


@dataclass
class _Build:
    """What one call of `build_feature_cache` works with."""

    model: Any
    processor: Any
    directory: Path
    batch_size: int
    dtype: str
    num_views: int
    seed: int
    pool: ThreadPoolExecutor

    def encode(
        self, samples: list[tuple[str, Callable[[], Any]]], on_batch: Callable[[int], Any]
    ) -> tuple[list[str], np.ndarray, list[list[str]]]:
        """Ids and features (n, V, D) of the samples that can be read, and the others' ids and reasons.

        `on_batch` is told how many samples were done.
        """
        ids: list[str] = []
        skipped: list[list[str]] = []
        parts = []
        for start in range(0, len(samples), self.batch_size):
            batch = samples[start : start + self.batch_size]
            loaded = list(self.pool.map(self._views, batch))
            for (id_, _), views in zip(batch, loaded, strict=True):
                if isinstance(views, str):
                    skipped.append([id_, views])
                else:
                    ids.append(id_)
            inputs = [one for views in loaded if not isinstance(views, str) for one in views]
            if inputs:
                parts.append(self._encode_inputs(inputs))
            on_batch(len(batch))
        shape = (0, self.num_views, self.model.config.feature_size)
        return ids, np.concatenate(parts) if parts else np.zeros(shape, self.dtype), skipped

    def _encode_inputs(self, inputs: list[Any]) -> np.ndarray:
        batch = {name: torch.cat([one[name] for one in inputs]).to(self.model.device) for name in inputs[0]}
        with torch.inference_mode():
            features = self.model.get_image_features(**batch, normalize=False).float().cpu().numpy()  # (n * V, D)
        features = features.astype(self.dtype)
        if not np.isfinite(features).all():
            raise ValueError(
                f"Expected features that {self.dtype} can hold, but some are not finite. Use float32, or check the "
                "encoder's weights."
            )
        return features.reshape(-1, self.num_views, features.shape[-1])  # (n, V, D)

    def _views(self, sample: tuple[str, Callable[[], Any]]) -> list[Any] | str:
        """The encoder's inputs for each view, or the reason why the picture is left out."""
        id_, load = sample
        try:
            image = load_image(load())
            views = [image, *(augment(image, [self.seed, view], id_) for view in range(1, self.num_views))]
            return [self.processor(images=[view], return_tensors="pt") for view in views]
        except Exception as error:  # a decoder may raise anything on a damaged file
            return " ".join(str(error).split()) or type(error).__name__


def build_feature_cache(
    model: Any,
    processor: Any,
    source: ImageSource | ImageStream,
    directory: str | os.PathLike,
    *,
    batch_size: int = 64,
    dtype: str = "float16",
    num_views: int = 1,
    seed: int = 0,
    num_shards: int = 1,
    shard_index: int = 0,
    num_workers: int | None = None,
    progress: bool = True,
) -> FeatureCache | None:
    """Encode each image of a source once; the same call again goes on where one was cut short.

    Blocks of 1,024 images are shared out over the shards (processes, or jobs of an array); whoever finds all blocks
    done puts the cache together. Images that cannot be read are left out, counted, and named in the manifest.

    Args:
        model (`HyCIRModel`): Its image encoder makes the features.
        processor (`HyCIRProcessor`): The model's.
        source (`ImageSource` or `ImageStream`): From `open_images`, or a stream.
        directory (`str` or `Path`): The cache's folder.
        batch_size (`int`): Images encoded at once.
        dtype (`str`): "float16" or "float32".
        num_views (`int`): V; views after the first are randomly cropped and mirrored (`augment`).
        seed (`int`): Of the views.
        num_shards (`int`): Among how many the blocks are shared.
        shard_index (`int`): Which of them this is, from 0.
        num_workers (`int`, *optional*): Threads that read pictures; by default one for each core, at most 16.
        progress (`bool`): Show a progress bar.

    Returns:
        `FeatureCache`, or `None` where other shards have still to finish.

    Raises:
        ValueError: If the folder holds features of something else, or no image can be read.
        OSError: If the cache cannot be written, as on a full disk; what was done before is kept.
    """
    _check_options(batch_size, dtype, num_views, num_shards, shard_index)
    directory = Path(directory)
    manifest = {
        "format": FORMAT_NAME,
        "format_version": FORMAT_VERSION,
        "encoder_fingerprint": model.encoder_fingerprint(),
        "preprocessing_fingerprint": preprocessing_fingerprint(processor, num_views, seed),
        "source": _fingerprint_of_source(source),
        "dtype": dtype,
        "num_views": num_views,
        "seed": seed,
        "is_complete": False,
    }
    found = _read_manifest(directory)
    if found is None:
        _check_free(directory)
        found = _begin(directory, manifest)
    _check_same(directory, found, manifest)
    if found["is_complete"]:
        return FeatureCache.open(directory)
    workers = num_workers or min(16, os.cpu_count() or 1)
    with ThreadPoolExecutor(max_workers=workers) as pool:
        build = _Build(model, processor, directory, batch_size, dtype, num_views, seed, pool)
        try:
            is_whole = _encode_and_join(build, source, manifest, num_shards, shard_index, progress)
        except FileNotFoundError:
            is_whole = _is_complete(directory)  # another shard has joined the blocks meanwhile, and removed them
            if not is_whole:
                raise
    if not is_whole:
        logger.info("Block files of other shards are missing in %s; the last shard to finish joins them.", directory)
    return FeatureCache.open(directory) if is_whole else None


def preprocessing_fingerprint(processor: Any, num_views: int = 1, seed: int = 0) -> str:
    """Identify how pictures become the encoder's inputs: 16 hex digits.

    Args:
        processor (`HyCIRProcessor`): Its image processor's settings count.
        num_views (`int`): With more than one view their seed counts too.
        seed (`int`): Of the views.
    """
    settings = json.loads(processor.image_processor.to_json_string())
    parts = [settings, num_views, seed if num_views > 1 else None]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def check_pictures(
    cache: FeatureCache,
    directory: str | os.PathLike,
    model: Any,
    processor: Any,
    source: ImageSource | ImageStream,
    has_same_ids: bool,
) -> None:
    """Check that a finished cache was made from a source's pictures.

    Equal fingerprints say so. But they differ too where the same pictures were moved or are opened by another path:
    then the ids decide, and the features of some pictures, encoded again.

    Args:
        cache (`FeatureCache`): The cache.
        directory (`str` or `Path`): Its folder, for the message.
        model (`HyCIRModel`): The model that made it.
        processor (`HyCIRProcessor`): The model's.
        source (`ImageSource` or `ImageStream`): The pictures.
        has_same_ids (`bool`): Whether cache and source must hold the same images, or only agree where both have one.

    Raises:
        ValueError: If it was made from other pictures.
    """
    found, wanted = cache.manifest["source"], _fingerprint_of_source(source)
    if found == wanted:
        return
    rows = {id_: row for row, id_ in enumerate(cache.ids)}
    difference = _different_ids({*rows, *cache.skipped_ids()}, source) if has_same_ids else None
    difference = difference or _different_feature(cache, rows, model, processor, source)
    if difference is not None:
        raise ValueError(
            f"Expected features of the pictures with fingerprint {wanted}, but those in {directory} were made from "
            f"{found}: {difference}. Make a new cache in another folder, or give the pictures that it was made from."
        )


def _different_ids(known: set[str], source: ImageSource | ImageStream) -> str | None:
    """What tells a source's ids from a cache's; of a stream only the first are looked at."""
    ids = [id_ for id_, _ in itertools.islice(source, NUM_COMPARED)] if isinstance(source, ImageStream) else source.ids
    new = next((id_ for id_ in ids if id_ not in known), None)
    if new is not None:
        return f"they have no image {new!r}"
    if not isinstance(source, ImageStream) and len(known) > len(ids):
        return f"they have the image {min(known.difference(ids))!r} besides"
    return None


def _different_feature(
    cache: FeatureCache, rows: dict[str, int], model: Any, processor: Any, source: ImageSource | ImageStream
) -> str | None:
    """What tells some pictures of a source from those of a cache by their features."""
    for id_, load in _some(source):
        if id_ not in rows:
            continue
        try:
            inputs = processor(images=[load_image(load())], return_tensors="pt")
        except Exception as error:  # a decoder may raise anything on a damaged file
            logger.debug("Not compared: %s", error)
            continue
        with torch.no_grad():
            feature = model.get_image_features(**inputs.to(model.device), normalize=False)[0].float().cpu()  # (D,)
        stored = cache.read([rows[id_]])[0]
        if (feature - stored).norm() > TOLERANCE * feature.norm():
            return f"that of {id_!r} is of another picture"
    return None


def _some(source: ImageSource | ImageStream) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Pictures spread evenly over a source, or a stream's first ones; each with its id and how to load it."""
    if isinstance(source, ImageStream):
        yield from ((id_, returning(picture)) for id_, picture in itertools.islice(source, NUM_COMPARED))
        return
    for row in sorted({int(row) for row in np.linspace(0, len(source.ids) - 1, NUM_COMPARED)}):
        yield source.ids[row], loader_of(source, row)


def augment(image: Image.Image, seed: list[int], id_: str) -> Image.Image:
    """Crop 90 to 100% of a picture at random, as open_clip and Pic2Word do, and mirror every other one.

    Args:
        image (`PIL.Image.Image`): RGB.
        seed (`list[int]`): With the id it determines the view.
        id_ (`str`): The image's id.

    Returns:
        `PIL.Image.Image`: Smaller by the crop.
    """
    digest = int.from_bytes(hashlib.sha256(id_.encode("utf-8", "surrogateescape")).digest()[:8], "big")
    rng = np.random.default_rng([*seed, digest])
    side = np.sqrt(rng.uniform(0.9, 1.0))
    width, height = (max(1, round(side * length)) for length in image.size)
    left, top = (int(rng.integers(0, all_ - part + 1)) for all_, part in zip(image.size, (width, height), strict=True))
    cropped = image.crop((left, top, left + width, top + height))
    return ImageOps.mirror(cropped) if rng.random() < 0.5 else cropped


def _check_options(batch_size: int, dtype: str, num_views: int, num_shards: int, shard_index: int) -> None:
    complaints = [
        f"{name} must be {expected}, but it is {value!r}"
        for name, expected, value, is_good in (
            ("batch_size", "at least 1", batch_size, batch_size >= 1),
            ("dtype", f"one of {DTYPES}", dtype, dtype in DTYPES),
            ("num_views", "at least 1", num_views, num_views >= 1),
            ("shard_index", f"from 0 to {num_shards - 1}", shard_index, 0 <= shard_index < num_shards),
        )
        if not is_good
    ]
    if complaints:
        raise ValueError(f"Feature cache: {'; '.join(complaints)}. Correct the values.")


def _check_free(directory: Path) -> None:
    """Refuse a folder that holds something else (a model, pictures), but not what another shard has just begun."""
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    is_other = any(not name.startswith(MANIFEST_NAME) and name != BLOCKS_NAME for name in names)
    if (directory.exists() and not directory.is_dir()) or (is_other and _read_manifest(directory) is None):
        raise ValueError(
            f"Expected a new folder for the feature cache, but {directory} holds something else. Give a folder that is "
            "empty or not there yet."
        )


def _begin(directory: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Write the manifest of a new cache; returns what stands there, which may be what another shard wrote first."""
    path, aside = directory / MANIFEST_NAME, directory / f"{MANIFEST_NAME}.{os.getpid()}"
    _write(aside, json.dumps(manifest, indent=2).encode())
    try:
        os.link(aside, path)  # unlike a renaming, never over the manifest of a shard that was quicker
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not path.exists():
            aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return _read_manifest(directory) or manifest


def _encode_and_join(
    build: _Build,
    source: ImageSource | ImageStream,
    manifest: dict[str, Any],
    num_shards: int,
    shard_index: int,
    progress: bool,
) -> bool:
    """Encode this shard's blocks and, if it is the last one, join all; returns whether the cache is complete."""
    num_blocks = _encode_blocks(build, source, num_shards, shard_index, progress)
    if _is_complete(build.directory):
        return True
    places = [_block_path(build.directory, number) for number in range(num_blocks)]
    if not all(place.exists() for place in places):
        return _is_complete(build.directory)
    _join_blocks(build.directory, places, manifest)
    return True


def _encode_blocks(
    build: _Build, source: ImageSource | ImageStream, num_shards: int, shard_index: int, progress: bool
) -> int:
    """Encode this shard's blocks that are not there yet; returns the number of all blocks."""
    total = None if isinstance(source, ImageStream) else len(source.ids)
    number = -1
    with tqdm(total=total, unit=" images", desc="Features", disable=not progress) as bar:
        for number, samples in enumerate(_blocks(source)):
            place = _block_path(build.directory, number)
            is_mine = number % num_shards == shard_index
            if is_mine and not place.exists() and not _is_complete(build.directory):
                _write_block(place, *build.encode(samples, bar.update))
            else:
                bar.update(len(samples))
    return number + 1


def _blocks(source: ImageSource | ImageStream) -> Iterator[list[tuple[str, Callable[[], Any]]]]:
    """Runs of a source's images, each with its id and how to load it."""
    if isinstance(source, ImageStream):
        block: list[tuple[str, Callable[[], Any]]] = []
        for id_, picture in source:
            block.append((id_, returning(picture)))
            if len(block) == BLOCK_SIZE:
                yield block
                block = []
        if block:
            yield block
        return
    for start in range(0, len(source.ids), BLOCK_SIZE):
        rows = range(start, min(start + BLOCK_SIZE, len(source.ids)))
        yield [(source.ids[row], loader_of(source, row)) for row in rows]


def _join_blocks(directory: Path, places: list[Path], manifest: dict[str, Any]) -> None:
    """Put the blocks together; the manifest that says so is written last."""
    ids: list[str] = []
    skipped: list[list[str]] = []
    sizes = []
    for place in places:
        with np.load(place, allow_pickle=False) as block:
            ids += block["ids"].tolist()
            skipped += block["skipped"].tolist()
            sizes.append(block["features"].shape)
    if not ids:
        raise ValueError(
            f"Expected readable images, but none of {len(skipped)} could be read; the first: {skipped[:1]}. Check "
            f"where the images come from, then remove {directory} and try again."
        )
    shape = (len(ids), *sizes[0][1:])  # (N, V, D)
    header = {"descr": np.dtype(manifest["dtype"]).str, "fortran_order": False, "shape": shape}
    with _written_aside(directory / "features.npy") as file:  # a memory map on a full disk would kill the process
        np.lib.format.write_array_header_1_0(file, header)
        for place in places:
            with np.load(place, allow_pickle=False) as block:
                file.write(block["features"].tobytes())
    _write(directory / "ids.json", json.dumps(ids).encode())
    done = {**manifest, "is_complete": True, "num_images": len(ids), "skipped": skipped}
    _write(directory / MANIFEST_NAME, json.dumps(done, indent=2).encode())
    shutil.rmtree(directory / BLOCKS_NAME, ignore_errors=True)
    if skipped:
        logger.warning(
            "%d of %d images could not be read; first: %s", len(skipped), len(ids) + len(skipped), skipped[0]
        )


def _block_path(directory: Path, number: int) -> Path:
    return directory / BLOCKS_NAME / f"{number:06d}.npz"


def _write_block(place: Path, ids: list[str], features: np.ndarray, skipped: list[list[str]]) -> None:
    columns = {"ids": np.array(ids, dtype=str), "skipped": np.array(skipped, dtype=str).reshape(-1, 2)}
    buffer = io.BytesIO()
    np.savez(buffer, features=features, **columns)
    _write(place, buffer.getvalue())


def _write(path: Path, content: bytes) -> None:
    with _written_aside(path) as file:
        file.write(content)


@contextlib.contextmanager
def _written_aside(path: Path) -> Iterator[BinaryIO]:
    """A file written under this process's own name, forced to disk and renamed; on an error nothing of it is left."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_written(path, error) from error
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except FileNotFoundError:  # no lack of room: another shard has joined the blocks and removed them
        raise
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def _not_written(path: Path, error: OSError) -> OSError:
    return OSError(
        f"Expected to write {path.name} of the feature cache in {path.parent}, but: {error}. Make room or give another "
        "folder, and run the same command again; what was done before is kept."
    )


def _read_manifest(directory: Path) -> dict[str, Any] | None:
    path = directory / MANIFEST_NAME
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"Expected JSON in {path}, but found: {error}. Remove the folder and make it again."
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT_NAME:
        raise ValueError(
            f"Expected a feature cache in {directory}, but its {MANIFEST_NAME} is another's. Give another."
        )
    return manifest


def _is_complete(directory: Path) -> bool:
    manifest = _read_manifest(directory)
    return manifest is not None and manifest["is_complete"]


def _check_fingerprint(what: str, manifest: dict[str, Any], wanted: str, place: str) -> None:
    found = manifest[f"{what}_fingerprint"]
    if found != wanted:
        raise ValueError(
            f"Expected features by the {what} with fingerprint {wanted}, but those in {place} are by {found}. Use the "
            f"{what} that made them, or make a new cache in another folder."
        )


def _check_same(directory: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse to go on with a cache of something else; options come first, since the preprocessing contains some."""
    names = ("dtype", "num_views", *(("seed",) if wanted["num_views"] > 1 else ()))
    for name in names:
        _check_option(directory, name, found[name], wanted[name])
    for what in ("encoder", "preprocessing"):
        _check_fingerprint(what, found, wanted[f"{what}_fingerprint"], str(directory))
    _check_option(directory, "source", found["source"], wanted["source"])


def _check_option(directory: Path, name: str, found: Any, wanted: Any) -> None:
    if found != wanted:
        raise ValueError(
            f"Expected features with {name} {wanted!r}, but those in {directory} have {found!r}. Use another folder, "
            "or remove this one."
        )


def _fingerprint_of_source(source: ImageSource | ImageStream) -> str:
    """Identify a source by its description, ids and, so that changed pictures are seen, their stamps: 16 hex digits."""
    digest = hashlib.sha256()
    if isinstance(source, ImageStream):
        digest.update(json.dumps(source.describe(), sort_keys=True).encode())
    else:
        for row, id_ in enumerate(source.ids):
            digest.update(f"{id_}\n{source.stamp(row)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]
