"""A gallery in Milvus, for more images than faiss on one machine should hold, or for several clients at once.

One client for all of it: the embedded Milvus Lite by a file's path, a server or cluster by its URI.
"""

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from .gallery import Gallery
from .inputs import PerQueryIds, as_features, per_query_ids
from .results import RetrievalResults

try:
    from pymilvus import DataType, MilvusClient, MilvusException
except ImportError as error:
    raise ImportError(
        "hycir_hf.retrieval.milvus needs pymilvus, which cannot be imported. Install it with pip install "
        "'hycir_hf[milvus]'."
    ) from error

logger = logging.getLogger(__name__)

MAX_ID_BYTES = 1024
_BATCH = 1000  # images inserted at once: a few MB, under Milvus' limit for one message
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
        self._client = _connect(uri, token)
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
        client = _connect(uri, token)
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
        made = cls.create(uri, gallery.dim, collection, index_type, token)
        try:
            made.add(features, gallery.ids, attributes, encoder_fingerprint=gallery.encoder_fingerprint)
        except BaseException:  # Ctrl-C among them
            made._client.drop_collection(collection)
            made.close()
            raise
        return made

    def __len__(self) -> int:
        return int(self._client.query(self.collection, filter="", output_fields=["count(*)"])[0]["count(*)"])

    @property
    def dim(self) -> int:
        """Width D of the features."""
        fields = self._client.describe_collection(self.collection)["fields"]
        return int(next(field["params"]["dim"] for field in fields if field["name"] == "features"))

    @property
    def encoder_fingerprint(self) -> str | None:
        """Of the encoder that made the first features; None where that is not known."""
        found = self._client.query(self.collection, filter="row == 0", output_fields=["encoder_fingerprint"], limit=1)
        return (found[0]["encoder_fingerprint"] or None) if found else None

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
        self._check_encoder(encoder_fingerprint)
        features, ids = as_features(features, "features to add"), list(ids)
        attributes = [{}] * len(ids) if attributes is None else list(attributes)
        self._check_new(features, ids, attributes)
        first = len(self)
        for start in range(0, len(ids), _BATCH):
            rows = [
                {
                    **attributes[row],
                    "image_id": ids[row],
                    "row": first + row,
                    "encoder_fingerprint": encoder_fingerprint or "",
                    "features": features[row],
                }
                for row in range(start, min(start + _BATCH, len(ids)))
            ]
            with _milvus_errors("adding images", "Give attributes of JSON's types, under names"):
                self._client.insert(self.collection, rows)

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
        excluded, restricted = _storable(excluded), _storable(restricted)
        rankings: list[list[tuple[str, float]]] = [[] for _ in queries]
        groups: dict[tuple[Any, Any], list[int]] = {}
        for row, lists in enumerate(zip(excluded, restricted, strict=True)):
            groups.setdefault(lists, []).append(row)
        for (exclude, restrict), rows in groups.items():
            if restrict is not None and not restrict:
                continue  # no candidates at all
            for row, ranking in zip(
                rows, self._search(queries[rows], k, _filter(exclude, restrict, where)), strict=True
            ):
                rankings[row] = ranking
        return RetrievalResults(
            [[id_ for id_, _ in ranking] for ranking in rankings],
            [[score for _, score in ranking] for ranking in rankings],
        )

    def _search(self, queries: np.ndarray, k: int, expression: str) -> list[list[tuple[str, float]]]:
        advice = "Check `where`, for example 'vendor == \"noto\"', and that k is within the server's limit"
        with _milvus_errors("searching", advice):
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

    def _check_new(self, features: np.ndarray, ids: list[str], attributes: Sequence[Mapping[str, Any]]) -> None:
        """Collect all complaints about images to add, then raise once."""
        complaints = []
        if features.shape[1] != self.dim:
            complaints.append(f"features of width {features.shape[1]} instead of {self.dim}")
        if not len(features) == len(ids) == len(attributes):
            complaints.append(f"{len(features)} features, {len(ids)} ids and {len(attributes)} attributes")
        if len(set(ids)) != len(ids):
            complaints.append("an id that stands twice")
        if strange := [id_ for id_ in ids if not _is_storable(id_)]:
            complaints.append(f"the id {strange[0]!r}, which is no text of UTF-8 without control characters")
        elif any(len(id_.encode()) > MAX_ID_BYTES for id_ in ids):
            complaints.append(f"an id of more than {MAX_ID_BYTES} bytes")
        if reserved := {name for values in attributes for name in values if name in _FIELDS}:
            complaints.append(f"attributes with the reserved names {sorted(reserved)}")
        if not complaints and (known := self._known(ids)):
            complaints.append(f"{len(known)} ids that are there already, such as {min(known)!r}")
        if complaints:
            raise ValueError(f"Nothing was added, because of {'; '.join(complaints)}.")

    def _known(self, ids: Sequence[str] | set[str]) -> set[str]:
        """Which of some ids the collection holds."""
        known: set[str] = set()
        ids = [id_ for id_ in ids if _is_storable(id_)]
        for start in range(0, len(ids), _BATCH):
            expression = _filter(None, tuple(ids[start : start + _BATCH]), "")
            known |= {found["image_id"] for found in self._client.query(self.collection, filter=expression)}
        return known


def _filter(exclude: Sequence[str] | None, restrict: Sequence[str] | None, where: str) -> str:
    """Milvus' filter expression; ids are written as quoted, escaped literals, so that none can end its string."""
    parts = [f"({where})"] if where else []
    if exclude:
        parts.append(f"image_id not in {json.dumps(list(exclude), ensure_ascii=False)}")
    if restrict is not None:
        parts.append(f"image_id in {json.dumps(list(restrict), ensure_ascii=False)}")
    return " and ".join(parts)


def _connect(uri: str | os.PathLike, token: str | None) -> Any:
    """A client; pymilvus takes a path that does not end in ".db" for a server's address."""
    is_address = "://" in str(uri) or str(uri).startswith("unix:")
    if not is_address and not str(uri).endswith(".db"):
        raise ValueError(
            f"{str(uri)!r} is neither a file whose name ends in .db nor a server's address. Give for example "
            "gallery.db or http://localhost:19530."
        )
    with _milvus_errors(f"opening {uri}", "Make the file's folder, or check the server's address and token"):
        return MilvusClient(str(uri), token=token or "")


@contextmanager
def _milvus_errors(what: str, advice: str) -> Iterator[None]:
    """Say in one line what pymilvus' errors say in several."""
    try:
        yield
    except MilvusException as error:
        found = " ".join(str(error.message).split())
        raise ValueError(f"Milvus failed while {what}: {found}. {advice}.") from error


def _is_storable(id_: Any) -> bool:
    """Whether Milvus' filters can name an id: as JSON they would write control characters in a way it cannot read."""
    return isinstance(id_, str) and not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]", id_)


def _storable(lists: list[tuple[str, ...] | None]) -> list[tuple[str, ...] | None]:
    """Lists of ids without those that no collection can hold."""
    return [None if ids is None else tuple(filter(_is_storable, ids)) for ids in lists]
