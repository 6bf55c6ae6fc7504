"""ImageRetriever: index, search and encode with a tiny model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build_model, build_processor, random_picture
from PIL import Image

from hycir_hf.retriever import HyCIREncoder, ImageRetriever


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved model and a folder of seven images."""
    root = tmp_path_factory.mktemp("retriever")
    build_model().save_pretrained(root / "model")
    build_processor().save_pretrained(root / "model")
    (root / "photos").mkdir()
    for number in range(7):
        random_picture(number).save(root / "photos" / f"{number}.png")
    return root


@pytest.fixture
def retriever(saved, tmp_path):
    made = ImageRetriever.from_pretrained(str(saved / "model"))
    made.index(saved / "photos", tmp_path / "gallery", progress=False)
    return made


def test_the_three_lines(saved, tmp_path):
    retriever = ImageRetriever.from_pretrained(str(saved / "model"))
    report = retriever.index(str(saved / "photos"), str(tmp_path / "gallery"), progress=False)
    assert report.num_encoded == 7
    [found] = retriever.search(str(saved / "photos" / "3.png"), "make it night", k=5)
    assert len(found) == 5 and "3.png" not in [id_ for id_, _ in found]
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True)


def test_a_search_equals_the_model_itself(retriever, saved):
    encoder = retriever.encoder
    inputs = encoder.processor(images=[random_picture(2)], text=["make it night"])
    with torch.no_grad():
        features = encoder.model.get_composed_features(**inputs)
    expected = retriever.gallery.search(features, k=7, exclude_ids=["2.png"])
    assert retriever.search("2.png", "make it night", k=7) == expected  # by gallery id
    assert retriever.search(Path("2.png"), "make it night", k=7) == expected  # by gallery id, as a Path
    assert retriever.search(saved / "photos" / "2.png", "make it night", k=7) == expected  # by path
    opened = Image.open(saved / "photos" / "2.png")
    assert retriever.search(opened, "make it night", k=7) == expected  # by an opened file
    in_memory = retriever.search(random_picture(2), "make it night", k=7)
    assert len(in_memory.ids[0]) == 7  # nothing says that it is in the gallery


def test_text_only_image_only_and_several_references(retriever):
    by_text = retriever.search(text="a red dog", k=3)
    assert by_text == retriever.gallery.search(retriever.encode(texts=["a red dog"]), k=3)
    by_image = retriever.search("1.png", k=3)
    assert by_image == retriever.search("1.png", "", k=3) and "1.png" not in by_image.ids[0]
    both = retriever.search(["1.png", "2.png"], "make it night", k=7).ids[0]
    assert sorted(both) == ["0.png", "3.png", "4.png", "5.png", "6.png"]
    assert len(retriever.search("1.png", k=9, keep_reference=True).ids[0]) == 7


def test_a_reference_that_is_nowhere_is_named(retriever):
    for name in ("nowhere.png", "x" * 5000):
        with pytest.raises(ValueError, match=name):
            retriever.search(name)


def test_excluded_and_restricted_ids(retriever):
    found = retriever.search("1.png", k=9, exclude_ids=["0.png"], restrict_to=["0.png", "1.png", "2.png"])
    assert found.ids == [["2.png"]]


def test_results_carry_no_gradients_and_have_unit_norm(retriever, saved):
    photos = sorted((saved / "photos").iterdir())
    images = retriever.encode(images=photos)
    queries = retriever.encode(images=photos, texts=["make it night"] * 7)
    for features in (images, queries, retriever.encode(texts=["a dog", "a cat"])):
        assert isinstance(features, np.ndarray) and features.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    assert all(isinstance(score, float) for _, score in retriever.search("1.png", k=2)[0])
    np.testing.assert_allclose(images, retriever.gallery.features(), atol=1e-6)


def test_save_and_load(retriever, tmp_path, saved):
    expected = retriever.search("1.png", "make it night")
    loaded = ImageRetriever.load(tmp_path / "gallery")
    assert loaded.search("1.png", "make it night") == expected
    retriever.save(tmp_path / "copy")
    elsewhere = ImageRetriever.load(tmp_path / "copy", model=str(saved / "model"))
    assert elsewhere.search(saved / "photos" / "1.png", "make it night") == expected


def test_stored_features_become_a_gallery_without_encoding(retriever, tmp_path):
    expected = retriever.search("1.png", "make it night")
    report = retriever.index(tmp_path / "gallery" / "features", tmp_path / "again")
    assert (report.num_encoded, report.num_reused) == (0, 7)
    assert retriever.search("1.png", "make it night") == expected


def test_what_cannot_be_is_said(retriever, saved, tmp_path):
    with pytest.raises(ValueError, match="neither"):
        retriever.search()
    with pytest.raises(ValueError, match=r"nowhere\.png.*7 images"):
        retriever.search("nowhere.png", "make it night")
    for option in ("exclude_ids", "restrict_to"):
        with pytest.raises(ValueError, match=rf"{option}.*'1\.png'"):
            retriever.search("2.png", **{option: "1.png"})
    with pytest.raises(ValueError, match="index"):
        ImageRetriever(retriever.encoder).search(text="a dog")
    with pytest.raises(ValueError, match="2 images and 1 texts"):
        retriever.encode(images=[random_picture(), random_picture()], texts=["a dog"])
    with pytest.raises(ValueError, match="nowhere"):
        ImageRetriever.from_pretrained(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"config\.json"):
        ImageRetriever.from_pretrained(str(saved / "photos"))
    with pytest.raises(FileNotFoundError, match="nothing"):
        ImageRetriever.load(tmp_path / "nothing")


def test_another_model_is_refused(retriever, saved):
    other = HyCIREncoder(build_model("clip_legacy"), build_processor())
    with pytest.raises(ValueError, match="fingerprint"):
        ImageRetriever(other, retriever.gallery)
