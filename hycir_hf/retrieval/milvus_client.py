"""Milvus' client, its errors in one line, and filters that hold ids."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

try:
    from pymilvus import DataType, MilvusClient, MilvusException
except ImportError as error:
    raise ImportError(
        "hycir_hf.retrieval.milvus needs pymilvus, which cannot be imported. Install it with pip install "
        "'hycir_hf[milvus]'."
    ) from error

__all__ = ["DataType", "MilvusClient", "connect", "id_filter", "is_storable", "milvus_errors", "storable"]


def id_filter(exclude: Sequence[str] | None, restrict: Sequence[str] | None, where: str) -> str:
    """Write Milvus' filter expression; ids are quoted, escaped literals, so that none can end its string."""
    parts = [f"({where})"] if where else []
    if exclude:
        parts.append(f"image_id not in {json.dumps(list(exclude), ensure_ascii=False)}")
    if restrict is not None:
        parts.append(f"image_id in {json.dumps(list(restrict), ensure_ascii=False)}")
    return " and ".join(parts)


def connect(uri: str | os.PathLike, token: str | None) -> Any:
    """Open a client; pymilvus takes a path that does not end in ".db" for a server's address."""
    is_address = "://" in str(uri) or str(uri).startswith("unix:")
    if not is_address and not str(uri).endswith(".db"):
        raise ValueError(
            f"{str(uri)!r} is neither a file whose name ends in .db nor a server's address. Give for example "
            "gallery.db or http://localhost:19530."
        )
    with milvus_errors(f"opening {uri}", "Make the file's folder, or check the server's address and token"):
        return MilvusClient(str(uri), token=token or "")


@contextmanager
def milvus_errors(what: str, advice: str) -> Iterator[None]:
    """Say in one line what pymilvus' errors say in several."""
    try:
        yield
    except MilvusException as error:
        found = " ".join(str(error.message).split())
        raise ValueError(f"Milvus failed while {what}: {found}. {advice}.") from error


def is_storable(id_: Any) -> bool:
    """Tell whether Milvus' filters can name an id: it cannot read JSON's control characters."""
    return isinstance(id_, str) and not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]", id_)


def storable(lists: list[tuple[str, ...] | None]) -> list[tuple[str, ...] | None]:
    """Leave out the ids that no collection can hold."""
    return [None if ids is None else tuple(filter(is_storable, ids)) for ids in lists]
