"""A gallery in Milvus: the embedded Milvus Lite, for real, against the same gallery in faiss."""

import numpy as np
import pytest

pytest.importorskip("milvus_lite")
from hycir_hf import Gallery
from hycir_hf.retrieval.milvus import MilvusGallery

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
