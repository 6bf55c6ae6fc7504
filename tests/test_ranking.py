"""Blocked ranking against a full sort."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hycir_hf.retrieval import rank_candidates, rank_gallery


def full_sort(queries, gallery, k, exclude_rows):
    scores = queries @ gallery.T
    for row, excluded in enumerate(exclude_rows):
        scores[row, excluded] = -np.inf
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


@given(st.integers(1, 9), st.integers(3, 300), st.integers(1, 60), st.integers(0, 2**32 - 1), st.integers(1, 3000))
@settings(max_examples=100, deadline=None)
def test_blocks_give_the_full_sort_ties_included(num_queries, num_images, k, seed, product_elements):
    """Small whole numbers: products are exact, ties and both zeros abound."""
    random = np.random.default_rng(seed)
    queries = random.integers(-2, 3, (num_queries, 3)).astype(np.float32)
    gallery = random.integers(-2, 3, (num_images, 3)).astype(np.float32)
    exclude = [random.choice(num_images, random.integers(0, 3), replace=False).tolist() for _ in range(num_queries)]
    k = min(k, num_images - max(map(len, exclude)))
    rows, scores = rank_gallery(queries, gallery, k, exclude, product_elements=product_elements)
    assert (rows == full_sort(queries, gallery, k, exclude)).all()
    assert (scores == np.take_along_axis(queries @ gallery.T, rows, axis=1)).all()


def test_tensors_and_real_numbers():
    torch.manual_seed(0)
    queries, gallery = torch.randn(40, 16), torch.randn(3000, 16)
    rows, scores = rank_gallery(queries, gallery, 50)
    expected = torch.topk(queries @ gallery.T, 50)
    assert (rows == expected.indices.numpy()).all()
    np.testing.assert_allclose(scores, expected.values.numpy(), rtol=1e-5)


def test_candidates_are_ordered_by_score_then_row():
    gallery = np.array([[1, 0], [0, 1], [1, 0], [2, 0]])
    assert rank_candidates(np.array([[1, 0], [0, 1]]), gallery, [[3, 2, 1, 0], [2, 1]]) == [[3, 0, 2, 1], [1, 2]]


@pytest.mark.parametrize(
    ("queries", "gallery", "k", "exclude", "words"),
    [
        (np.ones((2, 3)), np.ones((4, 5)), 1, None, "width 5, but found 3"),
        (np.ones((2, 3)), np.ones((4, 3)), 5, None, r"k .* 4, .* 5"),
        (np.ones((2, 3)), np.ones((4, 3)), 4, [[0], []], r"k .* 3, "),
        (np.ones((2, 3)), np.ones((4, 3)), 0, None, r"k .*not 0"),
        (np.ones((2, 3)), np.ones((4, 3)), 1, [[0]], r"exclude_rows .* 1 lists for 2 queries"),
        (np.full((2, 3), np.nan), np.ones((4, 3)), 1, None, r"2 rows of the query features"),
        (np.ones((2, 3)), np.ones((4, 3)), 1, [[4], []], r"exclude_rows .*4.*0 to 3"),
        (np.ones(3), np.ones((4, 3)), 1, None, "shape"),
    ],
)
def test_errors(queries, gallery, k, exclude, words):
    with pytest.raises(ValueError, match=words):
        rank_gallery(queries, gallery, k, exclude)
