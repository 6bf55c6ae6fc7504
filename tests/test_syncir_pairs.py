"""Image pair extraction, against a plain reading of the rule, one image at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hycir_hf.syncir import find_image_groups, find_image_pairs, pairs, pairs_of_groups


def plain_groups(features, max_similarity=0.94, gap=0.002, size=6):
    """Write the rule as DESIGN words it."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarities = (unit @ unit.T).astype(np.float64).round(6)
    groups = []
    for row, similarity in enumerate(similarities):
        group, last = [row], np.inf
        for other in sorted(range(len(unit)), key=lambda it: (-similarity[it], it)):
            is_free = other != row and similarity[other] < max_similarity and last - similarity[other] > gap
            if is_free and len(group) < size:
                group.append(other)
                last = similarity[other]
        if len(group) == size:
            groups.append(group)
    return np.array(groups, dtype=np.int64).reshape(-1, size)


def random_features(count, dim, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 120), st.integers(2, 8), st.integers(3, 7), st.integers(0, 10**6))
def test_groups_are_the_plain_reading(count, dim, size, seed):
    features = random_features(count, dim, seed)
    features[seed % count] = features[(seed // 7) % count]  # an exact duplicate
    found = find_image_groups(features, group_size=size)
    np.testing.assert_array_equal(found, plain_groups(features, size=size))


def test_rows_that_need_more_neighbours_are_searched_again(monkeypatch):
    monkeypatch.setattr(pairs, "_FIRST_NEIGHBOURS", 8)
    monkeypatch.setattr(pairs, "_BLOCK", 7)
    features = random_features(40, 6)
    features[:30] = features[0] + 1e-3 * features[:30]  # thirty near-identical images
    np.testing.assert_array_equal(find_image_groups(features), plain_groups(features))


def test_nine_pairs_of_six_as_counted_in_cirr():
    pairs_found, group_ids = pairs_of_groups(np.array([[10, 11, 12, 13, 14, 15]]))
    expected = [(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0)]
    assert (pairs_found - 10).tolist() == [list(pair) for pair in expected]
    assert group_ids.tolist() == [0] * 9


def test_a_repeated_pair_is_kept_where_it_came_first():
    pairs_found, group_ids = pairs_of_groups(np.array([[0, 1, 2], [1, 2, 0], [2, 1, 0]]))
    assert pairs_found.tolist() == [[0, 1], [1, 2], [2, 0], [2, 1], [1, 0], [0, 2]]
    assert group_ids.tolist() == [0, 0, 0, 2, 2, 2]


def test_exact_duplicates_never_make_a_pair():
    features = np.repeat(random_features(60, 5), 2, axis=0)
    found = find_image_pairs(features)
    assert len(found) and not (found // 2 == found[:, ::-1] // 2).all(axis=1).any()


def test_too_few_images_give_no_pairs():
    assert find_image_pairs(random_features(5, 4)).shape == (0, 2)
    assert find_image_pairs(np.ones((50, 4), dtype=np.float32)).shape == (0, 2)


def test_scale_and_framework_of_the_features_do_not_matter():
    features = random_features(80, 6)
    scaled = features * np.random.default_rng(1).uniform(0.1, 50, size=(80, 1)).astype(np.float32)
    np.testing.assert_array_equal(find_image_pairs(features), find_image_pairs(torch.from_numpy(scaled)))


def test_the_approximate_index_repeats_itself_and_keeps_the_rule(monkeypatch):
    monkeypatch.setattr(pairs, "EXACT_UP_TO", 500)
    features = random_features(2000, 8)
    first, again = find_image_groups(features, seed=3), find_image_groups(features, seed=3)
    np.testing.assert_array_equal(first, again)
    assert len(first) > 1900
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarity = np.einsum("gd,gsd->gs", unit[first[:, 0]], unit[first[:, 1:]])
    assert (similarity < 0.94).all() and (np.diff(similarity, axis=1) < -0.0019).all()


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (np.zeros((3, 4)), {}, "3 rows .*row 0"),
        (np.full((3, 4), np.nan), {}, "3 rows .*row 0"),
        (np.ones(4), {}, r"\(N, D\).*\(4,\)"),
        (np.ones((9, 4)), {"group_size": 2, "max_similarity": 2}, "max_similarity .* group_size"),
    ],
)
def test_bad_input_is_named(features, options, message):
    with pytest.raises(ValueError, match=message):
        find_image_pairs(features, **options)
