"""`hycir gallery`: a gallery's images. Subcommands: add, remove, list, info, export."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter
from cyclopts.types import PositiveInt

import hycir_hf

from ..files import atomic_file
from ..settings import ParameterError
from .index import index_report, print_skip
from .models import quiet
from .options import Common, Device, OutputFile, Report, Switch, shown

if TYPE_CHECKING:
    from typing import BinaryIO

    import numpy as np

    from ..retrieval import Gallery

app = App(
    name="gallery",
    help="Add, remove, list and export a gallery's images.",
    help_epilogue="""\
Examples:
  hycir gallery add gallery more_photos one.jpg
  hycir gallery remove gallery cat.jpg dog.jpg
  hycir gallery export gallery features.parquet""",
)


@app.command(help_epilogue="Example:\n  hycir gallery add gallery more_photos one.jpg", sort_key=1)
def add(
    gallery: str,
    images: Annotated[list[str], Parameter(negative=())],
    /,
    *,
    model: Annotated[str | None, Parameter(alias="-m")] = None,
    batch_size: PositiveInt = 64,
    skipped: OutputFile = None,
    strict: Switch = False,
    device: Device = None,
    common: Common | None = None,
) -> Report:
    """Add folders and image files. Only new and changed images are encoded.

    The ids of images from another folder begin with that folder's name. `hycir index` makes the gallery hold the
    images of one place again.

    Args:
        gallery: Folder that `hycir index` made.
        images: Folders and image files.
        model: HyCIR model: folder or Hub id. By default the one that made the gallery.
        batch_size: Images that are encoded at once.
        skipped: Write the images that were skipped, with the reasons, to this file (tab-separated).
        strict: Exit with status 3 if an image was skipped.
    """
    quiet()
    encoder = hycir_hf.ImageRetriever.load(gallery, model, device).encoder
    report = hycir_hf.retrieval.add_images(
        encoder.image_encoder(),
        gallery,
        images,
        encoder_fingerprint=encoder.fingerprint,
        batch_size=batch_size,
        on_skip=print_skip,
    )
    return index_report(gallery, report, report.gallery.index_type, skipped, strict)


@app.command(help_epilogue="Example:\n  hycir gallery remove gallery cat.jpg dog.jpg", sort_key=2)
def remove(
    gallery: str, ids: Annotated[list[str], Parameter(negative=())], /, *, common: Common | None = None
) -> Report:
    """Take images out of a gallery. Their files stay, and `hycir index` takes them in again.

    Args:
        gallery: Folder that `hycir index` made.
        ids: Ids of the images, as `hycir gallery list` shows them.
    """
    left = hycir_hf.retrieval.remove_images(gallery, ids)
    removed = sorted(set(ids))
    return Report(
        {"gallery": gallery, "removed": removed, "count": len(left)},
        [f"{len(removed)} removed, {len(left)} images left in {gallery}"],
    )


@app.command(name="list", help_epilogue="Example:\n  hycir gallery list gallery --contains 2024/", sort_key=3)
def list_ids(gallery: str, /, *, contains: str = "", common: Common | None = None) -> Report:
    """List the ids of a gallery's images, one on each line.

    Args:
        gallery: Folder that `hycir index` made.
        contains: Only ids that contain this text.
    """
    ids = [id_ for id_ in hycir_hf.Gallery.load(gallery, mmap=True).ids if contains in id_]
    return Report({"gallery": gallery, "ids": ids}, [shown(id_) for id_ in ids])


@app.command(help_epilogue="Example:\n  hycir gallery info gallery", sort_key=4)
def info(gallery: str, /, *, images: str | None = None, common: Common | None = None) -> Report:
    """Show how many images a gallery holds, what made it, and whether its images can be found.

    Args:
        gallery: Folder that `hycir index` made.
        images: Folder of the gallery's images, if they have moved.
    """
    opened = hycir_hf.Gallery.load(gallery, mmap=True)
    source = opened.source if images is None else hycir_hf.retrieval.moved_source(opened.source, images)
    parts = (source or {}).get("parts", [source] if source else [])
    places = [str(part.get("path", part["type"])) for part in parts]
    values = {
        "gallery": gallery,
        "count": len(opened),
        "dim": opened.dim,
        "index_type": opened.index_type,
        "bytes": sum(path.stat().st_size for path in Path(gallery).rglob("*") if path.is_file()),
        "model": opened.model_path,
        "encoder_fingerprint": opened.encoder_fingerprint,
        "images": places,
        "images_found": _images_found(opened, gallery, source),
    }
    width = max(map(len, values))
    shown_values = {
        **values,
        "images": ", ".join(map(shown, places)),
        "images_found": "yes" if values["images_found"] else "no",
    }
    return Report(values, [f"{name.replace('_', ' '):{width}}  {value}" for name, value in shown_values.items()])


@app.command(help_epilogue="Example:\n  hycir gallery export gallery features.parquet", sort_key=5)
def export(gallery: str, output: str, /, *, common: Common | None = None) -> Report:
    """Write ids and features (unit norm, float32) to one file for other programs.

    Args:
        gallery: Folder that `hycir index` made.
        output: File to write: .npz (numpy: ids, features), .parquet (image_id, features) or .safetensors (features; the
            ids are JSON in its metadata).
    """
    writers = {".npz": _write_numpy, ".parquet": _write_parquet, ".safetensors": _write_safetensors}
    suffix = Path(output).suffix.lower()
    if suffix not in writers:
        raise ParameterError(f"{output} must end in one of {list(writers)}.", "output")
    opened = hycir_hf.Gallery.load(gallery, mmap=True)
    features = hycir_hf.retrieval.read_features(opened, gallery)
    with atomic_file(output) as file:
        writers[suffix](file, opened, features)
    values = {"output": output, "count": len(opened), "dim": opened.dim}
    return Report(values, [f"{len(opened)} features of width {opened.dim} in {output}"])


def _images_found(gallery: "Gallery", directory: str, source: dict | None) -> bool:
    gallery.source = source
    try:
        images = hycir_hf.retrieval.open_gallery_images(gallery, directory)
        return not len(gallery) or images.load(gallery.ids[0]) is not None
    except (ValueError, OSError):
        return False


def _facts(gallery: "Gallery") -> dict[str, str]:
    facts = {"model": gallery.model_path, "encoder_fingerprint": gallery.encoder_fingerprint}
    return {name: value for name, value in facts.items() if value is not None}


def _write_numpy(file: "BinaryIO", gallery: "Gallery", features: "np.ndarray") -> None:
    import numpy as np

    np.savez(file, ids=np.array(gallery.ids, dtype=str), features=features)


def _write_parquet(file: "BinaryIO", gallery: "Gallery", features: "np.ndarray") -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), gallery.dim)
    ids = [id_.encode(errors="backslashreplace").decode() for id_ in gallery.ids]  # file names need not be UTF-8
    pq.write_table(pa.table({"image_id": ids, "features": column}, metadata=_facts(gallery)), file)


def _write_safetensors(file: "BinaryIO", gallery: "Gallery", features: "np.ndarray") -> None:
    from safetensors.numpy import save

    file.write(save({"features": features}, {"ids": json.dumps(gallery.ids), **_facts(gallery)}))
