"""The two metrics: worked by hand, against a plain loop, and as `evaluate` loads them."""

import doctest
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hycir_hf.metrics import average_precision_per_query, find_hits, recall_per_query

METRICS = Path(__file__).parents[1] / "hycir_hf" / "metrics"


def load(name, folder=METRICS):
    evaluate = pytest.importorskip("evaluate", reason="needs the extra hycir_hf[eval]")
    return evaluate.load(str(folder / name))


def recall(rankings, targets, k):
    return recall_per_query(find_hits(rankings, targets, k), k).mean()


def mean_ap(rankings, targets, k):
    return average_precision_per_query(find_hits(rankings, targets, k), np.array([len(t) for t in targets]), k).mean()


def test_recall_by_hand():
    rankings, targets = [["a", "b", "c"], ["d", "a", "b"]], [["c", "b"], ["b"]]
    assert [recall(rankings, targets, k) for k in (1, 2, 3)] == [0.0, 0.5, 1.0]


def test_map_divides_by_the_smaller_of_targets_and_k():
    """DESIGN's example: six targets, hits at ranks 1, 2, 5, K = 5; other conventions give 0.433 and 0.867."""
    rankings, targets = [[1, 2, 8, 9, 5]], [[1, 2, 3, 4, 5, 6]]
    assert mean_ap(rankings, targets, 5) == pytest.approx(0.52)
    assert mean_ap([["x", "a", "y"]], [["a"]], 3) == pytest.approx(0.5)
    assert mean_ap([["a", "b"], ["x", "y"]], [["a", "b"], ["z"]], 2) == pytest.approx(0.5)


def test_cirr_conventions_are_what_the_rankings_hold():
    """Reference at rank 1: dropped, the target rises. Restricted to the subset, it rises further."""
    ranking, reference, target, subset = ["ref", "x", "s1", "y", "target", "s2"], "ref", "target", {"ref", "s1", "s2"}
    without = [id_ for id_ in ranking if id_ != reference]
    restricted = [id_ for id_ in without if id_ in subset | {target}]
    assert recall([ranking], [[target]], 4) == 0 and recall([without], [[target]], 4) == 1
    assert recall([restricted], [[target]], 1) == 0 and recall([restricted], [[target]], 2) == 1


def test_the_same_id_under_another_query_is_no_hit():
    assert recall([["a", "b"], ["b", "a"]], [["b"], ["a"]], 1) == 0


def plain_scores(rankings, targets, k):
    recalls, precisions = [], []
    for ranking, wanted in zip(rankings, targets, strict=True):
        found, total = 0, 0.0
        for rank in range(1, k + 1):
            if ranking[rank - 1] in wanted:
                found += 1
                total += found / rank
        recalls.append(float(found > 0))
        precisions.append(total / min(len(wanted), k))
    return sum(recalls) / len(recalls), sum(precisions) / len(precisions)


@st.composite
def problems(draw):
    ids = list(range(draw(st.integers(2, 12))))
    k = draw(st.integers(1, len(ids)))
    num_queries = draw(st.integers(1, 6))
    rankings = [draw(st.permutations(ids))[: draw(st.integers(k, len(ids)))] for _ in range(num_queries)]
    wanted = st.lists(st.integers(-3, 14), min_size=1, max_size=6, unique=True)
    return rankings, [draw(wanted) for _ in range(num_queries)], k


@given(problems(), st.booleans())
@settings(max_examples=100, deadline=None)
def test_both_agree_with_a_plain_loop(problem, as_strings):
    rankings, targets, k = problem
    if as_strings:
        rankings, targets = ([[str(id_) for id_ in row] for row in rows] for rows in (rankings, targets))
    expected = plain_scores(rankings, targets, k)
    assert (recall(rankings, targets, k), mean_ap(rankings, targets, k)) == pytest.approx(expected)


def test_arrays_are_read_as_lists():
    rankings = np.array([[4, 2, 7], [1, 0, 3]])
    assert recall(rankings, [np.array([7]), np.array([9])], 3) == 0.5


@pytest.mark.parametrize(
    ("rankings", "targets", "k", "error", "words"),
    [
        ([["a", "b"]], [["a"], ["b"]], 1, ValueError, "1 rankings and the targets of 2 queries"),
        ([], [], 1, ValueError, "0 rankings"),
        ([["a", "b"], ["a", "a"]], [["a"], ["b"]], 1, ValueError, "ranking of query 1 hold 'a' twice"),
        ([["a", "b"]], [["a", "a"]], 1, ValueError, "targets of query 0 hold 'a' twice"),
        ([["a", "b"]], [[]], 1, ValueError, "query 0 has none"),
        ([["a", "b"]], [["a"]], 3, ValueError, "ranking of query 0 holds 2"),
        ([["1", "2"]], [[1]], 1, TypeError, "'str'.*'int'"),
        ([[1.0, 2.0]], [[1.0]], 1, TypeError, "'float'"),
        ([["a", None]], [["a"]], 2, TypeError, "NoneType"),
        (["abc"], [["a"]], 1, TypeError, "Wrap it in a list"),
        ("abc", [["a"]], 1, TypeError, "the string 'abc'"),
    ],
)
def test_errors_name_the_query(rankings, targets, k, error, words):
    with pytest.raises(error, match=words):
        find_hits(rankings, targets, k)


def test_the_file_that_both_folders_carry_is_the_same():
    assert (METRICS / "recall_at_k" / "hits.py").read_bytes() == (METRICS / "map_at_k" / "hits.py").read_bytes()


@pytest.mark.parametrize("name", ["recall_at_k", "map_at_k"])
def test_evaluate_loads_a_copy_of_the_folder_and_its_example_holds(name, tmp_path, monkeypatch):
    """From a folder of its own, as after a push; the docstring's example gives what it says."""
    shutil.copytree(METRICS / name, tmp_path / name)
    metric = load(name, tmp_path)
    example = doctest.DocTestParser().get_doctest(
        metric.inputs_description.replace(f"hycir_hf/metrics/{name}", str(tmp_path / name)),
        {"evaluate": pytest.importorskip("evaluate")},
        name,
        None,
        None,
    )
    assert example.examples and doctest.DocTestRunner().run(example).failed == 0


def test_evaluate_takes_integers_strings_and_several_ranks():
    metric = load("recall_at_k")
    as_integers = metric.compute(predictions=[[7, 2], [5, 1]], references=[[2], [5]], k=[1, 2], per_query=True)
    as_strings = metric.compute(
        predictions=[["7", "2"], ["5", "1"]], references=[["2"], ["5"]], k=[1, 2], per_query=True
    )
    assert as_integers == as_strings
    assert as_integers == {
        "recall@1": 0.5,
        "recall@2": 1.0,
        "recall@1_per_query": [0.0, 1.0],
        "recall@2_per_query": [1.0, 1.0],
    }


@pytest.mark.parametrize("k", [0, [], [1, -1], 1.5, True, "5"])
def test_evaluate_refuses_bad_ranks(k):
    with pytest.raises(ValueError, match="whole numbers of at least 1"):
        load("map_at_k").compute(predictions=[[1, 2]], references=[[1]], k=k)
