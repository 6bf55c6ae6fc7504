"""From a source of images to a gallery folder; only new and changed images are encoded.

The folder keeps the features beside the index, in "features" (an `ImageStore`). So a second run, after an interruption
or after images were added, changed or removed, encodes only what is new. Training can read the features from there.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..files import single_writer
from ..images import FeatureStore, FolderSource, ImageEncoder, ImageSource, ImageStore, encode_images
from ..images.features import check_not_empty, unit_rows
from ..images.store import holds_settings
from .gallery import Gallery
from .gallery_files import MANIFEST_NAME
from .indexes import check_index_type

FEATURES_NAME = "features"


@dataclass
class IndexReport:
    """What `index_images` did, compared with the gallery that was there before.

    Args:
        gallery (`Gallery`): As saved.
        num_encoded (`int`): Images encoded by this call.
        num_reused (`int`): Images whose features were stored before.
        skipped (`list[tuple[str, str]]`): Id and reason of each image that is not in the gallery.
        seconds (`float`): Encoding time of this call.
        added (`list[str]`): Ids that are new.
        changed (`list[str]`): Ids that stayed, of images that are others now.
        removed (`list[str]`): Ids that are gone.
        kept (`int`): Number of images that stayed as they were.
    """

    gallery: Gallery
    num_encoded: int
    num_reused: int
    skipped: list[tuple[str, str]]
    seconds: float
    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    kept: int = 0


def index_images(
    encoder: ImageEncoder,
    source: ImageSource | FeatureStore | Callable[[], ImageSource],
    output: str | os.PathLike,
    *,
    encoder_fingerprint: str | None = None,
    model_path: str | None = None,
    index_type: str = "flat",
    batch_size: int = 64,
    num_workers: int | None = None,
    progress: bool = True,
    on_skip: Callable[[str, str], None] | None = None,
) -> IndexReport:
    """Encode a source's new and changed images, and save all of its images as a gallery.

    If interrupted, the same call resumes. Features made with other settings (another model, other preprocessing) are
    replaced.

    Args:
        encoder (`ImageEncoder`): Makes the features, such as `FeatureEncoder(model, processor)`.
        source (`ImageSource` or `FeatureStore`): See `open_images`; or stored features of the same encoder, of which
            the gallery is made without encoding. A function is called once no other process writes to `output`.
        output (`str` or `Path`): The gallery's folder; a gallery that it holds is replaced.
        encoder_fingerprint (`str`, *optional*): Identifies the encoder of the gallery; checked by searches.
        model_path (`str`, *optional*): Recorded in the manifest for `hycir search`.
        index_type (`str`): See `Gallery.from_features`.
        batch_size (`int`): Images encoded at once.
        num_workers (`int`, *optional*): Threads that read images.
        progress (`bool`): Whether to show a progress bar.
        on_skip (function, *optional*): Called with id and reason of each image that cannot be read; logged by default.

    Raises:
        ValueError: If no image can be read, the index type needs more images, or another process writes there.
        OSError: If the storage fails; what was encoded before is kept.
    """
    check_index_type(index_type)
    output = Path(output)
    if isinstance(source, FolderSource) and source.root.resolve() == output.resolve():
        raise ValueError(f"{output} is the folder of the images. Choose another folder for the gallery.")
    with single_writer(output / ".lock", output):
        directory, before = output / FEATURES_NAME, read_stamps(output)
        source = source() if callable(source) else source
        if isinstance(source, FeatureStore):
            source.check("encoder", encoder.settings["encoder"])
            gallery = gallery_of_store(source.store, encoder_fingerprint, model_path, index_type)
            gallery.save(output)
            if source.store.directory.resolve() != directory.resolve():
                ImageStore.remove(directory)
            made = IndexReport(gallery, 0, len(gallery), source.store.skipped, 0.0)
            return _compared(made, before, source.store)
        if not holds_settings(directory, encoder.settings):
            ImageStore.remove(directory)
        store, report = encode_images(
            source,
            encoder,
            directory,
            batch_size=batch_size,
            num_workers=num_workers,
            label="Indexing",
            progress=progress,
            on_skip=on_skip,
        )
        check_not_empty(store)
        gallery = gallery_of_store(store, encoder_fingerprint, model_path, index_type, source.describe(output))
        gallery.save(output)
    skipped = [*getattr(source, "skipped", ()), *store.skipped]
    done = IndexReport(gallery, report.num_encoded, report.num_reused, skipped, report.seconds)
    return _compared(done, before, store)


def read_stamps(output: Path) -> dict[str, str]:
    """Id -> stamp of each image in a gallery's folder; "" where the gallery has no features of its own."""
    if not (output / MANIFEST_NAME).is_file():
        return {}
    try:
        ids = Gallery.load(output, mmap=True).ids
    except ValueError:  # damaged or of another version: all is made anew
        return {}
    try:
        store = ImageStore.open(output / FEATURES_NAME)
    except (FileNotFoundError, ValueError):
        return dict.fromkeys(ids, "")
    stamps = dict(zip(store.ids, store.stamps(), strict=True))
    return {id_: stamps.get(id_, "") for id_ in ids}


def _compared(report: IndexReport, before: dict[str, str], store: ImageStore) -> IndexReport:
    """Fill in what was added, changed, removed and kept."""
    now = dict(zip(store.ids, store.stamps(), strict=True))
    report.added = [id_ for id_ in now if id_ not in before]
    report.changed = [id_ for id_, stamp in now.items() if before.get(id_, "") not in ("", stamp)]
    report.removed = [id_ for id_ in before if id_ not in now]
    report.kept = len(now) - len(report.added) - len(report.changed)
    return report


def gallery_of_store(
    store: ImageStore,
    encoder_fingerprint: str | None,
    model_path: str | None = None,
    index_type: str = "flat",
    source: dict[str, Any] | None = None,
) -> Gallery:
    """Make a gallery of stored features without encoding anything.

    Args:
        store (`ImageStore`): Complete; its plain view is used.
        encoder_fingerprint (`str`, *optional*): Of the encoder that made the features.
        model_path (`str`, *optional*): Recorded in the manifest.
        index_type (`str`): See `Gallery.from_features`.
        source (`dict`, *optional*): Where the images lie; by default as the store says.
    """
    features = unit_rows(store.read(np.arange(len(store.ids))))  # (N, D)
    return Gallery.from_features(
        features,
        store.ids,
        encoder_fingerprint=encoder_fingerprint,
        index_type=index_type,
        model_path=model_path,
        source=source or store.source,
    )
