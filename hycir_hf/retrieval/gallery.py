"""Gallery: image features on faiss, searched by features, kept in one folder."""

import json
import logging
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import __version__
from . import indexes
from .indexes import faiss
from .results import RetrievalResults

logger = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"
FORMAT_NAME, FORMAT_VERSION = "hycir-gallery", 1
_SLACK = 32  # candidates beyond k fetched from exhaustive indexes, so that ties at rank k are seen whole
_RESCORED_ELEMENTS = 2**23  # float64 values held at once when flat scores are recomputed

PerQueryIds = Sequence[str] | Sequence[Sequence[str] | None] | None


class Gallery:
    """Images to be found: their features in a faiss index, their ids in gallery order.

    Make one with `from_images`, `from_features` or `load`.

    Args:
        index (`faiss.Index`): Inner-product index whose int64 keys rise in gallery order.
        ids (`Sequence[str]` of length N): Gallery ids, each once.
        kind (`str`): One of "flat", "sq8", "hnsw", "ivf_flat", "ivf_pq".
        encoder_fingerprint (`str`, *optional*): Of the encoder that made the features; None is never checked.
        model_path (`str`, *optional*): Folder or Hub id of that model.
        source (`dict`, *optional*): Where the images lie (`ImageSource.describe()`).
    """

    def __init__(
        self,
        index: Any,
        ids: Sequence[str],
        *,
        kind: str = "flat",
        encoder_fingerprint: str | None = None,
        model_path: str | None = None,
        source: dict[str, Any] | None = None,
        keys: np.ndarray | None = None,
    ) -> None:
        indexes.check_kind(kind)
        self.kind = kind
        self.encoder_fingerprint = encoder_fingerprint
        self.model_path = model_path
        self.source = source
        self.is_memory_mapped = False
        self._index = index
        self._ids = list(ids)
        self._keys = np.arange(len(self._ids), dtype=np.int64) if keys is None else keys  # (N,) rising
        self._row_of_id = {id_: row for row, id_ in enumerate(self._ids)}

    @classmethod
    def from_features(
        cls,
        features: Any,
        ids: Sequence[str] | None = None,
        *,
        encoder_fingerprint: str | None = None,
        kind: str = "flat",
        model_path: str | None = None,
        source: dict[str, Any] | None = None,
    ) -> "Gallery":
        """Build a gallery from image features.

        Args:
            features (`np.ndarray` or `torch.Tensor` of shape `(N, D)`): Finite; unit rows make the scores cosines.
            ids (`Sequence[str]`, *optional*): One for each row, each once; the row numbers as strings by default.
            encoder_fingerprint (`str`, *optional*): `HyCIRModel.encoder_fingerprint()`; None: no check.
            kind (`str`): "flat" is exact. "hnsw", "ivf_flat", "ivf_pq" and "sq8" trade exactness for speed or memory;
                their sizes grow with N as it is now, so build anew after N has grown many times over.
            model_path (`str`, *optional*): Folder or Hub id of the model, kept in the manifest.
            source (`dict`, *optional*): Where the images lie, kept in the manifest.

        Raises:
            ValueError: If features or ids have the wrong shape, hold NaN, or repeat an id.
        """
        features = as_features(features, "gallery features")
        ids = [str(row) for row in range(len(features))] if ids is None else list(ids)
        _check_new(features, ids, known=())
        index = indexes.build_index(kind, features)
        return cls(index, ids, kind=kind, encoder_fingerprint=encoder_fingerprint, model_path=model_path, source=source)

    @classmethod
    def from_images(
        cls,
        model: Any,
        processor: Any,
        images: Sequence[Any],
        ids: Sequence[str] | None = None,
        batch_size: int = 64,
        progress: bool = True,
        kind: str = "flat",
    ) -> "Gallery":
        """Encode images into a gallery.

        Args:
            model (`HyCIRModel`): Its image encoder makes the features.
            processor (`HyCIRProcessor`): The model's.
            images (`Sequence`): PIL images, paths, bytes or arrays, N of them.
            ids (`Sequence[str]`, *optional*): By default the path of an image given as a path, else its row number.
            batch_size (`int`): Images encoded at once.
            progress (`bool`): Show a progress bar with images per second.
            kind (`str`): See `from_features`.

        Raises:
            ValueError: If an image is broken (named) or an id stands twice.
        """
        ids = [_default_id(row, image) for row, image in enumerate(images)] if ids is None else list(ids)
        _check_ids(ids, len(images))
        chunks = []
        with tqdm(total=len(images), unit=" images", desc="Encoding", disable=not progress) as bar:
            for start in range(0, len(images), batch_size):
                batch = images[start : start + batch_size]
                prepared = [prepare_image(processor, image, start + i) for i, image in enumerate(batch)]
                chunks.append(encode_images(model, prepared))  # (B, D)
                bar.update(len(prepared))
        if not chunks:
            raise ValueError("Expected at least one image, but found none. Pass a list of images or paths.")
        return cls.from_features(
            np.concatenate(chunks),  # (N, D)
            ids,
            encoder_fingerprint=model.encoder_fingerprint(),
            kind=kind,
            model_path=getattr(model, "name_or_path", None) or None,
        )

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, id_: object) -> bool:
        return id_ in self._row_of_id

    def __repr__(self) -> str:
        return f"Gallery({len(self)} images, dim={self.dim}, kind={self.kind!r})"

    @property
    def ids(self) -> list[str]:
        """Gallery ids in gallery order (a copy)."""
        return list(self._ids)

    @property
    def dim(self) -> int:
        """Width D of the features."""
        return int(self._index.d)

    def features(self) -> np.ndarray:
        """The image features in gallery order, `(N, D)` (a copy), for use elsewhere.

        Raises:
            ValueError: For the kinds that hold features compressed, or in lists.
        """
        if self.kind not in indexes.EXACT_KINDS:
            raise ValueError(
                f"Expected a gallery of a kind that keeps its features ({list(indexes.EXACT_KINDS)}), but found "
                f"{self.kind!r}. Index the images with kind='flat'."
            )
        return self._index.reconstruct_n(0, len(self)) if len(self) else np.zeros((0, self.dim), np.float32)

    def check_encoder(self, encoder: Any) -> None:
        """Raise ValueError unless `encoder` (a HyCIRModel or a fingerprint) is the one that made this gallery."""
        fingerprint = encoder if isinstance(encoder, str) else encoder.encoder_fingerprint()
        if self.encoder_fingerprint is not None and fingerprint != self.encoder_fingerprint:
            raise ValueError(
                f"Expected the encoder that made this gallery (fingerprint {self.encoder_fingerprint}, model "
                f"{self.model_path}), but found another (fingerprint {fingerprint}). Load that model, or build the "
                "gallery anew with this one."
            )

    def search(
        self,
        features: Any,
        k: int = 10,
        exclude_ids: PerQueryIds = None,
        restrict_to: PerQueryIds = None,
        *,
        encoder_fingerprint: str | None = None,
        ignore_unknown: bool = False,
    ) -> RetrievalResults:
        """Find the k gallery images with the highest inner product for each query.

        `exclude_ids` and `restrict_to` act before the top-k, for every kind of index: a row holds exactly
        min(k, candidates left) images. Equal scores come in gallery order; for kinds "flat" and "sq8" also where the
        tie crosses rank k.

        Args:
            features (`np.ndarray` or `torch.Tensor` of shape `(Q, D)` or `(D,)`): Query features.
            k (`int`): At least 1; may exceed the gallery.
            exclude_ids (`list[str]` or one list (or None) for each query, *optional*): Never returned.
            restrict_to (`list[str]` or one list (or None) for each query, *optional*): The only ids returned. In the
                shared form an empty list is no candidates at all.
            encoder_fingerprint (`str`, *optional*): Checked against the gallery's.
            ignore_unknown (`bool`): Let ids pass that the gallery does not hold. By default they are an error, since a
                misspelt id would silently exclude nothing.

        Returns:
            `RetrievalResults`: Q rows of at most k ids and scores.

        Raises:
            ValueError: If features have another width or hold NaN, an id is unknown, there is not one list for each
                query, or the encoder is another one.
        """
        if encoder_fingerprint is not None:
            self.check_encoder(encoder_fingerprint)
        queries = as_features(features, "query features", allow_one=True)  # (Q, D)
        if queries.shape[1] != self.dim:
            raise ValueError(
                f"Expected query features of width {self.dim}, but found {queries.shape[1]}. Make them with the "
                "gallery's own encoder."
            )
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise ValueError(f"Expected k to be a whole number of at least 1, but found {k!r}. Pass for example k=10.")
        excluded = per_query_ids(exclude_ids, len(queries), "exclude_ids")
        restricted = per_query_ids(restrict_to, len(queries), "restrict_to")
        ids: list[list[str]] = [[] for _ in queries]
        scores: list[list[float]] = [[] for _ in queries]
        groups: dict[tuple[Any, Any], list[int]] = {}
        for row, lists in enumerate(zip(excluded, restricted, strict=True)):
            groups.setdefault(lists, []).append(row)
        for (exclude, restrict), rows in groups.items():
            allowed = self._allowed_rows(exclude, restrict, ignore_unknown)  # (N,) or None
            for row, found_rows, found_scores in zip(rows, *self._search(queries[rows], k, allowed), strict=True):
                ids[row] = [self._ids[found] for found in found_rows]
                scores[row] = found_scores.tolist()
        return RetrievalResults(ids, scores)

    def add(self, features: Any, ids: Sequence[str]) -> None:
        """Append images at the end of the gallery.

        Args:
            features (`np.ndarray` or `torch.Tensor` of shape `(M, D)`): From the gallery's encoder.
            ids (`Sequence[str]` of length M): New ids.

        Raises:
            ValueError: If the width is another one, or an id is in the gallery already. Nothing is added then.
        """
        self._check_writable()
        features, ids = as_features(features, "features to add"), list(ids)
        if features.shape[1] != self.dim:
            raise ValueError(
                f"Expected features of width {self.dim}, but found {features.shape[1]}. Use the gallery's encoder."
            )
        _check_new(features, ids, known=self._row_of_id)
        first = int(self._keys[-1]) + 1 if len(self._keys) else 0
        keys: np.ndarray = np.arange(first, first + len(ids), dtype=np.int64)
        if self.kind in indexes.IVF_KINDS:
            self._index.add_with_ids(features, keys)
        else:
            self._index.add(features)
        self._row_of_id.update((id_, len(self._ids) + row) for row, id_ in enumerate(ids))
        self._ids.extend(ids)
        self._keys = np.concatenate([self._keys, keys])

    def remove(self, ids: Iterable[str]) -> None:
        """Take images out; the others keep their order.

        Args:
            ids (`Iterable[str]`): Ids in the gallery. For kind "hnsw" the graph is built anew.

        Raises:
            ValueError: If an id is not in the gallery. Nothing is removed then.
        """
        self._check_writable()
        if isinstance(ids, str):
            raise ValueError(f"Expected a list of ids to remove, but found the string {ids!r}. Wrap it in a list.")
        rows = self._rows(sorted(set(ids)), "ids to remove", ignore_unknown=False)
        self._index = indexes.remove_keys(self.kind, self._index, self._keys[rows])
        kept: np.ndarray = np.ones(len(self._ids), dtype=bool)
        kept[rows] = False
        self._ids = [id_ for id_, keep in zip(self._ids, kept, strict=True) if keep]
        self._row_of_id = {id_: row for row, id_ in enumerate(self._ids)}
        # Inverted lists keep their keys; the other kinds close the gaps.
        has_keys = self.kind in indexes.IVF_KINDS
        self._keys = self._keys[kept] if has_keys else np.arange(len(self._ids), dtype=np.int64)

    def save(self, directory: str | os.PathLike) -> None:
        """Write the gallery into a folder, so that a kill at any moment leaves the old or the new one whole.

        Index and ids are written aside under new names and synced; then one rename puts the new manifest, which names
        them, in place of the old. One writer at a time.

        Args:
            directory (`str` or `Path`): Made if missing. Files that it holds beside the gallery's own are left alone.

        Raises:
            ValueError: If the gallery is memory-mapped.
        """
        self._check_writable()
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        token = secrets.token_hex(8)
        index_path, ids_path = directory / f"index-{token}.faiss", directory / f"ids-{token}.json"
        manifest_path = directory / f"manifest-{token}.tmp"
        try:
            faiss.write_index(self._index, str(index_path))
            sync(index_path)
            keys = None if self._has_plain_keys() else self._keys.tolist()
            _write_synced(ids_path, json.dumps({"ids": self._ids, "keys": keys}))
            _write_synced(manifest_path, json.dumps(self._manifest(index_path, ids_path), indent=2) + "\n")
            sync(directory)
            os.replace(manifest_path, directory / MANIFEST_NAME)  # noqa: PTH105  the one step that counts
        except BaseException:
            if not _names(directory, index_path):  # the rename may have happened before the failure was raised
                for path in (index_path, ids_path, manifest_path):
                    path.unlink(missing_ok=True)
            raise
        sync(directory)
        _remove_leftovers(directory, keep={index_path, ids_path})

    @classmethod
    def load(cls, directory: str | os.PathLike, mmap: bool = False) -> "Gallery":
        """Read a gallery that `save` or `hycir index` wrote.

        Args:
            directory (`str` or `Path`): The gallery's folder.
            mmap (`bool`): Leave the vectors on disk and let the system page them in. Such a gallery can be searched,
                not changed or saved.

        Raises:
            FileNotFoundError: If the folder holds no gallery.
            ValueError: If its files are damaged or of a newer format.
        """
        directory = Path(directory)
        manifest = read_manifest(directory)
        for _ in range(3):  # a save in another process may remove the files between two reads
            try:
                return cls._load(directory, manifest, mmap)
            except FileNotFoundError:
                previous, manifest = manifest, read_manifest(directory)
                if manifest["files"] == previous["files"]:
                    break
        missing = [name for name in manifest["files"] if not (directory / name).exists()]
        raise ValueError(f"Expected the files {missing} in the gallery {directory}, but found none. Index it again.")

    @classmethod
    def _load(cls, directory: Path, manifest: dict[str, Any], mmap: bool) -> "Gallery":
        for name, size in manifest["files"].items():
            found = (directory / name).stat().st_size
            if found != size:
                raise ValueError(
                    f"Expected {size} bytes in {directory / name}, but found {found}. Copy or index the gallery again."
                )
        entries = json.loads((directory / manifest["ids_file"]).read_text(encoding="utf-8"))
        flags = 0
        if mmap:
            flags = faiss.IO_FLAG_MMAP if manifest["kind"] in indexes.IVF_KINDS else faiss.IO_FLAG_MMAP_IFC
        index = faiss.read_index(str(directory / manifest["index_file"]), flags)
        if not index.ntotal == len(entries["ids"]) == manifest["count"]:
            raise ValueError(
                f"Expected {manifest['count']} images in the gallery {directory}, but found {index.ntotal} vectors and "
                f"{len(entries['ids'])} ids. Index it again."
            )
        gallery = cls(
            index,
            entries["ids"],
            kind=manifest["kind"],
            encoder_fingerprint=manifest["encoder_fingerprint"],
            model_path=manifest["model"],
            source=manifest["source"],
            keys=None if entries["keys"] is None else np.asarray(entries["keys"], dtype=np.int64),
        )
        gallery.is_memory_mapped = mmap
        return gallery

    def _manifest(self, index_path: Path, ids_path: Path) -> dict[str, Any]:
        return {
            "format": FORMAT_NAME,
            "format_version": FORMAT_VERSION,
            "hycir_version": __version__,
            "kind": self.kind,
            "count": len(self),
            "dim": self.dim,
            "encoder_fingerprint": self.encoder_fingerprint,
            "model": self.model_path,
            "source": self.source,
            "index_file": index_path.name,
            "ids_file": ids_path.name,
            "files": {path.name: path.stat().st_size for path in (index_path, ids_path)},
        }

    def _has_plain_keys(self) -> bool:
        return not len(self._keys) or int(self._keys[-1]) == len(self._keys) - 1

    def _check_writable(self) -> None:
        if self.is_memory_mapped:
            raise ValueError(
                "Expected a gallery in memory, but found one loaded with mmap=True, which can only be searched. Load "
                "it with mmap=False to change or save it."
            )

    def _rows(self, ids: Iterable[str], what: str, ignore_unknown: bool) -> np.ndarray:
        ids = list(ids)
        unknown = [id_ for id_ in ids if id_ not in self._row_of_id]
        if unknown and not ignore_unknown:
            raise ValueError(
                f"Expected {what} from the gallery's {len(self)} ids, but found {len(unknown)} that it does not hold, "
                f"such as {unknown[0]!r}. Compare with gallery.ids, such as {self._ids[:1]}."
            )
        return np.asarray([self._row_of_id[id_] for id_ in ids if id_ in self._row_of_id], dtype=np.int64)

    def _allowed_rows(
        self, exclude: tuple[str, ...] | None, restrict: tuple[str, ...] | None, ignore_unknown: bool
    ) -> np.ndarray | None:
        """Which rows may be found, as a mask of shape (N,); None for all."""
        if not exclude and restrict is None:
            return None
        allowed = np.full(len(self), restrict is None)
        if restrict is not None:
            allowed[self._rows(restrict, "restrict_to", ignore_unknown)] = True
        if exclude:
            allowed[self._rows(exclude, "exclude_ids", ignore_unknown)] = False
        return allowed

    def _search(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Rows and scores, best first, of the k best allowed images for each query of (Q, D)."""
        num_allowed = len(self) if allowed is None else int(allowed.sum())
        k = min(k, num_allowed)
        if k == 0:
            empty = np.zeros((len(queries), 0))
            return list(empty.astype(np.int64)), list(empty)
        by_key: np.ndarray | None = None
        if allowed is not None:
            by_key = np.zeros(int(self._keys[-1]) + 1, dtype=bool)
            by_key[self._keys] = allowed
        is_exhaustive = self.kind in indexes.EXHAUSTIVE_KINDS
        num_fetched = min(num_allowed, k + _SLACK) if is_exhaustive else k
        rows: np.ndarray = np.zeros((len(queries), k), dtype=np.int64)
        scores: np.ndarray = np.zeros((len(queries), k), dtype=np.float32)
        pending = np.arange(len(queries))
        while len(pending):  # again with more candidates where a tie may cross the last one fetched
            found_scores, keys = indexes.search_index(
                self.kind, self._index, queries[pending], num_fetched, by_key, num_allowed
            )
            last = found_scores[:, -1].copy()  # (P,)
            found_rows = np.asarray(np.searchsorted(self._keys, keys))  # (P, F)
            if self.kind == "flat":
                found_scores = self._rescore(queries[pending], found_rows)
            order = np.lexsort((found_rows, -found_scores))[:, :k]  # (P, k) by score, then by row
            rows[pending] = np.take_along_axis(found_rows, order, axis=1)
            scores[pending] = np.take_along_axis(found_scores, order, axis=1)
            if not is_exhaustive or num_fetched == num_allowed:
                break
            margin = 1e-5 * np.maximum(1, np.abs(found_scores).max(axis=1))
            pending = pending[scores[pending, -1] <= last + margin]
            num_fetched = min(num_allowed, 4 * num_fetched)
        return list(rows), list(scores)

    def _rescore(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Inner products (Q, F) that depend on the two vectors alone, so that equal images tie exactly.

        A blocked matrix product may round a score by where its column stands.
        """
        features = indexes.flat_features(self._index)
        step = max(1, _RESCORED_ELEMENTS // (rows.shape[1] * self.dim))
        chunks = [
            np.einsum(
                "qfd,qd->qf",
                features[rows[start : start + step]].astype(np.float64),
                queries[start : start + step].astype(np.float64),
            )
            for start in range(0, len(queries), step)
        ]
        return np.concatenate(chunks).astype(np.float32)


def prepare_image(processor: Any, image: Any, position: int | None = None) -> Mapping[str, Any]:
    """The encoder's inputs for one image.

    They are of one small size, while a batch of decoded photographs can fill the memory: 64 of 12 megapixels are 2 GB.

    Args:
        processor (`HyCIRProcessor`): The model's.
        image: Whatever the processor takes.
        position (`int`, *optional*): The image's number, for the error message.

    Raises:
        ValueError: If the image is broken.
    """
    from ..images_hycir import load_image  # here, since it loads torch

    return processor(images=[load_image(image, position)], return_tensors="pt")


def encode_images(model: Any, prepared: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Image features of one batch.

    Args:
        model (`HyCIRModel`): The encoder.
        prepared (`Sequence` of length B): From `prepare_image`.

    Returns:
        `np.ndarray` of shape `(B, D)`: float32, unit L2 norm.
    """
    import torch

    inputs = {name: torch.cat([one[name] for one in prepared]).to(model.device) for name in prepared[0]}
    with torch.inference_mode():
        return model.get_image_features(**inputs).float().cpu().numpy()


def read_manifest(directory: str | os.PathLike) -> dict[str, Any]:
    """Read a gallery's manifest.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not a gallery's, or of a newer format.
    """
    path = Path(directory) / MANIFEST_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected a gallery in {directory}, but found no {MANIFEST_NAME}. Make one with `hycir index`."
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"Expected JSON in {path}, but found: {error}. Index the gallery again.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT_NAME:
        raise ValueError(f"Expected a gallery's manifest in {path}, but found another file. Give a gallery's folder.")
    if manifest["format_version"] > FORMAT_VERSION:
        raise ValueError(
            f"Expected a gallery of format {FORMAT_VERSION} or older in {directory}, but found "
            f"{manifest['format_version']}. Update hycir_hf."
        )
    return manifest


def as_features(features: Any, what: str, allow_one: bool = False) -> np.ndarray:
    """Check features and return them as float32 (rows, D)."""
    if hasattr(features, "detach"):  # a torch tensor, without importing torch
        features = features.detach().cpu().float().numpy()
    try:
        array = np.ascontiguousarray(features, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Expected {what} as an array of numbers, but found: {error}. Pass shape (rows, D)."
        ) from error
    if np.ndim(features) == 1 and allow_one:
        array = array.reshape(1, -1)
    if np.ndim(features) != 2 and not (allow_one and np.ndim(features) == 1):
        raise ValueError(f"Expected {what} of shape (rows, D), but found shape {np.shape(features)}. Reshape them.")
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise ValueError(
            f"Expected finite {what}, but found NaN or infinity in {len(bad)} rows, the first of them row {bad[0]}. "
            "Check that image, or encode in float32."
        )
    return array


def _check_ids(ids: list[str], count: int) -> None:
    if len(ids) != count:
        raise ValueError(
            f"Expected one id for each image, but found {len(ids)} ids and {count} images. Pass both alike."
        )
    seen: set[str] = set()
    for row, id_ in enumerate(ids):
        if not isinstance(id_, str):
            raise TypeError(f"Expected ids as strings, but found {id_!r} at row {row}. Use [str(id) for id in ids].")
        if id_ in seen:
            raise ValueError(f"Expected each id once, but found {id_!r} again at row {row}. Rename or drop one.")
        seen.add(id_)


def _check_new(features: np.ndarray, ids: list[str], known: Iterable[str]) -> None:
    _check_ids(ids, len(features))
    repeated = [id_ for id_ in ids if id_ in known]
    if repeated:
        raise ValueError(
            f"Expected new ids, but the gallery already holds {len(repeated)} of them, such as {repeated[0]!r}. "
            "Remove those first, or rename the new ones."
        )


def per_query_ids(ids: PerQueryIds, num_queries: int, name: str) -> list[tuple[str, ...] | None]:
    """One tuple of ids (or None) for each query, from a shared list or a list for each."""
    if ids is None:
        return [None] * num_queries
    if isinstance(ids, str):
        raise ValueError(f"Expected {name} as a list of ids, but found the string {ids!r}. Wrap it in a list.")
    entries = list(ids)
    if all(isinstance(entry, str) for entry in entries):
        return [tuple(entries)] * num_queries  # type: ignore[arg-type]
    if any(isinstance(entry, str) for entry in entries):
        raise ValueError(f"Expected {name} as ids or as lists of ids, but found both mixed. Wrap each query's ids.")
    if len(entries) != num_queries:
        raise ValueError(
            f"Expected {name} to hold one list for each of {num_queries} queries, but found {len(entries)}. Pass one "
            "flat list to share it."
        )
    return [None if entry is None else tuple(entry) for entry in entries]


def _default_id(row: int, image: Any) -> str:
    return Path(image).as_posix() if isinstance(image, str | os.PathLike) else str(row)


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Force a file or a folder's entries to disk (folders: where the system can)."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _names(directory: Path, index_path: Path) -> bool:
    manifest = directory / MANIFEST_NAME
    return manifest.is_file() and index_path.name in manifest.read_text(encoding="utf-8")


def _remove_leftovers(directory: Path, keep: set[Path]) -> None:
    """Drop the files of the gallery before this one, and of saves that were killed."""
    for pattern in ("index-*.faiss", "ids-*.json", "manifest-*.tmp"):
        for path in directory.glob(pattern):
            if path not in keep:
                try:
                    path.unlink()
                except OSError as error:  # mapped by another process on Windows; the next save tries again
                    logger.warning("Could not remove the old gallery file %s: %s", path, error)
