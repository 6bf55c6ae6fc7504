"""One object for the common job: encode, index and search images by images and texts.

`ComposedEncoder` is the protocol that the rest of the package works with. `HyCIREncoder` is its first implementation,
`OnnxEncoder` runs the same model through onnxruntime.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch

from .images import FeatureEncoder, FeatureStore, ImageEncoder, ImageSource, encode_list, open_images
from .images.features import unit_rows
from .images.store import is_store
from .modeling_hycir import HyCIRModel
from .names import EXPORT_MANIFEST, naming_model, resolve_model
from .processing_hycir import HyCIRProcessor
from .retrieval import Gallery, IndexReport, RetrievalResults, index_images, moved_source, read_references
from .retrieval.queries import compose, encode_texts
from .retrieval.terms import WITHOUT_WEIGHT, Query, encode_terms, read_terms
from .settings import ParameterError

BATCH_SIZE = 64


class ComposedEncoder(Protocol):
    """Anything that turns images, texts, and images with texts, into vectors of one space.

    Attributes:
        fingerprint (`str`): Changes when the vectors would change.
        name (`str`, *optional*): Folder or Hub id of the model; a gallery records it.
    """

    fingerprint: str
    name: str | None

    def image_encoder(self) -> ImageEncoder:
        """What makes the features that a gallery stores, `(N, 1, D)`; they are normalised when they are searched."""

    def encode_images(self, images: Sequence[Any]) -> np.ndarray:
        """Encode N images: `(N, D)`, unit L2 norm."""

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Encode N texts: `(N, D)`, unit L2 norm."""

    def encode_queries(self, images: Sequence[Any], texts: Sequence[str]) -> np.ndarray:
        """Encode N composed queries, each of one or several images and a text: `(N, D)`, unit L2 norm."""


class HyCIREncoder:
    """A HyCIR model and its processor as a `ComposedEncoder`.

    Args:
        model (`HyCIRModel`): Put in eval mode; it stays on its device.
        processor (`HyCIRProcessor`): The model's.
        name (`str`, *optional*): Folder or Hub id of the model; by default where it was loaded from.
    """

    def __init__(self, model: HyCIRModel, processor: HyCIRProcessor, name: str | None = None) -> None:
        self.model, self.processor = model.eval(), processor
        self.name = name or model.name_or_path or None
        self.fingerprint = model.encoder_fingerprint()

    @classmethod
    def from_pretrained(cls, name: str, device: str | torch.device | None = None) -> "HyCIREncoder":
        """Load a HyCIR model and its processor.

        Args:
            name (`str`): Folder or Hub id.
            device (`str`, *optional*): Where it runs; by default a GPU if there is one.

        Raises:
            ValueError: If there is no model of that name.
        """
        resolve_model(name)
        with naming_model(name):
            model, processor = HyCIRModel.from_pretrained(name), HyCIRProcessor.from_pretrained(name)
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(model, processor, name)

    def image_encoder(self) -> FeatureEncoder:
        """See `ComposedEncoder.image_encoder`."""
        return FeatureEncoder(self.model, self.processor)

    def encode_images(self, images: Sequence[Any]) -> np.ndarray:
        """See `ComposedEncoder.encode_images`.

        Raises:
            ValueError: If an image is broken.
        """
        features = encode_list(images, self.image_encoder(), batch_size=BATCH_SIZE, progress=False)  # (N, 1, D)
        return unit_rows(features[:, 0])

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """See `ComposedEncoder.encode_texts`."""
        return encode_texts(self.model, self.processor, texts).float().cpu().numpy()

    def compose(self, references: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
        """Compose references' features `(Q, D)`, not normalised, with query texts: `(Q, D)`, unit L2 norm."""
        return compose(self.model, self.processor, references.to(self.model.device), texts)

    def encode_queries(self, images: Sequence[Any], texts: Sequence[str]) -> np.ndarray:
        """Compose images with query texts by the mapper (paper: Model architecture).

        Args:
            images (`Sequence` of length N): One image or a list of images for each query.
            texts (`Sequence[str]` of length N): Query texts; "" asks for the image alone.

        Returns:
            `np.ndarray` of shape `(N, D)`: Unit L2 norm.

        Raises:
            ValueError: If an image is broken, or images and texts differ in number.
        """
        if len(images) != len(texts):
            raise ValueError(
                f"Expected one text for each query, but found {len(images)} images and {len(texts)} texts."
            )
        parts = []
        with torch.inference_mode():
            for start in range(0, len(texts), BATCH_SIZE):
                rows, batch = images[start : start + BATCH_SIZE], texts[start : start + BATCH_SIZE]
                inputs = self.processor(images=list(rows), text=list(batch), return_tensors="pt")
                features = self.model.get_composed_features(**inputs.to(self.model.device))  # (B, D)
                parts.append(features.float().cpu().numpy())
        return np.concatenate(parts)  # (N, D)


class OnnxEncoder(HyCIREncoder):
    """ONNX graphs that `hycir export` wrote, run by onnxruntime, as a `ComposedEncoder`.

    The fingerprint is that of the graphs' files, so a gallery belongs to the graphs that made it.
    """

    @classmethod
    def from_pretrained(cls, name: str, device: str | torch.device | None = None) -> "OnnxEncoder":
        """Load graphs and processor. Arguments are as in `HyCIREncoder.from_pretrained`.

        Raises:
            ImportError: If the extra `onnx` is not installed.
        """
        from .onnx_model import OnnxModel

        return cls(cast(Any, OnnxModel(resolve_model(name), device)), HyCIRProcessor.from_pretrained(name), name)


def encoder_class(name: str) -> type[HyCIREncoder]:
    """Choose the class for a model's folder or Hub id: `OnnxEncoder` for a folder of exported graphs."""
    return OnnxEncoder if Path(resolve_model(name), EXPORT_MANIFEST).is_file() else HyCIREncoder


def open_for_index(
    images: str | os.PathLike | Sequence[str] | ImageSource | FeatureStore,
    split: str | None = None,
    image_column: str | None = None,
    id_column: str | None = None,
) -> ImageSource | FeatureStore:
    """Open what `ImageRetriever.index` takes; arguments as there.

    Raises:
        ValueError: If there is nothing to open.
    """
    if isinstance(images, list | tuple):
        images = "::".join(images)
    if not isinstance(images, str | os.PathLike):
        return cast(ImageSource, images)
    return FeatureStore.open(images) if is_store(images) else open_images(str(images), split, image_column, id_column)


def _load_gallery(directory: str | os.PathLike, images: str | os.PathLike | None) -> Gallery:
    """Load a gallery whose images may have moved."""
    gallery = Gallery.load(directory)
    if images is not None:
        gallery.source = moved_source(gallery.source, images)
    return gallery


class ImageRetriever:
    """Search your own images by an image, a text, or both.

    Example:
        >>> retriever = ImageRetriever.from_pretrained("OWNER/model")
        >>> retriever.index("photos", "gallery")
        >>> retriever.search("photos/cat.jpg", "make it black", k=5)

    Args:
        encoder (`ComposedEncoder`): Encodes images, texts and queries.
        gallery (`Gallery`, *optional*): What is searched; `index` makes one.
        directory (`str` or `Path`, *optional*): The gallery's folder, from which references are found by id or path.

    Raises:
        ValueError: If another encoder made the gallery.
    """

    def __init__(
        self, encoder: ComposedEncoder, gallery: Gallery | None = None, directory: str | os.PathLike | None = None
    ) -> None:
        if gallery is not None:
            gallery.check_encoder(encoder.fingerprint)
        self.encoder, self._gallery = encoder, gallery
        self.directory = Path(directory) if directory is not None else None
        self._moved_images: str | os.PathLike | None = None

    @classmethod
    def from_pretrained(cls, name: str, device: str | torch.device | None = None) -> "ImageRetriever":
        """Load a model by its folder or Hub id.

        Args:
            name (`str`): Folder or Hub id of a HyCIR model, or of the ONNX graphs that `hycir export` made of one.
            device (`str`, *optional*): Where it runs; by default a GPU if there is one.

        Raises:
            ValueError: If there is no model of that name.
        """
        return cls(encoder_class(name).from_pretrained(name, device))

    @classmethod
    def load(
        cls,
        directory: str | os.PathLike,
        model: str | None = None,
        device: str | torch.device | None = None,
        images: str | os.PathLike | None = None,
    ) -> "ImageRetriever":
        """Load a gallery and the model that made it.

        Args:
            directory (`str` or `Path`): A folder that `index`, `save` or `hycir index` wrote.
            model (`str`, *optional*): Folder or Hub id of the model, if it is no longer where the gallery says.
            device (`str`, *optional*): Where the model runs; by default a GPU if there is one.
            images (`str` or `Path`, *optional*): Folder of the images, if they are no longer where the gallery says.

        Raises:
            FileNotFoundError: If the folder holds no gallery.
            ValueError: If the gallery names no model, another model made it, or `images` is not there.
        """
        gallery = _load_gallery(directory, images)
        name = model or gallery.model_path
        if name is None:
            raise ValueError(f"The gallery {directory} does not say which model made it. Give it as model.")
        retriever = cls(encoder_class(name).from_pretrained(name, device), gallery, directory)
        retriever._moved_images = images
        return retriever

    @property
    def gallery(self) -> Gallery:
        """What is searched; ValueError if nothing was indexed or loaded."""
        if self._gallery is None:
            raise ValueError("There is no gallery to search yet. Call index(images, output), or use load(directory).")
        return self._gallery

    def index(
        self,
        images: str | os.PathLike | Sequence[str] | ImageSource | FeatureStore,
        output: str | os.PathLike,
        *,
        index_type: str = "flat",
        batch_size: int = BATCH_SIZE,
        split: str | None = None,
        image_column: str | None = None,
        id_column: str | None = None,
        progress: bool = True,
        on_skip: Callable[[str, str], None] | None = None,
    ) -> IndexReport:
        """Index images into a folder, to be searched now and later; only new and changed images are encoded.

        Args:
            images (`str`, `Path`, `list[str]` or `ImageSource`): A folder, tar shards, a .tsv, or PATH[:CONFIG] of a
                dataset. Or a folder that `hycir features` made with the same encoder: then nothing is encoded.
            output (`str` or `Path`): The gallery's folder.
            index_type (`str`): See `Gallery.from_features`.
            batch_size (`int`): Images encoded at once.
            split (`str`, *optional*): Needed for a dataset with several.
            image_column (`str`, *optional*): Of a dataset; by default "image", or the only one of type Image.
            id_column (`str`, *optional*): Of a dataset; by default "image_id", or else the row number.
            progress (`bool`): Whether to show a progress bar.
            on_skip (function, *optional*): Called with id and reason of each image that cannot be read.

        Returns:
            `IndexReport`: The gallery, how many images were encoded and reused, and which were added, changed, removed
            and skipped.

        Raises:
            ValueError: If there are no images, or none can be read.
        """
        name = self.encoder.name
        report = index_images(
            self.encoder.image_encoder(),
            open_for_index(images, split, image_column, id_column),
            output,
            encoder_fingerprint=self.encoder.fingerprint,
            model_path=str(Path(name).resolve()) if name and Path(name).exists() else name,
            index_type=index_type,
            batch_size=batch_size,
            progress=progress,
            on_skip=on_skip,
        )
        self._gallery, self.directory = report.gallery, Path(output)
        return report

    def search(
        self,
        image: Any = None,
        text: Any = "",
        k: int = 10,
        *,
        without: Any = (),
        exclude_ids: Sequence[str] = (),
        restrict_to: Sequence[str] | None = None,
        keep_reference: bool = False,
    ) -> RetrievalResults:
        """Find the images that a reference image and a text ask for.

        Args:
            image (*optional*): The reference: a path, a gallery id, or an image in memory; or a list of several. None
                searches by the text alone.
            text (`str`): What to change, or a list of several texts; "" searches by the image alone.
            k (`int`): Number of results.
            without (`str`): What results should not show, or a list of several texts. Each image and text, here too,
                may be a `(term, weight)` pair; `retrieval.terms` has the arithmetic.
            exclude_ids (`Sequence[str]`): Gallery ids that are left out.
            restrict_to (`Sequence[str]`, *optional*): The only gallery ids that are searched.
            keep_reference (`bool`): Whether a reference that is itself in the gallery may be found.

        Returns:
            `RetrievalResults` with one row: `results[0]` holds (id, score) pairs, best first.

        Raises:
            ValueError: If there is neither image nor text, an image is broken or unknown, a weight is not above 0, or
                the terms cancel out.
        """
        terms = read_terms(image)
        references = read_references(self.gallery, self.directory, [term for term, _ in terms])
        images = [(one, weight) for one, (_, weight) in zip(references.images, terms, strict=True)]
        query = Query(images, read_terms(text), read_terms(without, WITHOUT_WEIGHT))
        features = encode_terms(self.encoder, [query])  # (1, D)
        if not features.any():
            raise ParameterError("The terms of the query cancel out. Change a weight.", "text", "without")
        for name, ids in (("exclude_ids", exclude_ids), ("restrict_to", restrict_to)):
            if isinstance(ids, str):
                raise ValueError(f"{name} must be a list of ids, not the string {ids!r}. Wrap it in a list.")
        excluded = sorted({*exclude_ids, *([] if keep_reference else references.gallery_ids)})
        candidates = None if restrict_to is None else list(restrict_to)
        return self.gallery.search(features, k=k, exclude_ids=excluded, restrict_to=candidates)

    def encode(self, images: Sequence[Any] | None = None, texts: Sequence[str] | None = None) -> np.ndarray:
        """Encode images, texts, or composed queries of both.

        Args:
            images (`Sequence` of length N, *optional*): Paths, PIL images, bytes or arrays; or a list for each query.
            texts (`Sequence[str]` of length N, *optional*): Texts.

        Returns:
            `np.ndarray` of shape `(N, D)`: Unit L2 norm.

        Raises:
            ValueError: If there is neither, or images and texts differ in number.
        """
        if images is not None and texts is not None:
            return self.encoder.encode_queries(images, texts)
        if images is not None:
            return self.encoder.encode_images(images)
        if texts is not None:
            return self.encoder.encode_texts(texts)
        raise ValueError("Give images, texts, or both.")

    def reloaded(self) -> "ImageRetriever":
        """Load the gallery anew from its folder, with the same model.

        Raises:
            FileNotFoundError: If there is no gallery there any more.
            ValueError: If its files are damaged, or another model made it.
        """
        gallery = _load_gallery(self.directory or "", self._moved_images)
        again = ImageRetriever(self.encoder, gallery, self.directory)
        again._moved_images = self._moved_images
        return again

    def save(self, directory: str | os.PathLike) -> None:
        """Save the gallery into a folder, which `load` and `hycir search` read."""
        self.gallery.save(directory)
