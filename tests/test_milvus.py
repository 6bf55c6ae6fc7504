"""A gallery in Milvus: the embedded Milvus Lite, for real, against the same gallery in faiss."""

import numpy as np
import pytest

pytest.importorskip("milvus_lite")
from conftest import build_model, build_processor
from pymilvus import MilvusException

from hycir_hf import Gallery
from hycir_hf.retrieval.milvus import MilvusGallery
from hycir_hf.retriever import HyCIREncoder, ImageRetriever

ODD = ['a"b', "c'd", "e\\f", "g\nh", "é ☃.png", "] or row >= 0 or image_id in ["]  # ids are file names of any kind


def unit_features(count, dim=16, seed=0):
    features = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def gallery():
    ids = ODD + [f"{row}.png" for row in range(len(ODD), 200)]
    return Gallery.from_features(unit_features(200), ids, encoder_fingerprint="0123456789abcdef")


@pytest.fixture(scope="module")
def exported(gallery, tmp_path_factory):
    path = tmp_path_factory.mktemp("milvus") / "gallery.db"
    attributes = [{"vendor": ("noto", "twemoji")[row % 2], "year": 2000 + row % 20} for row in range(len(gallery))]
    MilvusGallery.from_gallery(gallery, path, attributes=attributes).close()
    store = MilvusGallery(path)  # what was written is there when it is opened again
    yield store
    store.close()


QUERIES = unit_features(7, seed=1)


def check_same(found, expected):
    assert found.ids == expected.ids
    for found_scores, scores in zip(found.scores, expected.scores, strict=True):
        np.testing.assert_allclose(found_scores, scores, atol=1e-5)


@pytest.mark.parametrize("k", [1, 10, 300])
def test_it_finds_what_faiss_finds(gallery, exported, k):
    check_same(exported.search(QUERIES, k=k), gallery.search(QUERIES, k=k))
    assert len(exported) == 200 and exported.dim == 16 and exported.encoder_fingerprint == "0123456789abcdef"


def test_exclusions_and_restrictions_act_before_the_top_k(gallery, exported):
    best = [ids[:3] for ids in gallery.search(QUERIES, k=3).ids]
    for options in (
        {"exclude_ids": ODD},
        {"restrict_to": ODD},
        {"exclude_ids": best},
        {"restrict_to": [*best[:-1], None], "exclude_ids": [None, *best[1:]]},
        {"restrict_to": []},
    ):
        check_same(exported.search(QUERIES, k=5, **options), gallery.search(QUERIES, k=5, **options))


@pytest.mark.parametrize("id_", ODD)
def test_no_id_can_change_the_filter(exported, id_):
    assert exported.search(QUERIES[0], k=50, restrict_to=[id_]).ids == [[id_]]
    assert len(exported.search(QUERIES[0], k=300, exclude_ids=[id_]).ids[0]) == 199


def test_filters_on_attributes(gallery, exported):
    noto = [id_ for row, id_ in enumerate(gallery.ids) if row % 2 == 0]
    recent = [id_ for row, id_ in enumerate(gallery.ids) if row % 2 == 0 and row % 20 >= 10]
    check_same(exported.search(QUERIES, where='vendor == "noto"'), gallery.search(QUERIES, restrict_to=noto))
    found = exported.search(
        QUERIES, where='vendor == "noto" or vendor == "noto" and year >= 2000', exclude_ids=noto[:5]
    )
    check_same(found, gallery.search(QUERIES, restrict_to=noto, exclude_ids=noto[:5]))
    found = exported.search(QUERIES, where='vendor == "noto" and year >= 2010')
    check_same(found, gallery.search(QUERIES, restrict_to=recent))


def test_equal_scores_come_in_gallery_order(tmp_path):
    features = np.repeat(unit_features(2, dim=4), 5, axis=0)
    store = MilvusGallery.from_gallery(Gallery.from_features(features, list("jihgfedcba")), tmp_path / "ties.db")
    assert store.search(features[0], k=5).ids == [list("jihgf")]
    store.close()


def test_wrong_use_is_refused(exported, tmp_path):
    with pytest.raises(ValueError, match="'misspelt'"):
        exported.search(QUERIES, exclude_ids=["misspelt"])
    assert len(exported.search(QUERIES, exclude_ids=["misspelt"], ignore_unknown=True)) == 7
    with pytest.raises(ValueError, match="width 3"):
        exported.search(np.ones((1, 3)))
    with pytest.raises(ValueError, match="fingerprint 0123456789abcdef"):
        exported.search(QUERIES, encoder_fingerprint="another")
    with pytest.raises(ValueError, match="'nothing'"):
        MilvusGallery(tmp_path / "empty.db", "nothing")


STRANGE = ["x\0y", "x\x01y", "\ud800", "x\x1b"]


@pytest.mark.parametrize("id_", STRANGE)
def test_ids_that_milvus_cannot_hold_are_unknown(gallery, exported, id_):
    with pytest.raises(ValueError, match=r"does not hold 1 "):
        exported.search(QUERIES, exclude_ids=[id_])
    with pytest.raises(ValueError, match=r"Nothing was added.*UTF-8"):
        exported.add(unit_features(1), [id_])
    found = exported.search(QUERIES, exclude_ids=[id_], restrict_to=[id_, ODD[0]], ignore_unknown=True)
    assert found.ids == [[ODD[0]]] * len(QUERIES)
    assert exported.search(QUERIES[0], restrict_to=[id_], ignore_unknown=True).ids == [[]]


def test_what_milvus_refuses_has_three_parts(exported, tmp_path):
    with pytest.raises(ValueError, match=r"searching.*where"):
        exported.search(QUERIES, where="vendor ==")
    for k in (True, 2.5, 0, "3"):
        with pytest.raises(ValueError, match=" k "):
            exported.search(QUERIES, k=k)
    assert len(exported.search(QUERIES, k=np.int64(2)).ids[0]) == 2
    with pytest.raises(ValueError, match=r"adding.*attributes"):
        exported.add(unit_features(1), ["new"], [{"year": object()}])
    for path in (tmp_path / "gallery.sqlite", "gallery", tmp_path):
        with pytest.raises(ValueError, match=r"\.db"):
            MilvusGallery.create(path, dim=16)
    with pytest.raises(ValueError, match=r"opening .*x\.db.*folder"):
        MilvusGallery.create(tmp_path / "no" / "x.db", dim=16)


def test_another_encoders_features_are_not_added(exported):
    with pytest.raises(ValueError, match="fingerprint 0123456789abcdef"):
        exported.add(unit_features(1), ["new"], encoder_fingerprint="another")
    assert len(exported) == 200


def test_a_failed_export_leaves_no_collection(gallery, tmp_path):
    with pytest.raises(ValueError, match="reserved names"):
        MilvusGallery.from_gallery(gallery, tmp_path / "gallery.db", attributes=[{"row": 1}] * len(gallery))
    again = MilvusGallery.from_gallery(gallery, tmp_path / "gallery.db")
    assert len(again) == len(gallery)
    again.close()


def test_adding_in_parts(tmp_path):
    store, features = MilvusGallery.create(tmp_path / "parts.db", dim=16), unit_features(2500, seed=3)
    ids = [str(row) for row in range(2500)]
    for start in (0, 1200):
        stop = start + 1200 if start == 0 else 2500
        store.add(features[start:stop], ids[start:stop])
    assert len(store) == 2500
    check_same(store.search(QUERIES, k=20), Gallery.from_features(features, ids).search(QUERIES, k=20))
    for bad, message in (
        ((features[:1], ["7"]), "there already, such as '7'"),
        ((features[:2], ["new", "new"]), "stands twice"),
        ((features[:1], ["x" * 2000]), "more than 1024 bytes"),
        ((features[:1, :3], ["new"]), "width 3 instead of 16"),
        ((features[:1], ["new"], [{"row": 1}]), r"reserved names \['row'\]"),
        ((features[:1], ["new", "newer"]), "1 features, 2 ids"),
    ):
        with pytest.raises(ValueError, match=message):
            store.add(*bad)
    assert len(store) == 2500
    with pytest.raises(ValueError, match="'gallery'"):
        MilvusGallery.create(tmp_path / "parts.db", dim=16)
    store.close()


def test_compressed_galleries_are_refused(tmp_path):
    gallery = Gallery.from_features(unit_features(50), index_type="sq8")
    with pytest.raises(ValueError, match="'sq8'"):
        MilvusGallery.from_gallery(gallery, tmp_path / "sq8.db")
    graph = Gallery.from_features(unit_features(50), index_type="hnsw")
    np.testing.assert_array_equal(graph.features(), unit_features(50))


@pytest.fixture
def store(tmp_path):
    made = MilvusGallery.create(tmp_path / "changing.db", dim=16)
    yield made
    made.close()


def test_upsert_remove_and_count_are_a_gallerys(store):
    features, more = unit_features(2500, seed=4), unit_features(1500, seed=5)
    ids = [*ODD, *(str(row) for row in range(len(ODD), 2500))]
    store.add(features, ids, [{"part": row % 2} for row in range(2500)], encoder_fingerprint="a")
    changed = [*ids[2000:], *(f"new{row}" for row in range(1000))]
    store.upsert(more, changed, [{"part": 7}] * 1500, encoder_fingerprint="a")
    assert (store.count(), store.count("part == 7"), store.count("part == 0")) == (3500, 1500, 1000)
    gone = [*ODD, *changed[:1200]]
    store.remove(gone)
    kept = Gallery.from_features(np.concatenate([features[:2000], more]), [*ids[:2000], *changed])
    kept.remove(gone)
    assert len(store) == len(kept) == 3500 - len(gone) and store.encoder_fingerprint == "a"
    check_same(store.search(QUERIES, k=20), kept.search(QUERIES, k=20))
    store.add(features[:2], ODD[:2])  # removed ids are free again
    assert store.count('image_id == "new999"') == 1 and len(store) == len(kept) + 2
    store.remove([])
    for ids, fact in ((["nosuch"], "nosuch"), ("new999", "new999"), (["new999", "nosuch"], "nosuch")):
        with pytest.raises(ValueError, match=fact):
            store.remove(ids)
    with pytest.raises(ValueError, match=r"counting.*where"):
        store.count("part ==")
    assert store.count('image_id == "new999"') == 1


def test_added_after_a_removal_ties_come_last(store):
    one = unit_features(1)
    store.add(np.repeat(one, 4, axis=0), list("abcd"))
    store.remove(["a", "b"])
    store.add(np.repeat(one, 2, axis=0), ["b", "a"])
    assert store.search(one, k=4).ids == [list("cdba")]
    store.upsert(one, ["c"])
    assert store.search(one, k=4).ids == [list("dbac")]


def refuse_part(monkeypatch, store, method, number):
    """Let Milvus refuse the part of that number."""
    real, calls = getattr(store._client, method), []

    def refusing(*args, **kwargs):
        calls.append(args)
        if len(calls) == number:
            raise MilvusException(message="disk full")
        return real(*args, **kwargs)

    monkeypatch.setattr(store._client, method, refusing)


def test_a_late_refusal_leaves_nothing_or_says_what_is(store, monkeypatch):
    features, ids = unit_features(2500), [str(row) for row in range(2500)]
    store.add(features[:1], ["old"])
    refuse_part(monkeypatch, store, "insert", 3)
    with pytest.raises(ValueError, match="disk full"):
        store.add(features, ids)
    assert len(store) == 1
    monkeypatch.undo()
    refuse_part(monkeypatch, store, "insert", 2)
    refuse_part(monkeypatch, store, "delete", 1)
    with pytest.raises(ValueError, match=r"2,000 .*'0' to '1999'.*upsert"):
        store.add(features, ids)
    monkeypatch.undo()
    store.upsert(features, ids)  # as the error advises
    assert len(store) == 2501
    refuse_part(monkeypatch, store, "upsert", 2)
    with pytest.raises(ValueError, match=r"1,000 of 2,500.*disk full"):
        store.upsert(features, ids)
    refuse_part(monkeypatch, store, "delete", 2)
    with pytest.raises(ValueError, match=r"1,000 of 2,500.*disk full"):
        store.remove(ids)
    monkeypatch.undo()
    assert len(store) == 1501


def test_late_attributes_that_milvus_refuses_leave_nothing(store):
    with pytest.raises(ValueError, match=r"adding.*attributes"):
        store.add(unit_features(1500), [str(row) for row in range(1500)], [{}] * 1400 + [{"year": object()}] * 100)
    assert len(store) == 0
    with pytest.raises(ValueError, match="width 3"):
        store.upsert(np.ones((1, 3)), ["a"])
    with pytest.raises(ValueError, match="twice"):
        store.upsert(unit_features(2), ["a", "a"])
    store.upsert(np.zeros((0, 16)), [])


def test_a_store_is_imported_in_parts(tmp_path, picture_folder, monkeypatch):
    retriever = ImageRetriever(HyCIREncoder(build_model(), build_processor()))
    retriever.index(picture_folder, tmp_path / "gallery", progress=False)
    monkeypatch.setattr("hycir_hf.retrieval.milvus._BATCH", 7)
    sizes = []
    add = MilvusGallery.add
    monkeypatch.setattr(
        MilvusGallery, "add", lambda self, features, *rest: sizes.append(len(features)) or add(self, features, *rest)
    )
    imported = MilvusGallery.from_store(
        tmp_path / "gallery", tmp_path / "a.db", attributes=lambda ids: [{"even": int(id_[:2]) % 2 == 0} for id_ in ids]
    )
    assert sizes == [7, 7, 6] and imported.encoder_fingerprint == retriever.encoder.fingerprint
    queries = retriever.encode(texts=["a red dog", "night"])
    check_same(imported.search(queries, k=20), retriever.gallery.search(queries, k=20))
    evens = [f"{row:02d}.png" for row in range(0, 20, 2)]
    found = imported.search(queries, k=20, where="even == true")
    check_same(found, retriever.gallery.search(queries, k=20, restrict_to=evens))
    imported.close()
    with pytest.raises(ValueError, match="reserved"):
        MilvusGallery.from_store(
            tmp_path / "gallery", tmp_path / "b.db", attributes=lambda ids: [{"row": 1}] * len(ids)
        )
    with pytest.raises(FileNotFoundError):
        MilvusGallery.from_store(picture_folder, tmp_path / "b.db")
    MilvusGallery.from_store(tmp_path / "gallery" / "features", tmp_path / "b.db").close()  # nothing was left behind
