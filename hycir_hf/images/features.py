"""Image features: how a HyCIR model makes them, and how training, galleries and benchmarks read them from a store."""

import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from ..images_hycir import load_image
from ..modeling_hycir import HyCIRModel
from ..processing_hycir import HyCIRProcessor
from .encoding import EncodingReport, encode_images
from .sources import ImageSource
from .store import ImageStore
from .streams import ImageStream

logger = logging.getLogger(__name__)

DTYPES = ("float16", "float32")
NUM_COMPARED = 16  # images that are encoded again to see whether features were made from them
TOLERANCE = 0.05  # of a feature's length: float16 and another device change it by less than a hundredth


class FeatureEncoder:
    """A model's image features, not normalised, as an `ImageEncoder`.

    Args:
        model (`HyCIRModel`): Its image encoder makes the features.
        processor (`HyCIRProcessor`): The model's.
        dtype (`str`): "float16" or "float32", as stored.
        num_views (`int`): V; views after the first are randomly cropped and mirrored (`augment`).
        seed (`int`): Random seed for the augmented views.

    Raises:
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        model: HyCIRModel,
        processor: HyCIRProcessor,
        dtype: str = "float32",
        num_views: int = 1,
        seed: int = 0,
    ) -> None:
        if dtype not in DTYPES or num_views < 1:
            raise ValueError(f"dtype must be one of {DTYPES} and num_views at least 1, not {dtype!r} and {num_views}.")
        self.model, self.processor = model, processor
        self.dtype, self.num_views, self.seed = dtype, num_views, seed
        self.settings: Mapping[str, Any] = {
            "dtype": dtype,
            "num_views": num_views,
            "seed": seed if num_views > 1 else None,
            "encoder": model.encoder_fingerprint(),
            "preprocessing": preprocessing_fingerprint(processor),
        }

    def prepare(self, image_id: str, image: Any) -> list[Any]:
        """Make the encoder's inputs for each view of one image.

        They are small, while a batch of decoded photographs can fill the memory: 64 of 12 megapixels take 2 GB.
        """
        image = load_image(image)
        views = [image, *(augment(image, [self.seed, view], image_id) for view in range(1, self.num_views))]
        return [self.processor(images=[view], return_tensors="pt") for view in views]

    def encode(self, prepared: Sequence[list[Any]]) -> np.ndarray:
        """Encode B prepared images into `(B, V, D)`, not normalised.

        Raises:
            ValueError: If a feature is not finite in `dtype`.
        """
        features = self.encode_inputs([one for views in prepared for one in views])  # (B * V, D)
        features = features.numpy().astype(self.dtype)
        if not np.isfinite(features).all():
            raise ValueError(f"Some features are not finite in {self.dtype}. Use float32, or check the weights.")
        return features.reshape(len(prepared), self.num_views, -1)

    @torch.inference_mode()
    def encode_inputs(self, inputs: Sequence[Any]) -> Tensor:
        """Encode the processor's inputs of B single images in one batch: `(B, D)`, float32 on the CPU."""
        batch = {name: torch.cat([one[name] for one in inputs]).to(self.model.device) for name in inputs[0]}
        return self.model.get_image_features(**batch, normalize=False).float().cpu()


class FeatureStore:
    """Stored features of a source's images, read from disk as they are asked for.

    Make one with `build_features`; open one with `FeatureStore.open`.

    Args:
        store (`ImageStore`): A complete store that a `FeatureEncoder` filled.
    """

    def __init__(self, store: ImageStore) -> None:
        self.store = store

    @classmethod
    def open(cls, directory: str | os.PathLike, encoder_fingerprint: str | None = None) -> "FeatureStore":
        """Open features that `hycir features` stored, or those of a gallery that `hycir index` made.

        Args:
            directory (`str` or `Path`): Folder of the features or of the gallery.
            encoder_fingerprint (`str`, *optional*): `HyCIRModel.encoder_fingerprint()` of the model that will use them.

        Raises:
            FileNotFoundError: If there are none, or they are not complete.
            ValueError: If another encoder made them.
        """
        features = cls(ImageStore.open(features_directory(directory)))
        if encoder_fingerprint is not None:
            features.check("encoder", encoder_fingerprint)
        return features

    def __len__(self) -> int:
        return len(self.store.ids)

    @property
    def ids(self) -> list[str]:
        """Ids of the images, in the order of their source."""
        return self.store.ids

    @property
    def num_views(self) -> int:
        """V, the number of views of each image."""
        return self.store.settings["num_views"]

    @property
    def shape(self) -> tuple[int, ...]:
        """`(N, V, D)`."""
        return (len(self), *self.store.value_shape)

    def read(self, rows: Sequence[int] | np.ndarray, views: np.ndarray | int = 0) -> Tensor:
        """Read the features of some images.

        Args:
            rows (`Sequence[int]` of length B): Row numbers.
            views (`np.ndarray` of shape `(B,)` or `int`): Which view of each; the plain one by default.

        Returns:
            `torch.FloatTensor` of shape `(B, D)`: float32, not normalised.
        """
        return torch.from_numpy(self.store.read(rows, views).astype(np.float32))

    def read_unit(self) -> np.ndarray:
        """Read all plain features, `(N, D)` float32, normalised: what a gallery searches."""
        return unit_rows(self.store.read(range(len(self))))

    def skipped_ids(self) -> list[str]:
        """Ids of the images that could not be read."""
        return [id_ for id_, _ in self.store.skipped]

    def check(self, what: str, fingerprint: str) -> None:
        """Raise ValueError unless the features' "encoder" or "preprocessing" has this fingerprint."""
        found = self.store.settings[what]
        if found != fingerprint:
            raise ValueError(
                f"The features in {self.store.directory} were made by another {what} (fingerprint {found}, not "
                f"{fingerprint}). Use the {what} that made them, or make new features in another folder."
            )


def build_features(
    model: HyCIRModel,
    processor: HyCIRProcessor,
    source: ImageSource | ImageStream,
    directory: str | os.PathLike,
    *,
    dtype: str = "float16",
    num_views: int = 1,
    seed: int = 0,
    **options: Any,
) -> tuple[FeatureStore | None, EncodingReport]:
    """Store the features of a source's images. If interrupted, the same call resumes.

    Args:
        model (`HyCIRModel`): Its image encoder makes the features.
        processor (`HyCIRProcessor`): The model's.
        source (`ImageSource` or `ImageStream`): From `open_images`, or a stream.
        directory (`str` or `Path`): Folder of the features.
        dtype (`str`): "float16" or "float32".
        num_views (`int`): V, see `FeatureEncoder`.
        seed (`int`): Random seed for the augmented views.
        **options: `batch_size`, `num_shards`, `shard_index`, `num_workers`, `progress`, `on_skip` of `encode_images`.

    Returns:
        `tuple[FeatureStore | None, EncodingReport]`: None where other shards have still to finish.

    Raises:
        ValueError: If the folder holds features made with other settings, or no image can be read.
        OSError: If the storage fails; what was encoded before is kept.
    """
    encoder = FeatureEncoder(model, processor, dtype, num_views, seed)
    store, report = encode_images(source, encoder, directory, label="Features", **options)
    if not store.is_complete:
        return None, report
    check_not_empty(store)
    return FeatureStore(store), report


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Normalise features `(N, D)` to unit L2 norm, float32."""
    return F.normalize(torch.from_numpy(np.asarray(features, np.float32)), dim=-1).numpy()


def check_not_empty(store: ImageStore) -> None:
    """Raise ValueError if not one image could be read."""
    if not store.ids:
        id_, reason = store.skipped[0] if store.skipped else ("-", "there is none")
        raise ValueError(f"None of {len(store.skipped)} images could be read. The first: {id_}: {reason}")


def features_directory(directory: str | os.PathLike) -> Path:
    """Where the features of a folder lie: a gallery keeps its own in "features"."""
    inner = Path(directory) / "features"
    return inner if (inner / "manifest.json").is_file() else Path(directory)


def preprocessing_fingerprint(processor: HyCIRProcessor) -> str:
    """Identify how images become the encoder's inputs, by the image processor's settings: 16 hex digits."""
    image_processor = getattr(processor, "image_processor", processor)
    to_json = getattr(image_processor, "to_json_string", None)
    settings = json.loads(to_json()) if to_json is not None else type(image_processor).__name__
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def check_images(
    features: FeatureStore,
    model: HyCIRModel,
    processor: HyCIRProcessor,
    source: ImageSource | ImageStream,
    has_same_ids: bool,
) -> None:
    """Check that stored features were made from a source's images, by ids and by 16 of the images.

    An image with the stored stamp is the same; another one is encoded again and its feature compared.

    Args:
        features (`FeatureStore`): The features.
        model (`HyCIRModel`): The model that made them.
        processor (`HyCIRProcessor`): The model's.
        source (`ImageSource` or `ImageStream`): The images.
        has_same_ids (`bool`): Whether both must hold the same images, or only agree where both have one.

    Raises:
        ValueError: If they were made from other images.
    """
    rows = {id_: row for row, id_ in enumerate(features.ids)}
    difference = _different_ids({*rows, *features.skipped_ids()}, source) if has_same_ids else None
    encoder, stamps = FeatureEncoder(model, processor), features.store.stamps()
    for id_, stamp, load in () if difference else _spread(source):
        is_in_doubt = id_ in rows and stamps[rows[id_]] != stamp
        if is_in_doubt and not _is_same(features.read([rows[id_]])[0], encoder, id_, load):
            difference = f"the image {id_!r} has other features now"
            break
    if difference is not None:
        raise ValueError(
            f"The features in {features.store.directory} were made from other images: {difference}. Make new features "
            "in another folder, or give the images that they were made from."
        )


def _different_ids(known: set[str], source: ImageSource | ImageStream) -> str | None:
    """Describe the first mismatch between a source's ids and stored ones; of a stream only the first 16 are checked."""
    ids = [id_ for id_, _ in itertools.islice(source, NUM_COMPARED)] if isinstance(source, ImageStream) else source.ids
    new = next((id_ for id_ in ids if id_ not in known), None)
    if new is not None:
        return f"the image {new!r} is not among them"
    if not isinstance(source, ImageStream) and len(known) > len(ids):
        return f"the image {min(known.difference(ids))!r} is no longer there"
    return None


def _is_same(found: Tensor, encoder: FeatureEncoder, image_id: str, load: Callable[[], Any]) -> bool:
    """Whether an image still has the stored feature `(D,)`; one that cannot be read now is not compared."""
    try:
        feature = encoder.encode_inputs(encoder.prepare(image_id, load()))[0]
    except Exception as error:  # a decoder may raise anything on a damaged file
        logger.debug("Not compared: %s", error)
        return True
    return bool((found - feature).norm() <= TOLERANCE * feature.norm())


def _spread(source: ImageSource | ImageStream) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Images spread evenly over a source, or the first ones of a stream: id, stamp, and how to load it."""
    if isinstance(source, ImageStream):
        yield from ((id_, "", partial(load_image, image)) for id_, image in itertools.islice(source, NUM_COMPARED))
        return
    for row in sorted({int(row) for row in np.linspace(0, len(source.ids) - 1, NUM_COMPARED)}):
        yield source.ids[row], source.stamp(row), partial(source.load, row)


def augment(image: Image.Image, seed: list[int], image_id: str) -> Image.Image:
    """Crop 90 to 100% of an image at random, as open_clip and Pic2Word do, and mirror every other one.

    Args:
        image (`PIL.Image.Image`): RGB.
        seed (`list[int]`): With the id it determines the view.
        image_id (`str`): The image's id.

    Returns:
        `PIL.Image.Image`: Smaller by the crop.
    """
    digest = int.from_bytes(hashlib.sha256(image_id.encode("utf-8", "surrogateescape")).digest()[:8], "big")
    rng = np.random.default_rng([*seed, digest])
    side = np.sqrt(rng.uniform(0.9, 1.0))
    width, height = (max(1, round(side * length)) for length in image.size)
    left, top = (int(rng.integers(0, all_ - part + 1)) for all_, part in zip(image.size, (width, height), strict=True))
    # A crop: `Image.crop` refuses what is larger than Pillow's limit.
    box = (left, top, left + width, top + height)
    cropped = image.resize((width, height), Image.Resampling.NEAREST, box)
    return ImageOps.mirror(cropped) if rng.random() < 0.5 else cropped
