import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hycir_hf import Gallery, RetrievalResults
from hycir_hf.retrieval import gallery as gallery_module
from hycir_hf.retrieval import indexes
from hycir_hf.retrieval.gallery_files import read_manifest

INDEX_TYPES = ("flat", "sq8", "hnsw", "ivf_flat", "ivf_pq")


def unit_features(count, dim=16, seed=0):
    """Unit features around a few centres, so that approximate indexes have something to find."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((12, dim))
    features = centres[rng.integers(0, 12, count)] + 0.5 * rng.standard_normal((count, dim))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def names(count):
    return [f"image-{row}" for row in range(count)]


def brute_force(queries, features, ids, k, allowed=None):
    """Ids of the k best allowed rows for each query, ties in gallery order."""
    scores = (queries.astype(np.float64) @ features.T.astype(np.float64)).astype(np.float32)
    rankings = []
    for row in scores:
        order = np.argsort(-row, kind="stable")
        rankings.append([ids[i] for i in order if allowed is None or ids[i] in allowed][:k])
    return rankings


# RetrievalResults


@pytest.mark.parametrize(
    ("ids", "scores", "message"),
    [
        ([["a"]], [], "1 rows of ids and 0"),
        ([["a", "b"]], [[1.0]], "row 0 .*2 ids .*1 scores"),
        ([["a"], ["a", "b"]], [[1.0], [0.1, 0.2]], r"row 1 .*0\.1 to 0\.2 .*rank 2"),
        ([["a", "b", "a"]], [[3.0, 2.0, 1.0]], "Row 0 .*'a'"),
        ([["a"]], [[float("nan")]], "row 0 at rank 1 is nan"),
        (["ab"], [[1.0, 0.5]], "Row 0 .*'ab'"),
    ],
)
def test_results_refuse_what_is_no_ranking(ids, scores, message):
    with pytest.raises(ValueError, match=message):
        RetrievalResults(ids, scores)


def test_results_give_ragged_rows_as_pairs():
    results = RetrievalResults([["a", "b"], []], [[0.5, 0.5], []])
    assert len(results) == 2 and results[0] == [("a", 0.5), ("b", 0.5)] and list(results)[1] == []


@pytest.mark.parametrize("index_type", ["flat", "hnsw"])
def test_features_come_back_as_they_were_added(index_type):
    features = unit_features(30)
    gallery = Gallery.from_features(features, names(30), index_type=index_type)
    gallery.remove(["image-3"])
    np.testing.assert_array_equal(gallery.features(), np.delete(features, 3, axis=0))
    with pytest.raises(ValueError, match="sq8"):
        Gallery.from_features(features, names(30), index_type="sq8").features()


# Search


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_flat_search_is_brute_force_with_ties_in_gallery_order(data):
    """Small whole numbers: scores are exact, and ties are everywhere, also across rank k."""
    count, dim = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 5))
    seed = data.draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    features = rng.integers(-1, 2, (count, dim)).astype(np.float32)
    queries = rng.integers(-1, 2, (data.draw(st.integers(1, 30)), dim)).astype(np.float32)
    k = data.draw(st.integers(1, count + 5))
    ids = names(count)
    results = Gallery.from_features(features, ids).search(queries, k=k)
    assert results.ids == brute_force(queries, features, ids, k)


def test_identical_images_tie_exactly_wherever_they_stand():
    base = unit_features(40, dim=48, seed=1)
    features = np.concatenate([base] * 25)  # 1000 rows, 25 copies of each
    results = Gallery.from_features(features, names(1000)).search(unit_features(64, dim=48, seed=2), k=10)
    for row_ids, row_scores in zip(results.ids, results.scores, strict=True):
        assert len(set(row_scores)) == 1
        assert row_ids == [f"image-{int(row_ids[0].split('-')[1]) + 40 * copy}" for copy in range(10)]


def test_rounding_in_faiss_does_not_reach_the_ranking(monkeypatch):
    """Other BLAS builds round a score by where its column stands: here every score comes back with such noise."""
    base = unit_features(40, dim=48, seed=1)
    features, queries = np.concatenate([base] * 5), unit_features(9, dim=48, seed=2)
    search, noise = gallery_module.indexes.search_index, np.random.default_rng(0)

    def noisy_search(*args):
        scores, keys = search(*args)
        scores = scores + noise.uniform(-1e-6, 1e-6, scores.shape).astype(np.float32)
        order = np.argsort(-scores, axis=1)
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(keys, order, axis=1)

    gallery = Gallery.from_features(features, names(200))
    clean = gallery.search(queries, k=8)
    monkeypatch.setattr(gallery_module.indexes, "search_index", noisy_search)
    assert gallery.search(queries, k=8) == clean
    assert clean.ids == brute_force(queries, features, names(200), 8)


@pytest.mark.parametrize("index_type", INDEX_TYPES)
def test_every_index_type_finds_what_is_near(index_type):
    features, ids = unit_features(600), names(600)
    gallery = Gallery.from_features(features, ids, index_type=index_type)
    queries = unit_features(20, seed=3)
    exact = brute_force(queries, features, ids, 10)
    found = gallery.search(queries, k=10).ids
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, found, strict=True)])
    assert recall > (0.6 if index_type == "ivf_pq" else 0.95)


@pytest.mark.parametrize("index_type", INDEX_TYPES)
def test_exclude_and_restrict_act_before_top_k(index_type):
    features, ids = unit_features(500), names(500)
    gallery = Gallery.from_features(features, ids, index_type=index_type)
    queries = unit_features(6, seed=4)
    whole = gallery.search(queries, k=500)
    assert all(len(row) == 500 for row in whole.ids)
    # Shared: the 40 best of the first query go, and every row is still full.
    gone = whole.ids[0][:40]
    for row in gallery.search(queries, k=10, exclude_ids=gone).ids:
        assert len(row) == 10 and not set(row) & set(gone)
    # Per query: each loses its own best images, and gets the next ones.
    own = [row[:3] for row in whole.ids]
    excluded = gallery.search(queries, k=5, exclude_ids=own)
    if index_type in ("flat", "sq8"):
        assert excluded.ids == [row[3:8] for row in whole.ids]
    assert all(not set(row) & set(gone) and len(row) == 5 for row, gone in zip(excluded.ids, own, strict=True))
    # A short list: what is left, best first, though these are the worst of all.
    worst = [row[-7:] for row in whole.ids]
    restricted = gallery.search(queries, k=10, restrict_to=worst)
    assert [sorted(row) for row in restricted.ids] == [sorted(row) for row in worst]
    # Both at once, and None for a query without a list.
    both = gallery.search(queries, k=10, restrict_to=worst, exclude_ids=[row[-6:] for row in whole.ids])
    assert both.ids == [[row[0]] for row in worst]
    mixed = gallery.search(queries[:2], k=3, exclude_ids=[None, whole.ids[1][:1]])
    assert whole.ids[1][0] not in mixed.ids[1] and len(mixed.ids[0]) == 3


@pytest.mark.parametrize("index_type", ["hnsw", "ivf_flat"])
def test_approximate_indexes_find_the_best_of_what_is_allowed_far_from_the_query(index_type):
    """The half nearest to each query is excluded: a graph walked under a filter ends among whatever it met."""
    features, queries, ids = unit_features(4000), unit_features(10, seed=4), names(4000)
    gallery = Gallery.from_features(features, ids, index_type=index_type)
    near = brute_force(queries, features, ids, 2000)
    found = gallery.search(queries, k=10, exclude_ids=near).ids
    allowed = gallery.search(queries, k=10, restrict_to=[sorted(set(ids) - set(row)) for row in near]).ids
    for row, query in enumerate(queries):
        exact = brute_force(query[None], features, ids, 10, set(ids) - set(near[row]))[0]
        assert found[row] == allowed[row] == exact


@pytest.mark.parametrize(("index_type", "k"), [("hnsw", 500), ("ivf_flat", 500)])
def test_effort_grows_with_k(index_type, k):
    features, queries, ids = unit_features(8000), unit_features(5, seed=4), names(8000)
    found = Gallery.from_features(features, ids, index_type=index_type).search(queries, k=k).ids
    exact = brute_force(queries, features, ids, k)
    assert np.mean([len(set(a) & set(b)) / k for a, b in zip(exact, found, strict=True)]) > 0.95


def test_inverted_lists_grow_with_the_gallery():
    """About 4 sqrt(N), as faiss advises, but never fewer than its 39 training images a list."""
    assert [indexes.num_lists(count) for count in (1, 38, 390, 10_000, 10**6)] == [1, 1, 10, 256, 4000]
    small, large = (Gallery.from_features(unit_features(count), index_type="ivf_flat") for count in (400, 4000))
    assert (small._index.nlist, large._index.nlist) == (10, 102)
    assert large._index.quantizer.ntotal == 102 and large._index.ntotal == 4000


def test_per_query_lists_on_flat_are_brute_force():
    rng = np.random.default_rng(5)
    features, ids = rng.integers(-2, 3, (80, 4)).astype(np.float32), names(80)
    queries = rng.integers(-2, 3, (12, 4)).astype(np.float32)
    allowed = [[ids[i] for i in rng.choice(80, rng.integers(0, 80), replace=False)] for _ in queries]
    results = Gallery.from_features(features, ids).search(queries, k=9, restrict_to=allowed)
    for row, query, candidates in zip(results.ids, queries, allowed, strict=True):
        assert row == brute_force(query[None], features, ids, 9, set(candidates))[0]


def test_empty_lists_and_k_beyond_the_gallery():
    gallery = Gallery.from_features(unit_features(5), names(5))
    query = unit_features(1, seed=6)
    assert len(gallery.search(query, k=100).ids[0]) == 5
    assert len(gallery.search(query[0], exclude_ids=[]).ids[0]) == 5
    assert gallery.search(query, restrict_to=[]).ids == [[]]
    assert gallery.search(query, exclude_ids=gallery.ids).ids == [[]]
    assert gallery.search(np.zeros((0, 16)), k=3).ids == []
    assert Gallery.from_features(np.zeros((0, 16)), []).search(query).ids == [[]]


def test_torch_tensors_are_taken_in_any_precision():
    features = torch.from_numpy(unit_features(8))
    gallery = Gallery.from_features(features.requires_grad_(), names(8))
    assert gallery.search(features.detach().to(torch.bfloat16), k=1).ids == [[name] for name in names(8)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": np.zeros((1, 3))}, "16.* 3"),
        ({"features": np.full((2, 16), np.nan)}, "2 rows .*NaN.* row 0"),
        ({"features": np.zeros((1, 1, 16))}, "shape"),
        ({"features": [["a"] * 16]}, "query features"),
        ({"k": 0}, "k .*0"),
        ({"k": 2.5}, r"k .*2\.5"),
        ({"exclude_ids": "image-0"}, "exclude_ids.*'image-0'"),
        ({"exclude_ids": ["image-99"]}, "exclude_ids.*'image-99'"),
        ({"restrict_to": [["image-99"]]}, "restrict_to.*'image-99'"),
        ({"restrict_to": [["image-0"], ["image-1"]]}, "restrict_to.* 2 .* 1 "),
        ({"exclude_ids": ["image-0", ["image-1"]]}, "exclude_ids"),
        ({"encoder_fingerprint": "other"}, "mine.*other"),
    ],
)
def test_search_refuses_in_one_line(arguments, message):
    gallery = Gallery.from_features(unit_features(5), names(5), encoder_fingerprint="mine")
    with pytest.raises(ValueError, match=message) as caught:
        gallery.search(**({"features": unit_features(1)} | arguments))
    assert "\n" not in str(caught.value)


def test_unknown_ids_pass_where_asked_to():
    gallery = Gallery.from_features(unit_features(5), names(5))
    found = gallery.search(unit_features(1), exclude_ids=["nowhere", "image-0"], ignore_unknown=True).ids[0]
    assert len(found) == 4 and "image-0" not in found


def test_another_encoder_is_an_error_not_a_wrong_answer():
    gallery = Gallery.from_features(unit_features(5), names(5), encoder_fingerprint="mine")
    gallery.check_encoder("mine")
    with pytest.raises(ValueError, match=r"mine.*other"):
        gallery.check_encoder("other")


# Building and changing


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ids": names(4)}, ValueError, "4 ids .*5 images"),
        ({"ids": ["a", "b", "a", "c", "d"]}, ValueError, "'a' .*row 2"),
        ({"ids": [0, 1, 2, 3, 4]}, TypeError, "row 0 is 0"),
        ({"index_type": "magic"}, ValueError, "index_type .*'magic'"),
        ({"index_type": "ivf_pq"}, ValueError, "ivf_pq.* 256 .* 5"),
        ({"features": np.full((5, 16), np.inf)}, ValueError, "5 rows .*NaN"),
    ],
)
def test_from_features_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        Gallery.from_features(**({"features": unit_features(5), "ids": names(5)} | arguments))


@pytest.mark.parametrize("index_type", INDEX_TYPES)
def test_add_and_remove_equal_a_gallery_built_so(index_type, tmp_path):
    features, ids = unit_features(400), names(400)
    gallery = Gallery.from_features(features[:350], ids[:350], index_type=index_type)
    gone = [*ids[10:60], ids[349]]
    gallery.remove(gone)
    gallery.add(features[350:], ids[350:])
    gallery.add(features[10:12], ids[10:12])
    expected = [id_ for id_ in ids if id_ not in gone] + ids[10:12]
    assert gallery.ids == expected and len(gallery) == 351 and ids[20] not in gallery and ids[10] in gallery
    queries = unit_features(8, seed=7)
    found = gallery.search(queries, k=351)
    assert all(sorted(row) == sorted(expected) for row in found.ids)
    if index_type in ("flat", "hnsw", "ivf_flat"):
        rows = [ids.index(id_) for id_ in expected]
        exact = brute_force(queries, features[rows], expected, 351)
        assert [row[:5] for row in found.ids] == [row[:5] for row in exact]
    gallery.save(tmp_path / "gallery")
    assert Gallery.load(tmp_path / "gallery").search(queries, k=20).ids == gallery.search(queries, k=20).ids
    gallery.remove(gallery.ids)
    assert len(gallery) == 0 and gallery.search(queries).ids == [[]] * 8
    gallery.add(features[:3], ids[:3])
    assert sorted(gallery.search(queries[0]).ids[0]) == ids[:3]


def test_add_and_remove_refuse_without_changing_anything():
    gallery = Gallery.from_features(unit_features(5), names(5))
    with pytest.raises(ValueError, match=r"1 .*'image-4'"):
        gallery.add(unit_features(2), ["new", "image-4"])
    with pytest.raises(ValueError, match="'new'"):
        gallery.add(unit_features(2), ["new", "new"])
    with pytest.raises(ValueError, match=r"16.* 3"):
        gallery.add(np.zeros((1, 3)), ["new"])
    with pytest.raises(ValueError, match="'nowhere'"):
        gallery.remove(["image-0", "nowhere"])
    with pytest.raises(ValueError, match="'image-0'"):
        gallery.remove("image-0")
    assert gallery.ids == names(5) and len(gallery.search(unit_features(1)).ids[0]) == 5


# Saving and loading


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("index_type", INDEX_TYPES)
def test_save_and_load_search_alike(index_type, mmap, tmp_path):
    gallery = Gallery.from_features(
        unit_features(300),
        names(300),
        index_type=index_type,
        encoder_fingerprint="f",
        model_path="m",
        source={"type": "folder"},
    )
    gallery.save(tmp_path)
    loaded = Gallery.load(tmp_path, mmap=mmap)
    queries = unit_features(5, seed=8)
    assert loaded.search(queries, k=20) == gallery.search(queries, k=20)
    assert loaded.search(queries, exclude_ids=names(300)[:200]) == gallery.search(queries, exclude_ids=names(300)[:200])
    assert loaded.ids == gallery.ids and loaded.index_type == index_type and loaded.dim == 16
    assert (loaded.encoder_fingerprint, loaded.model_path, loaded.source) == ("f", "m", {"type": "folder"})
    manifest = read_manifest(tmp_path)
    assert manifest["count"] == 300 and manifest["dim"] == 16 and manifest["encoder_fingerprint"] == "f"
    if mmap:
        for change in (lambda: loaded.add(unit_features(1), ["x"]), lambda: loaded.remove(["image-0"])):
            with pytest.raises(ValueError, match="mmap=True"):
                change()
        with pytest.raises(ValueError, match="mmap=True"):
            loaded.save(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's list of mapped files")
@pytest.mark.parametrize("index_type", INDEX_TYPES)
def test_a_memory_mapped_index_is_not_read_into_memory(index_type, tmp_path):
    Gallery.from_features(unit_features(300), index_type=index_type).save(tmp_path)
    index_path = str(tmp_path / read_manifest(tmp_path)["index_file"])
    gallery = Gallery.load(tmp_path)
    assert index_path not in Path("/proc/self/maps").read_text(encoding="utf-8") and not gallery.is_memory_mapped
    gallery = Gallery.load(tmp_path, mmap=True)
    assert index_path in Path("/proc/self/maps").read_text(encoding="utf-8") and gallery.is_memory_mapped


def test_ids_of_any_name_survive(tmp_path):
    ids = ["ä/ö ü.png", "日本.jpg", os.fsdecode(b"bad-\xff.png"), "with\nnewline", "😀"]
    Gallery.from_features(unit_features(5), ids).save(tmp_path)
    assert Gallery.load(tmp_path).ids == ids


def test_load_names_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"manifest.json"):
        Gallery.load(tmp_path)
    Gallery.from_features(unit_features(5), names(5)).save(tmp_path)
    manifest = read_manifest(tmp_path)
    index_path = tmp_path / manifest["index_file"]
    content = index_path.read_bytes()
    index_path.write_bytes(content[:-10])
    with pytest.raises(ValueError, match=rf"{len(content)} .*{index_path.name}.* {len(content) - 10}"):
        Gallery.load(tmp_path)
    index_path.unlink()
    with pytest.raises(ValueError, match=index_path.name):
        Gallery.load(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99}))
    with pytest.raises(ValueError, match=r"manifest\.json.*newer"):
        Gallery.load(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json"):
        Gallery.load(tmp_path)


class Crash(BaseException):
    """Stands for a kill; nothing may catch it and go on."""


def crash_at(monkeypatch, step, after):
    """Make the step-th call that changes the disk fail, before or after it has done its work."""
    counter = itertools.count()

    def wrap(owner, name):
        original = getattr(owner, name)

        def wrapped(*args, **kwargs):
            is_fatal = next(counter) == step
            if is_fatal and not after:
                raise Crash
            result = original(*args, **kwargs)
            if is_fatal:
                raise Crash
            return result

        monkeypatch.setattr(owner, name, wrapped)

    wrap(faiss, "write_index")
    wrap(os, "fsync")
    wrap(os, "replace")
    wrap(Path, "unlink")
    return counter


@pytest.mark.parametrize("after", [False, True])
def test_a_save_that_fails_at_any_step_leaves_the_old_or_the_new_gallery(after, tmp_path, monkeypatch):
    old, new = (Gallery.from_features(unit_features(n, seed=n), names(n)) for n in (20, 30))
    outcomes = []
    for step in range(100):
        directory = tmp_path / str(step)
        old.save(directory)
        with monkeypatch.context() as patch:
            counter = crash_at(patch, step, after)
            try:
                new.save(directory)
                finished = True
            except Crash:
                finished = False
            calls = next(counter)
        loaded = Gallery.load(directory)
        expected = {20: old, 30: new}[len(loaded)]
        assert loaded.ids == expected.ids
        assert loaded.search(unit_features(3)) == expected.search(unit_features(3))
        outcomes.append(len(loaded))
        new.save(directory)  # and the next save cleans up
        assert len(list(directory.iterdir())) == 3
        if finished and calls <= step:
            break
    assert outcomes == sorted(outcomes) and set(outcomes) == {20, 30} and len(outcomes) >= 8


def test_a_killed_save_leaves_a_whole_gallery(tmp_path):
    """The real thing: SIGKILL while another process saves again and again."""
    Gallery.from_features(unit_features(2000), names(2000)).save(tmp_path)
    script = (
        "import sys\nfrom hycir_hf import Gallery\n"
        "gallery = Gallery.load(sys.argv[1])\n"
        "print('ready', flush=True)\n"
        "while True:\n    gallery.save(sys.argv[1])\n"
    )
    for wait in (0.01, 0.033, 0.07):
        process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(wait)
        process.kill()
        process.communicate()
        assert Gallery.load(tmp_path).ids == names(2000)
