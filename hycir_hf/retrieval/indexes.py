"""The five faiss index types: sizes that grow with the gallery, and search among allowed rows only.

Every index holds inner products and labels its vectors with int64 keys, which rise in gallery order. Exhaustive types
("flat", "sq8") see every allowed vector; the others see a part of them and are searched again in full when that part
holds too few.
"""

import importlib
import math
from typing import Any

import numpy as np

faiss: Any = importlib.import_module("faiss")  # untyped: its stubs lack half of what is used here

INDEX_TYPES = ("flat", "sq8", "hnsw", "ivf_flat", "ivf_pq")
EXHAUSTIVE_TYPES = ("flat", "sq8")
EXACT_TYPES = ("flat", "hnsw")  # their vectors can be read back as they were added
IVF_TYPES = ("ivf_flat", "ivf_pq")
MIN_IMAGES_IVF_PQ = 256  # one training vector for each of the 2^8 centroids of a sub-quantizer
MIN_RESTRICTED_SHARE = 0.1  # with a smaller share of the rows allowed, an approximate index is searched in full


def check_index_type(index_type: str) -> None:
    """Raise ValueError unless `index_type` names one of the five index types."""
    if index_type not in INDEX_TYPES:
        raise ValueError(
            f"index_type must be one of {list(INDEX_TYPES)}, not {index_type!r}. Take 'flat' for exact search."
        )


def build_index(index_type: str, features: np.ndarray) -> Any:
    """Train a faiss index on features of shape (N, D), float32, and fill it with keys 0..N-1.

    Args:
        index_type (`str`): "flat" exact; "sq8" one byte a dimension; "hnsw" graph; "ivf_flat" inverted lists; "ivf_pq"
            inverted lists of product-quantized vectors, about D/4 bytes an image.
        features (`np.ndarray` of shape `(N, D)`): What the index will hold, and what it is trained on.

    Returns:
        `faiss.Index`: Trained and filled.

    Raises:
        ValueError: If there are too few images for the type.
    """
    check_index_type(index_type)
    count, dim = features.shape
    minimum = {"flat": 0, "hnsw": 0, "ivf_pq": MIN_IMAGES_IVF_PQ}.get(index_type, 1)
    if count < minimum:
        raise ValueError(
            f"An index of type {index_type!r} needs at least {minimum} images, but found {count}. Use "
            "index_type='flat'."
        )
    index = _new_index(index_type, count, dim)
    index.train(features)
    index.add(features)
    return index


def _new_index(index_type: str, count: int, dim: int) -> Any:
    inner_product = faiss.METRIC_INNER_PRODUCT
    if index_type == "flat":
        return faiss.IndexFlatIP(dim)
    if index_type == "sq8":
        return faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_8bit, inner_product)
    if index_type == "hnsw":
        index: Any = faiss.IndexHNSWFlat(dim, 32, inner_product)
        index.hnsw.efConstruction = 200 if count > 1000 else 80
        return index
    lists = num_lists(count)
    if index_type == "ivf_flat":
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, inner_product)
    else:
        index = faiss.IndexIVFPQ(faiss.IndexFlatIP(dim), dim, lists, _num_subquantizers(dim), 8, inner_product)
        index.pq.cp.min_points_per_centroid = 1
    index.cp.spherical = True  # centroids of unit vectors compared by inner product
    index.cp.min_points_per_centroid = 1
    return index


def num_lists(count: int) -> int:
    """Inverted lists for N images: 4 sqrt(N), but at least 39 images a list, as faiss's k-means asks for."""
    return max(1, min(int(4 * math.sqrt(count)), count // 39))


def _num_subquantizers(dim: int) -> int:
    """The most sub-quantizers that divide D with at least four dimensions each."""
    return next((parts for parts in range(max(dim // 4, 1), 0, -1) if dim % parts == 0), 1)


def remove_keys(index_type: str, index: Any, keys: np.ndarray) -> Any:
    """Take vectors out; returns the index to use from now on (hnsw is rebuilt, since its graph cannot forget)."""
    if index_type != "hnsw":
        index.remove_ids(faiss.IDSelectorBatch(np.ascontiguousarray(keys, dtype=np.int64)))
        return index
    features = index.reconstruct_n(0, index.ntotal) if index.ntotal else np.zeros((0, index.d), np.float32)
    return build_index(index_type, np.delete(features, keys, axis=0))


def flat_features(index: Any) -> np.ndarray:
    """The vectors (N, D) of a flat index, as a view."""
    return faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(index.ntotal, index.d)


def search_index(
    index_type: str, index: Any, queries: np.ndarray, k: int, allowed: np.ndarray | None, num_allowed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best allowed vectors for each query.

    Args:
        index_type (`str`): The index's type.
        index (`faiss.Index`): Filled, at least k vectors allowed.
        queries (`np.ndarray` of shape `(Q, D)`): float32.
        k (`int`): 1 <= k <= num_allowed.
        allowed (`np.ndarray` of shape `(max key + 1,)`, *optional*): Whether a key may be found; None for all.
        num_allowed (`int`): How many vectors of the index `allowed` lets through.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: Scores and keys, both (Q, k); k vectors are found always.
    """
    # faiss keeps a plain pointer to the bits and the selector: both must live until the search has returned.
    bits = None if allowed is None else np.packbits(allowed, bitorder="little")
    selector = None if bits is None else faiss.IDSelectorBitmap(bits)
    if index_type in EXHAUSTIVE_TYPES:
        return _faiss_search(index, queries, k, faiss.SearchParameters, sel=selector)
    if num_allowed < MIN_RESTRICTED_SHARE * index.ntotal:
        return _search_in_full(index_type, index, queries, k, selector)
    # A walk under a selector gives k allowed vectors that happened to lie on its way, even where far better ones lie
    # beyond. So the nearest of all are found and the allowed of them kept; where these are too few, what is allowed
    # lies elsewhere, and only the search in full finds the best of it.
    num_fetched = k if allowed is None else min(index.ntotal, math.ceil(2 * k * index.ntotal / num_allowed))
    scores, keys = _search_near(index_type, index, queries, num_fetched)  # (Q, F)
    is_found = keys >= 0 if allowed is None else (keys >= 0) & allowed[keys]
    best = np.argsort(~is_found, axis=1, kind="stable")[:, :k]
    scores, keys = np.take_along_axis(scores, best, axis=1), np.take_along_axis(keys, best, axis=1)  # (Q, k)
    short = is_found.sum(axis=1) < k  # (Q,)
    if short.any():
        scores[short], keys[short] = _search_in_full(index_type, index, queries[short], k, selector)
    return scores, keys


def _search_near(index_type: str, index: Any, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Approximate search among all vectors, with an effort that grows with N and k; key -1 where none was found."""
    if index_type == "hnsw":
        effort = max(64, 2 * k, int(4 * math.log2(index.ntotal + 1)))
        return _faiss_search(index, queries, k, faiss.SearchParametersHNSW, efSearch=effort)
    lists = max(8, index.nlist // 16, math.ceil(4 * k * index.nlist / index.ntotal))
    return _faiss_search(index, queries, k, faiss.SearchParametersIVF, nprobe=min(index.nlist, lists))


def _search_in_full(
    index_type: str, index: Any, queries: np.ndarray, k: int, selector: Any
) -> tuple[np.ndarray, np.ndarray]:
    if index_type == "hnsw":
        storage = faiss.downcast_index(index.storage)
        return _faiss_search(storage, queries, k, faiss.SearchParameters, sel=selector)
    return _faiss_search(index, queries, k, faiss.SearchParametersIVF, sel=selector, nprobe=index.nlist)


def _faiss_search(
    index: Any, queries: np.ndarray, k: int, parameters: Any, **values: Any
) -> tuple[np.ndarray, np.ndarray]:
    values = {name: value for name, value in values.items() if value is not None}
    return index.search(np.ascontiguousarray(queries), k, params=parameters(**values))
