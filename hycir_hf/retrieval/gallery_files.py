"""A gallery's folder: index, ids and the manifest that names them. A kill leaves the old or the new one whole.

Index and ids are written under new names and forced to disk. Then one rename puts the new manifest in place of the old.
One writer at a time.
"""

import logging
import secrets
from pathlib import Path
from typing import Any

from .. import __version__
from ..files import read_record, sync, write_json
from ..formats import GALLERY, GALLERY_IDS
from ..images.stamps import locate, locations
from . import indexes
from .indexes import faiss

logger = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"


def write_gallery(directory: Path, index: Any, entries: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write a gallery into a folder; one that it holds is replaced.

    Args:
        directory (`Path`): Made if missing.
        index (`faiss.Index`): The index.
        entries (`dict`): "ids" and "keys" of its vectors.
        facts (`dict`): What the manifest says besides.

    Raises:
        OSError: If it cannot be written. The old gallery is still whole then.
    """
    directory.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(8)
    index_path, ids_path = directory / f"index-{token}.faiss", directory / f"ids-{token}.json"
    try:
        faiss.write_index(index, str(index_path))
        sync(index_path)
        write_json(ids_path, entries, indent=None)
        names = {"index_file": index_path.name, "ids_file": ids_path.name}
        sizes = {path.name: path.stat().st_size for path in (index_path, ids_path)}
        manifest = {**GALLERY.header(), "hycir_version": __version__, **facts, **names, "files": sizes}
        write_json(directory / MANIFEST_NAME, manifest)  # the one step that counts
    except BaseException:
        if not _is_named(directory, index_path):  # the rename may have happened before the failure was raised
            for path in (index_path, ids_path):
                path.unlink(missing_ok=True)
        raise
    _remove_leftovers(directory, keep={index_path, ids_path})


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """Read a gallery's manifest.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, another file's, or of a newer format.
    """
    path = Path(directory) / MANIFEST_NAME
    if not path.is_file():
        raise FileNotFoundError(f"There is no gallery in {directory}: no {MANIFEST_NAME}. Make one with `hycir index`.")
    return GALLERY.read(path)


def read_gallery(directory: Path, mmap: bool) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    """Read a gallery's manifest, index and entries ("ids" and "keys").

    Args:
        directory (`Path`): The gallery's folder.
        mmap (`bool`): Whether to leave the vectors on disk.

    Raises:
        FileNotFoundError: If there is no gallery.
        ValueError: If its files are damaged or of a newer format.
    """
    manifest = read_manifest(directory)
    for _ in range(3):  # a save in another process may remove the files between two reads
        try:
            return manifest, *_read_files(directory, manifest, mmap)
        except FileNotFoundError:
            previous, manifest = manifest, read_manifest(directory)
            if manifest["files"] == previous["files"]:
                break
    missing = [name for name in manifest["files"] if not (directory / name).exists()]
    raise ValueError(f"The files {missing} of the gallery {directory} are missing. {GALLERY.remedy}")


def record_places(model: str | None, source: dict[str, Any] | None, directory: Path) -> dict[str, Any]:
    """Return what a manifest says of model and images: Hub ids as they are, local folders also relative to the gallery.

    So a folder that holds a gallery, its model and its images can be copied to another place.
    """
    places = locations(Path(model), directory) if model and Path(model).exists() else {}
    near = {"model_relative": places["relative"]} if "relative" in places else {}
    return {"model": model, **near, "source": _with_relative(source, directory)}


def _with_relative(source: dict[str, Any] | None, directory: Path) -> dict[str, Any] | None:
    if source and "parts" in source:
        return {**source, "parts": [_with_relative(part, directory) for part in source["parts"]]}
    is_local = source is not None and "path" in source and Path(source["path"]).is_absolute()
    if not source or not is_local or not Path(source["path"]).exists():
        return source
    return {**source, **locations(Path(source["path"]), directory)}


def find_model(manifest: dict[str, Any], directory: Path) -> str | None:
    """The model of a manifest: its folder, where that lies now, or its Hub id."""
    if manifest["model"] is None:
        return None
    return locate({"path": manifest["model"], "relative": manifest.get("model_relative", "")}, directory)


def _read_files(directory: Path, manifest: dict[str, Any], mmap: bool) -> tuple[Any, dict[str, Any]]:
    for name, size in manifest["files"].items():
        found = (directory / name).stat().st_size
        if found != size:
            raise ValueError(f"Expected {size} bytes in {directory / name}, but found {found}. {GALLERY.remedy}")
    entries = read_record(directory / manifest["ids_file"], GALLERY_IDS, remedy=GALLERY.remedy)
    flags = 0
    if mmap:
        flags = faiss.IO_FLAG_MMAP if manifest["kind"] in indexes.IVF_TYPES else faiss.IO_FLAG_MMAP_IFC
    index = faiss.read_index(str(directory / manifest["index_file"]), flags)
    if not index.ntotal == len(entries["ids"]) == manifest["count"]:
        raise ValueError(
            f"Expected {manifest['count']} images in the gallery {directory}, but found {index.ntotal} vectors and "
            f"{len(entries['ids'])} ids. {GALLERY.remedy}"
        )
    return index, entries


def _is_named(directory: Path, index_path: Path) -> bool:
    """Whether the manifest on disk names an index."""
    manifest = directory / MANIFEST_NAME
    return manifest.is_file() and index_path.name in manifest.read_text(encoding="utf-8")


def _remove_leftovers(directory: Path, keep: set[Path]) -> None:
    """Remove the files of the gallery before this one, and of saves that were killed."""
    for pattern in ("index-*.faiss", "ids-*.json", ".*.tmp"):
        for path in directory.glob(pattern):
            if path not in keep:
                try:
                    path.unlink()
                except OSError as error:  # mapped by another process on Windows; the next save tries again
                    logger.warning("The old gallery file %s cannot be removed: %s", path, error)
