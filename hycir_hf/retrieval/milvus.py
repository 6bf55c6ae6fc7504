"""A gallery in Milvus, for more images than faiss on one machine should hold, or for several clients at once.

One client for all of it: the embedded Milvus Lite by a file's path, a server or cluster by its URI.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..images import FeatureStore
from ..images.features import unit_rows
from .gallery import Gallery
from .inputs import PerQueryIds, as_features, per_query_ids
from .milvus_client import DataType, MilvusClient, connect, id_filter, is_storable, milvus_errors, storable
from .results import RetrievalResults

MAX_ID_BYTES = 1024
_BATCH = 1000  # images inserted at once: a few MB, under Milvus' limit for one message
_WHERE_ADVICE = "Check `where`, for example 'vendor == \"noto\"'"
_ATTRIBUTES_ADVICE = "Give attributes of JSON's types, under names"
_FIELDS = ("image_id", "row", "encoder_fingerprint", "features")


class MilvusGallery:
    """Images to be found, in a Milvus collection; searched as a `Gallery` is.

    Make one with `from_gallery` or `create`, or open one that is there with this class itself.

    Args:
        uri (`str` or `Path`): A file whose name ends in ".db" (Milvus Lite) or a server's address.
        collection (`str`): The collection's name.
        token (`str`, *optional*): The server's "user:password" or API key.

    Raises:
        ValueError: If there is no such collection.
    """

    def __init__(self, uri: str | os.PathLike, collection: str = "gallery", token: str | None = None) -> None:
        self.collection = collection
        self._client = connect(uri, token)
        if not self._client.has_collection(collection):
            found = self._client.list_collections()
            self.close()
            raise ValueError(
                f"There is no collection {collection!r} at {uri}, only {found}. Make it with "
                "MilvusGallery.from_gallery(...)."
            )
        self._client.load_collection(collection)

    @classmethod
    def create(
        cls,
        uri: str | os.PathLike,
        dim: int,
        collection: str = "gallery",
        index_type: str = "FLAT",
        token: str | None = None,
    ) -> "MilvusGallery":
        """Make an empty collection for features of width `dim`.

        Args:
            uri (`str` or `Path`): A file whose name ends in ".db" (Milvus Lite) or a server's address.
            dim (`int`): D.
            collection (`str`): Its name; it must be new.
            index_type (`str`): Milvus' index of inner products: "FLAT" is exact; "HNSW", "IVF_FLAT" and
                "AUTOINDEX" are faster and are not.
            token (`str`, *optional*): The server's "user:password" or API key.

        Raises:
            ValueError: If the collection exists.
        """
        client = connect(uri, token)
        try:
            if client.has_collection(collection):
                raise ValueError(
                    f"The collection {collection!r} exists at {uri} already. Open it with MilvusGallery(...), or "
                    "choose another name."
                )
            schema = MilvusClient.create_schema(enable_dynamic_field=True)
            schema.add_field("image_id", DataType.VARCHAR, is_primary=True, max_length=MAX_ID_BYTES)
            schema.add_field("row", DataType.INT64)
            schema.add_field("encoder_fingerprint", DataType.VARCHAR, max_length=64)
            schema.add_field("features", DataType.FLOAT_VECTOR, dim=dim)
            index = MilvusClient.prepare_index_params()
            index.add_index("features", index_type=index_type, metric_type="IP")
            client.create_collection(collection, schema=schema, index_params=index, consistency_level="Strong")
        finally:
            client.close()
        return cls(uri, collection, token)

    @classmethod
    def from_gallery(
        cls,
        gallery: Gallery,
        uri: str | os.PathLike,
        collection: str = "gallery",
        attributes: Sequence[Mapping[str, Any]] | None = None,
        index_type: str = "FLAT",
        token: str | None = None,
    ) -> "MilvusGallery":
        """Export a gallery; arguments as in `create` and `add`. Where that fails, no collection is left behind."""
        features = gallery.features()  # (N, D)
        with cls._made(uri, gallery.dim, collection, index_type, token) as made:
            made.add(features, gallery.ids, attributes, encoder_fingerprint=gallery.encoder_fingerprint)
        return made

    @classmethod
    def from_store(
        cls,
        directory: str | os.PathLike,
        uri: str | os.PathLike,
        collection: str = "gallery",
        attributes: Callable[[Sequence[str]], Sequence[Mapping[str, Any]]] | None = None,
        index_type: str = "FLAT",
        token: str | None = None,
    ) -> "MilvusGallery":
        """Import stored features part by part: those of all images are never in memory at once.

        Args:
            directory (`str` or `Path`): A gallery that `hycir index` made, or the folder of `hycir features`.
            uri (`str` or `Path`): As in `create`.
            collection (`str`): As in `create`.
            attributes (function, *optional*): Returns the attributes of some ids.
            index_type (`str`): As in `create`.
            token (`str`, *optional*): As in `create`.

        Raises:
            FileNotFoundError: If there are no features in the folder.
            ValueError: As in `create` and `add`. No collection is left behind then.
        """
        stored = FeatureStore.open(directory)
        with cls._made(uri, stored.shape[-1], collection, index_type, token) as made:
            for start in range(0, len(stored), _BATCH):
                ids = stored.ids[start : start + _BATCH]
                features = unit_rows(stored.read(np.arange(start, start + len(ids))).numpy())  # (B, D)
                made.add(features, ids, attributes and attributes(ids), stored.store.settings["encoder"])
        return made

    @classmethod
    @contextmanager
    def _made(cls, uri: Any, dim: int, collection: str, index_type: str, token: str | None) -> Iterator[Any]:
        """Make a collection to be filled; where that fails, no collection is left behind."""
        made = cls.create(uri, dim, collection, index_type, token)
        try:
            yield made
        except BaseException:  # Ctrl-C among them
            made._client.drop_collection(collection)
            made.close()
            raise

    def __len__(self) -> int:
        return self.count()

    def count(self, where: str = "") -> int:
        """Count the images, or those that a filter expression lets pass; see `search`."""
        with milvus_errors("counting", _WHERE_ADVICE):
            return int(self._client.query(self.collection, filter=where, output_fields=["count(*)"])[0]["count(*)"])

    @property
    def dim(self) -> int:
        """Width D of the features."""
        fields = self._client.describe_collection(self.collection)["fields"]
        return int(next(field["params"]["dim"] for field in fields if field["name"] == "features"))

    @property
    def encoder_fingerprint(self) -> str | None:
        """Of the encoder that made the features; None where that is not known."""
        known = 'encoder_fingerprint != ""'
        found = self._client.query(self.collection, filter=known, output_fields=["encoder_fingerprint"], limit=1)
        return found[0]["encoder_fingerprint"] if found else None

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def add(
        self,
        features: Any,
        ids: Sequence[str],
        attributes: Sequence[Mapping[str, Any]] | None = None,
        encoder_fingerprint: str | None = None,
    ) -> None:
        """Append images, part by part: the features of all need never be in memory at once. One writer at a time.

        Args:
            features (`np.ndarray` or `torch.Tensor` of shape `(M, D)`): From the collection's encoder.
            ids (`Sequence[str]` of length M): New ids of at most `MAX_ID_BYTES` bytes of UTF-8.
            attributes (`Sequence[Mapping]` of length M, *optional*): Further values of each image, for `where`.
            encoder_fingerprint (`str`, *optional*): Of that encoder.

        Raises:
            ValueError: If shapes do not fit, the encoder is another one than the collection's, an id is there already,
                stands twice, is too long or no UTF-8, or an attribute has a reserved name. Nothing is added then.
        """
        parts = self._parts(features, ids, attributes, encoder_fingerprint, is_new=True)
        tried: list[str] = []
        try:
            for rows in parts:
                tried += [row["image_id"] for row in rows]
                with milvus_errors("adding images, so that none was added", _ATTRIBUTES_ADVICE):
                    self._client.insert(self.collection, rows)
        except BaseException as error:  # Ctrl-C among them
            self._take_back(tried, error)
            raise

    def upsert(
        self,
        features: Any,
        ids: Sequence[str],
        attributes: Sequence[Mapping[str, Any]] | None = None,
        encoder_fingerprint: str | None = None,
    ) -> None:
        """Add images, and replace those that are there already: features, attributes, and the place, now at the end.

        Arguments are as in `add`.

        Raises:
            ValueError: As in `add`, but for ids that are there. If Milvus refuses a part, the error says how many
                images were written before it.
        """
        num_written = 0
        for rows in self._parts(features, ids, attributes, encoder_fingerprint, is_new=False):
            what = f"writing images, after the first {num_written:,} of {len(ids):,} were written"
            with milvus_errors(what, _ATTRIBUTES_ADVICE):
                self._client.upsert(self.collection, rows)
            num_written += len(rows)

    def remove(self, ids: Sequence[str]) -> None:
        """Take images out; the others keep their order.

        Args:
            ids (`Sequence[str]`): Ids in the collection.

        Raises:
            ValueError: If an id is not in the collection; nothing is removed then. If Milvus refuses a part, the error
                says how many images were removed before it.
        """
        if isinstance(ids, str):
            raise ValueError(f"ids must be a list of ids, not the string {ids!r}. Wrap it in a list.")
        found = list(dict.fromkeys(ids))
        self._check_known(set(found))
        for start in range(0, len(found), _BATCH):
            what = f"removing images, after the first {start:,} of {len(found):,} were removed"
            with milvus_errors(what, "Try again with the rest"):
                self._client.delete(self.collection, filter=id_filter(None, found[start : start + _BATCH], ""))

    def _parts(
        self,
        features: Any,
        ids: Sequence[str],
        attributes: Sequence[Mapping[str, Any]] | None,
        encoder_fingerprint: str | None,
        is_new: bool,
    ) -> list[list[dict[str, Any]]]:
        """Check images to write, and make Milvus' rows of them, in parts."""
        self._check_encoder(encoder_fingerprint)
        features, ids = as_features(features, "features to add"), list(ids)
        attributes = [{}] * len(ids) if attributes is None else list(attributes)
        self._check_rows(features, ids, attributes, is_new)
        first = time.time_ns()  # later than all that are there, also after some were removed
        own = {"encoder_fingerprint": encoder_fingerprint or ""}
        rows = [
            {**values, **own, "image_id": id_, "row": first + number, "features": vector}
            for number, (values, id_, vector) in enumerate(zip(attributes, ids, features, strict=True))
        ]
        return [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]

    def _take_back(self, ids: list[str], error: BaseException) -> None:
        """Remove what a failed `add` has written; if that fails too, say what is left."""
        try:
            for start in range(0, len(ids), _BATCH):
                self._client.delete(self.collection, filter=id_filter(None, ids[start : start + _BATCH], ""))
        except Exception as second:  # the server is gone, for example
            raise ValueError(
                f"Adding images failed, and up to {len(ids):,} of them are in the collection {self.collection!r}, from "
                f"{ids[0]!r} to {ids[-1]!r}: {' '.join(str(second).split())}. Remove those, or write them with upsert."
            ) from error

    def search(
        self,
        features: Any,
        k: int = 10,
        exclude_ids: PerQueryIds = None,
        restrict_to: PerQueryIds = None,
        *,
        where: str = "",
        encoder_fingerprint: str | None = None,
        ignore_unknown: bool = False,
    ) -> RetrievalResults:
        """Find the k images with the highest inner product for each query, as `Gallery.search` does.

        Excluded, restricted and filtered images are left out before the top-k. Equal scores come in gallery order among
        those found; which of several that tie at rank k are found is Milvus' choice.

        Args:
            features (`np.ndarray` or `torch.Tensor` of shape `(Q, D)` or `(D,)`): Query features.
            k (`int`): At least 1.
            exclude_ids (`list[str]` or one list (or None) for each query, *optional*): Never returned.
            restrict_to (`list[str]` or one list (or None) for each query, *optional*): The only ids returned.
            where (`str`): Milvus' filter expression on the images' attributes, such as `vendor == "noto"`. It is handed
                on as it is: no text of a stranger belongs in it.
            encoder_fingerprint (`str`, *optional*): Checked against the collection's.
            ignore_unknown (`bool`): Let ids pass that the collection does not hold.

        Raises:
            ValueError: As `Gallery.search`.
        """
        self._check_encoder(encoder_fingerprint)
        queries = as_features(features, "query features", allow_one=True)  # (Q, D)
        is_count = isinstance(k, int | np.integer) and not isinstance(k, bool) and k >= 1
        if queries.shape[1] != self.dim or not is_count:
            raise ValueError(
                f"Expected query features of width {self.dim} and k as a whole number of at least 1, but found width "
                f"{queries.shape[1]} and k {k!r}. Use the collection's own encoder, and for example k=10."
            )
        excluded = per_query_ids(exclude_ids, len(queries), "exclude_ids")
        restricted = per_query_ids(restrict_to, len(queries), "restrict_to")
        if not ignore_unknown:
            self._check_known({id_ for ids in (*excluded, *restricted) for id_ in ids or ()})
        excluded, restricted = storable(excluded), storable(restricted)
        rankings: list[list[tuple[str, float]]] = [[] for _ in queries]
        groups: dict[tuple[Any, Any], list[int]] = {}
        for row, lists in enumerate(zip(excluded, restricted, strict=True)):
            groups.setdefault(lists, []).append(row)
        for (exclude, restrict), rows in groups.items():
            if restrict is not None and not restrict:
                continue  # no candidates at all
            for row, ranking in zip(
                rows, self._search(queries[rows], k, id_filter(exclude, restrict, where)), strict=True
            ):
                rankings[row] = ranking
        return RetrievalResults(
            [[id_ for id_, _ in ranking] for ranking in rankings],
            [[score for _, score in ranking] for ranking in rankings],
        )

    def _search(self, queries: np.ndarray, k: int, expression: str) -> list[list[tuple[str, float]]]:
        with milvus_errors("searching", f"{_WHERE_ADVICE}, and that k is within the server's limit"):
            found = self._client.search(
                self.collection,
                data=list(queries),
                limit=int(k),
                filter=expression,
                output_fields=["row"],
                anns_field="features",
            )
        ordered = [sorted(hits, key=lambda hit: (-hit["distance"], hit["entity"]["row"])) for hits in found]
        return [[(hit["image_id"], float(hit["distance"])) for hit in hits] for hits in ordered]

    def _check_encoder(self, fingerprint: str | None) -> None:
        own = self.encoder_fingerprint if fingerprint is not None else None
        if own is not None and fingerprint != own:
            raise ValueError(
                f"Another encoder made this collection: fingerprint {own}, not {fingerprint}. Use that encoder, or "
                "export the gallery again."
            )

    def _check_known(self, ids: set[str]) -> None:
        unknown = sorted(ids - self._known(ids), key=str)
        if unknown:
            raise ValueError(
                f"The collection {self.collection!r} does not hold {len(unknown)} of the ids, such as {unknown[0]!r}. "
                "Check the spelling, or pass ignore_unknown=True."
            )

    def _check_rows(
        self, features: np.ndarray, ids: list[str], attributes: Sequence[Mapping[str, Any]], is_new: bool
    ) -> None:
        """Collect all complaints about images to add, then raise once."""
        complaints = []
        if features.shape[1] != self.dim:
            complaints.append(f"features of width {features.shape[1]} instead of {self.dim}")
        if not len(features) == len(ids) == len(attributes):
            complaints.append(f"{len(features)} features, {len(ids)} ids and {len(attributes)} attributes")
        if len(set(ids)) != len(ids):
            complaints.append("an id that stands twice")
        if strange := [id_ for id_ in ids if not is_storable(id_)]:
            complaints.append(f"the id {strange[0]!r}, which is no text of UTF-8 without control characters")
        elif any(len(id_.encode()) > MAX_ID_BYTES for id_ in ids):
            complaints.append(f"an id of more than {MAX_ID_BYTES} bytes")
        if reserved := {name for values in attributes for name in values if name in _FIELDS}:
            complaints.append(f"attributes with the reserved names {sorted(reserved)}")
        if not complaints and is_new and (known := self._known(ids)):
            complaints.append(f"{len(known)} ids that are there already, such as {min(known)!r}")
        if complaints:
            raise ValueError(f"Nothing was added, because of {'; '.join(complaints)}.")

    def _known(self, ids: Sequence[str] | set[str]) -> set[str]:
        """Which of some ids the collection holds."""
        known: set[str] = set()
        ids = [id_ for id_ in ids if is_storable(id_)]
        for start in range(0, len(ids), _BATCH):
            expression = id_filter(None, tuple(ids[start : start + _BATCH]), "")
            known |= {found["image_id"] for found in self._client.query(self.collection, filter=expression)}
        return known
