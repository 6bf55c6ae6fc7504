"""Gallery: image features in a faiss index, searched by features, kept in one folder."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..images import FeatureEncoder, encode_list
from ..images.features import unit_rows
from ..modeling_hycir import HyCIRModel
from ..processing_hycir import HyCIRProcessor
from ..settings import ParameterError
from . import indexes
from .gallery_files import find_model, read_gallery, record_places, write_gallery
from .inputs import PerQueryIds, as_features, check_ids, check_new_ids, per_query_ids
from .results import RetrievalResults

_SLACK = 32  # candidates beyond k fetched from exhaustive indexes, so that ties at rank k are seen whole
_RESCORED_ELEMENTS = 2**23  # float64 values held at once when flat scores are recomputed


class Gallery:
    """Images to be found: their features in a faiss index, their ids in gallery order.

    Make one with `from_images`, `from_features` or `load`.

    Args:
        index (`faiss.Index`): Inner-product index whose int64 keys rise in gallery order.
        ids (`Sequence[str]` of length N): Gallery ids, each once.
        index_type (`str`): One of "flat", "sq8", "hnsw", "ivf_flat", "ivf_pq".
        encoder_fingerprint (`str`, *optional*): Of the encoder that made the features; None is never checked.
        model_path (`str`, *optional*): Folder or Hub id of that model.
        source (`dict`, *optional*): Where the images lie (`ImageSource.describe()`).
    """

    def __init__(
        self,
        index: Any,
        ids: Sequence[str],
        *,
        index_type: str = "flat",
        encoder_fingerprint: str | None = None,
        model_path: str | None = None,
        source: dict[str, Any] | None = None,
        keys: np.ndarray | None = None,
    ) -> None:
        indexes.check_index_type(index_type)
        self.index_type = index_type
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
        index_type: str = "flat",
        model_path: str | None = None,
        source: dict[str, Any] | None = None,
    ) -> "Gallery":
        """Build a gallery from image features.

        Args:
            features (`np.ndarray` or `torch.Tensor` of shape `(N, D)`): Finite; unit rows make the scores cosines.
            ids (`Sequence[str]`, *optional*): One for each row, each once; the row numbers as strings by default.
            encoder_fingerprint (`str`, *optional*): `HyCIRModel.encoder_fingerprint()`; None: no check.
            index_type (`str`): "flat" is exact. "hnsw", "ivf_flat", "ivf_pq" and "sq8" trade exactness for speed or
                memory; their sizes are chosen for the present N, so build again after N has grown many times over.
            model_path (`str`, *optional*): Folder or Hub id of the model, kept in the manifest.
            source (`dict`, *optional*): Where the images lie, kept in the manifest.

        Raises:
            ValueError: If features or ids have the wrong shape, hold NaN, or repeat an id.
        """
        features = as_features(features, "gallery features")
        ids = [str(row) for row in range(len(features))] if ids is None else list(ids)
        check_new_ids(features, ids, known=())
        index = indexes.build_index(index_type, features)
        return cls(
            index,
            ids,
            index_type=index_type,
            encoder_fingerprint=encoder_fingerprint,
            model_path=model_path,
            source=source,
        )

    @classmethod
    def from_images(
        cls,
        model: HyCIRModel,
        processor: HyCIRProcessor,
        images: Sequence[Any],
        ids: Sequence[str] | None = None,
        batch_size: int = 64,
        progress: bool = True,
        index_type: str = "flat",
    ) -> "Gallery":
        """Encode images into a gallery.

        Args:
            model (`HyCIRModel`): Its image encoder makes the features.
            processor (`HyCIRProcessor`): The model's.
            images (`Sequence`): N PIL images, paths, bytes or arrays.
            ids (`Sequence[str]`, *optional*): By default the path of an image given as a path, else its row number.
            batch_size (`int`): Images encoded at once.
            progress (`bool`): Whether to show a progress bar.
            index_type (`str`): See `from_features`.

        Raises:
            ValueError: If an image is broken (named) or an id occurs twice.
        """
        ids = [_default_id(row, image) for row, image in enumerate(images)] if ids is None else list(ids)
        check_ids(ids, len(images))
        encoder = FeatureEncoder(model, processor)
        features = encode_list(images, encoder, ids, batch_size=batch_size, progress=progress)[:, 0]  # (N, D)
        return cls.from_features(
            unit_rows(features),
            ids,
            encoder_fingerprint=model.encoder_fingerprint(),
            index_type=index_type,
            model_path=getattr(model, "name_or_path", None) or None,
        )

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, id_: object) -> bool:
        return id_ in self._row_of_id

    def __repr__(self) -> str:
        return f"Gallery({len(self)} images, dim={self.dim}, index_type={self.index_type!r})"

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
            ValueError: For the index types that hold features compressed, or in lists.
        """
        if self.index_type not in indexes.EXACT_TYPES:
            raise ValueError(
                f"An index of type {self.index_type!r} does not keep the features as they were. Types that do: "
                f"{list(indexes.EXACT_TYPES)}."
            )
        return self._index.reconstruct_n(0, len(self)) if len(self) else np.zeros((0, self.dim), np.float32)

    def check_encoder(self, encoder: Any) -> None:
        """Raise ValueError unless `encoder` (a `HyCIRModel` or a fingerprint) is the one that made this gallery."""
        fingerprint = encoder if isinstance(encoder, str) else encoder.encoder_fingerprint()
        if self.encoder_fingerprint is not None and fingerprint != self.encoder_fingerprint:
            raise ValueError(
                f"Another encoder made this gallery: fingerprint {self.encoder_fingerprint} (model {self.model_path}), "
                f"not {fingerprint}. Load that model, or index the images again with this one."
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

        `exclude_ids` and `restrict_to` act before the top-k, for every index type: a row holds exactly min(k,
        candidates left) images. Equal scores come in gallery order; for "flat" and "sq8" also where the tie crosses
        rank k.

        Args:
            features (`np.ndarray` or `torch.Tensor` of shape `(Q, D)` or `(D,)`): Query features.
            k (`int`): At least 1; may exceed the gallery.
            exclude_ids (`list[str]` or one list (or None) for each query, *optional*): Never returned.
            restrict_to (`list[str]` or one list (or None) for each query, *optional*): The only ids returned. In the
                shared form an empty list is no candidates at all.
            encoder_fingerprint (`str`, *optional*): Checked against the gallery's.
            ignore_unknown (`bool`): Whether to accept ids that the gallery does not hold. By default they are an
                error, since a misspelt id would silently exclude nothing.

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
                f"Expected query features of width {self.dim}, but found {queries.shape[1]}. Use the gallery's encoder."
            )
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise ValueError(f"k must be a whole number of at least 1, not {k!r}.")
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
        check_new_ids(features, ids, known=self._row_of_id)
        first = int(self._keys[-1]) + 1 if len(self._keys) else 0
        keys: np.ndarray = np.arange(first, first + len(ids), dtype=np.int64)
        if self.index_type in indexes.IVF_TYPES:
            self._index.add_with_ids(features, keys)
        else:
            self._index.add(features)
        self._row_of_id.update((id_, len(self._ids) + row) for row, id_ in enumerate(ids))
        self._ids.extend(ids)
        self._keys = np.concatenate([self._keys, keys])

    def remove(self, ids: Iterable[str]) -> None:
        """Take images out; the others keep their order.

        Args:
            ids (`Iterable[str]`): Ids in the gallery. For "hnsw" the graph is built anew.

        Raises:
            ValueError: If an id is not in the gallery. Nothing is removed then.
        """
        self._check_writable()
        if isinstance(ids, str):
            raise ValueError(f"ids must be a list of ids, not the string {ids!r}. Wrap it in a list.")
        rows = self._rows(sorted(set(ids)), "ids to remove", ignore_unknown=False)
        self._index = indexes.remove_keys(self.index_type, self._index, self._keys[rows])
        kept: np.ndarray = np.ones(len(self._ids), dtype=bool)
        kept[rows] = False
        self._ids = [id_ for id_, keep in zip(self._ids, kept, strict=True) if keep]
        self._row_of_id = {id_: row for row, id_ in enumerate(self._ids)}
        # Inverted lists keep their keys; the other types close the gaps.
        has_keys = self.index_type in indexes.IVF_TYPES
        self._keys = self._keys[kept] if has_keys else np.arange(len(self._ids), dtype=np.int64)

    def save(self, directory: str | os.PathLike) -> None:
        """Write the gallery into a folder, so that a kill at any moment leaves the old or the new one whole.

        Args:
            directory (`str` or `Path`): Made if missing. Files beside the gallery's own are left alone.

        Raises:
            ValueError: If the gallery is memory-mapped.
            OSError: If it cannot be written.
        """
        self._check_writable()
        keys = None if self._has_plain_keys() else self._keys.tolist()
        facts = {
            "kind": self.index_type,
            "count": len(self),
            "dim": self.dim,
            "encoder_fingerprint": self.encoder_fingerprint,
            **record_places(self.model_path, self.source, Path(directory)),
        }
        write_gallery(Path(directory), self._index, {"ids": self._ids, "keys": keys}, facts)

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
        manifest, index, entries = read_gallery(Path(directory), mmap)
        gallery = cls(
            index,
            entries["ids"],
            index_type=manifest["kind"],
            encoder_fingerprint=manifest["encoder_fingerprint"],
            model_path=find_model(manifest, Path(directory)),
            source=manifest["source"],
            keys=None if entries["keys"] is None else np.asarray(entries["keys"], dtype=np.int64),
        )
        gallery.is_memory_mapped = mmap
        return gallery

    def _has_plain_keys(self) -> bool:
        return not len(self._keys) or int(self._keys[-1]) == len(self._keys) - 1

    def _check_writable(self) -> None:
        if self.is_memory_mapped:
            raise ValueError(
                "This gallery was loaded with mmap=True, so it can only be searched. Load it with mmap=False to "
                "change or save it."
            )

    def _rows(self, ids: Iterable[str], what: str, ignore_unknown: bool) -> np.ndarray:
        ids = list(ids)
        unknown = [id_ for id_ in ids if id_ not in self._row_of_id]
        if unknown and not ignore_unknown:
            raise ParameterError(
                f"The gallery of {len(self)} images does not hold {len(unknown)} of the {what}, such as "
                f"{unknown[0]!r}. Its ids look like {self._ids[:1]}.",
                what,
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
        is_exhaustive = self.index_type in indexes.EXHAUSTIVE_TYPES
        num_fetched = min(num_allowed, k + _SLACK) if is_exhaustive else k
        rows: np.ndarray = np.zeros((len(queries), k), dtype=np.int64)
        scores: np.ndarray = np.zeros((len(queries), k), dtype=np.float32)
        pending = np.arange(len(queries))
        while len(pending):  # again with more candidates where a tie may cross the last one fetched
            found_scores, keys = indexes.search_index(
                self.index_type, self._index, queries[pending], num_fetched, by_key, num_allowed
            )
            last = found_scores[:, -1].copy()  # (P,)
            found_rows = np.asarray(np.searchsorted(self._keys, keys))  # (P, F)
            if self.index_type == "flat":
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


def _default_id(row: int, image: Any) -> str:
    return Path(image).as_posix() if isinstance(image, str | os.PathLike) else str(row)
