import numpy as np
import pytest

from hycir_hf.syncir import filter_triplets, language_similarity
from hycir_hf.syncir.filter import EQUAL_CAPTIONS, UNUSABLE_ANSWER, Reason, split_triplets

VECTORS = {
    "dog": [2.0, 0, 0],
    "cat": [0, 3.0, 0],
    "make it a cat": [-2.0, 1.0, 0],
    "sing": [0, 0, 1.0],
    "nil": [0, 0, 0],
}
TRIPLETS = {
    "reference_caption": ["dog", "dog", "cat", "dog"],
    "query_text": ["make it a cat", "sing", "sing", "make it a cat"],
    "target_caption": ["cat", "cat", " Cat", "cat"],
    "name": ["a", "b", "c", "d"],
}


def embed(texts):
    return np.array([VECTORS[text] for text in texts])


def test_similarity_is_that_of_the_sum_of_raw_embeddings():
    # (2, 0, 0) + (-2, 1, 0) = (0, 1, 0), along the cat; (2, 0, 0) + (0, 0, 1) at right angles to it
    similarity = language_similarity(["dog", "dog"], ["make it a cat", "sing"], ["cat", "cat"], embed)
    np.testing.assert_allclose(similarity, [1.0, 0.0], atol=1e-7)
    unequal = language_similarity(["dog"], ["sing"], ["dog"], embed)  # (2, 0, 1) against (2, 0, 0)
    np.testing.assert_allclose(unequal, [2 / np.sqrt(5)], atol=1e-6)


def test_each_text_is_embedded_once():
    seen = []

    def counting(texts):
        seen.extend(texts)
        return embed(texts)

    language_similarity(["dog", "dog"], ["sing", "sing"], ["cat", "cat"], counting)
    assert sorted(seen) == ["cat", "dog", "sing"]


def test_triplets_are_kept_or_dropped_with_a_reason():
    result = filter_triplets(TRIPLETS, embed)
    assert result.kept["name"] == ["a", "d"]
    assert result.dropped["name"] == ["b", "c"]
    assert result.dropped["reason"] == ["low_similarity", EQUAL_CAPTIONS]
    assert result.dropped["detail"] == ["0.0000 < 0.7", ""]
    assert result.dropped["similarity"] == [0.0, None]


def test_the_threshold_itself_is_kept():
    assert split_triplets({"similarity": [0.7, 0.69]}, [None, None], {"similarity": 0.7}).kept == {"similarity": [0.7]}


def test_a_score_that_is_no_number_is_dropped():
    result = split_triplets({"similarity": [float("nan"), None]}, [None, None], {"similarity": -1})
    assert len(result.dropped["reason"]) == 2


def test_every_score_has_its_own_threshold():
    scores = {"similarity": [0.9, 0.9], "query_gain": [0.1, -0.1]}
    result = split_triplets(scores, [None, None], {"similarity": 0.7, "query_gain": 0.0})
    assert list(zip(result.dropped["reason"], result.dropped["detail"], strict=True)) == [
        Reason("low_query_gain", "-0.1000 < 0")
    ]


def test_dropped_triplets_are_counted_by_kind_and_unusable_answers_by_what_is_wrong():
    reasons = [Reason(EQUAL_CAPTIONS), Reason(UNUSABLE_ANSWER, "cut off"), Reason(UNUSABLE_ANSWER, "refusal"), None]
    result = split_triplets({"similarity": [None, None, None, 0.1]}, reasons, {"similarity": 0.5})
    assert result.counts() == {
        "kept": 0,
        "dropped": {
            "equal_captions": 1,
            "low_similarity": 1,
            "unusable_answer: cut off": 1,
            "unusable_answer: refusal": 1,
        },
    }


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        (Reason("low_query_gain", "-0.1000 < 0"), "low query_gain: -0.1000 < 0"),
        (Reason("equal_captions"), "equal captions"),
    ],
)
def test_a_reason_reads_as_words(reason, text):
    assert str(reason) == text


@pytest.mark.parametrize(
    ("triplets", "threshold", "words"),
    [
        ({"query_text": ["x"]}, 0.7, "reference_caption"),
        ({**TRIPLETS, "name": ["a"]}, 0.7, "name"),
        (TRIPLETS, 1.5, r"similarity.*1\.5"),
    ],
)
def test_bad_input(triplets, threshold, words):
    with pytest.raises(ValueError, match=words):
        filter_triplets(triplets, embed, threshold)


def test_nothing_is_filtered_from_nothing():
    empty = {name: [] for name in TRIPLETS}
    assert filter_triplets(empty, embed).kept["similarity"] == []
