"""Weighted and negative terms: their arithmetic against the closed form, and their form on the command line."""

import json

import numpy as np
import pytest
from conftest import build_model, build_processor, random_picture

from hycir_hf.cli.main import main
from hycir_hf.retrieval.terms import WITHOUT_WEIGHT, Query, encode_terms, parse_term, read_terms
from hycir_hf.retriever import ImageRetriever


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("terms")
    build_model().save_pretrained(root / "model")
    build_processor().save_pretrained(root / "model")
    (root / "photos").mkdir()
    for number, name in enumerate(("0.png", "1.png", "2.png", "a:0.5.png", "at 10:30.png")):
        random_picture(number).save(root / "photos" / name)
    random_picture(0).save(root / "shot:0.5", format="PNG")  # beside the gallery's images
    retriever = ImageRetriever.from_pretrained(str(root / "model"))
    retriever.index(root / "photos", root / "gallery", progress=False)
    return root


@pytest.fixture(scope="module")
def retriever(saved):
    return ImageRetriever.load(saved / "gallery")


def unit(vector):
    return vector / np.linalg.norm(vector)


def test_the_sum_is_the_closed_form(retriever):
    image, other = retriever.encode(images=[random_picture(0), random_picture(1)])
    red, dog, night = retriever.encode(texts=["red", "a dog", "night"])
    composed = retriever.encode(images=[random_picture(0)], texts=["red"])[0]
    one, two = random_picture(0), random_picture(1)
    cases = [
        (Query([(one, 0.6)], [("red", 1.0)], [("night", 0.3)]), unit(0.6 * image + red - 0.3 * night)),
        (Query([(one, 1.0), (two, 2.0)]), unit(image + 2 * other)),
        (Query([], [("red", 1.0), ("a dog", 1.0)]), unit(red + dog)),
        (Query([(one, 1.0)], [("red", 1.0)], [("night", 0.5)]), unit(composed - 0.5 * night)),
        (Query([(one, 1.0)], [("red", 1.0)]), composed),
        (Query([(one, 1.0)], composes=False), image),
        (Query([], [("red", 7.0)]), red),
    ]
    together = encode_terms(retriever.encoder, [query for query, _ in cases])
    for (query, expected), row in zip(cases, together, strict=True):
        np.testing.assert_allclose(row, expected, atol=1e-5)
        np.testing.assert_allclose(encode_terms(retriever.encoder, [query])[0], expected, atol=1e-5)


def test_in_python(retriever):
    found = retriever.search(("0.png", 0.6), ("red", 1.0), k=6, without="night")
    image, red, night = (
        *retriever.encode(images=[random_picture(0)]),
        *retriever.encode(texts=["red", "night"]),
    )
    expected = retriever.gallery.search(0.6 * image + red - WITHOUT_WEIGHT * night, k=6, exclude_ids=["0.png"])
    assert found.ids == expected.ids and "0.png" not in found.ids[0]
    assert retriever.search("0.png", ["red"], k=6) == retriever.search([("0.png", 1)], "red", k=6)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_a_weight_is_a_number_above_0(retriever, weight):
    with pytest.raises(ValueError, match="weight"):
        retriever.search(text=[("red", weight)])


def test_terms_that_cancel_out_are_refused(retriever):
    with pytest.raises(ValueError, match="cancel"):
        retriever.search(text="red", without=("red", 1.0))
    with pytest.raises(ValueError, match="neither"):
        retriever.search(text=" ", without="red")
    with pytest.raises(ValueError, match="7"):
        retriever.search(text=[7])


def test_what_is_a_weight_on_the_command_line():
    for text, expected in (
        ("red:1.0", ("red", 1.0)),
        ("red:.25", ("red", 0.25)),
        ("at 10:30", ("at 10:30", 1.0)),
        ("16:9", ("16:9", 1.0)),
        ("version:2.0:1.0", ("version:2.0", 1.0)),
        ("red:", ("red:", 1.0)),
        (":0.5", (":0.5", 1.0)),
        ("red:-0.5", ("red:-0.5", 1.0)),
        ("red: 0.5", ("red: 0.5", 1.0)),
        ("a:1.2.3", ("a:1.2.3", 1.0)),
    ):
        assert parse_term(text) == expected
    known = {"a", "a:0.5", "b:1"}.__contains__
    assert parse_term("a:0.5", is_known=known) == ("a:0.5", 1.0)
    assert parse_term("a:0.5:0.7", is_known=known) == ("a:0.5", 0.7)
    assert parse_term("a:2", is_known=known) == ("a", 2.0)
    assert parse_term("c:2", is_known=known) == ("c:2", 1.0)  # an error names what was typed
    assert read_terms([("a", 2), "b", None, " "], 0.5) == [("a", 2), ("b", 0.5)]


def search(saved, capsys, *words):
    assert main(["search", str(saved / "gallery"), *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_on_the_command_line(saved, retriever, capsys):
    found = search(saved, capsys, "--image", "0.png:0.6", "--text", "red:1.0", "--without", "night")
    expected = retriever.search(("0.png", 0.6), "red", without=("night", WITHOUT_WEIGHT))[0]
    assert [(one["image_id"], pytest.approx(one["score"])) for one in found["results"]] == expected
    assert found["terms"] == {"images": [["0.png", 0.6]], "texts": [["red", 1.0]], "without": [["night", 0.5]]}
    several = search(saved, capsys, "--text", "red", "--text", "a dog:0.5")
    assert several["terms"]["texts"] == [["red", 1.0], ["a dog", 0.5]]


@pytest.mark.parametrize("name", ["a:0.5.png", "at 10:30.png", "photos/a:0.5.png", "shot:0.5"])
def test_names_that_hold_a_colon_and_a_number_stay_usable(saved, capsys, monkeypatch, name):
    monkeypatch.chdir(saved)
    whole = search(saved, capsys, "--image", name, "--text", "at 10:30")
    assert whole["terms"] == {"images": [[name, 1.0]], "texts": [["at 10:30", 1.0]], "without": []}
    assert whole["excluded"] == [name.removeprefix("photos/")] * (name != "shot:0.5")
    assert search(saved, capsys, "--image", f"{name}:0.5")["terms"]["images"] == [[name, 0.5]]


def test_wrong_weights_and_names_are_one_line(saved, capsys):
    assert main(["search", str(saved / "gallery"), "--image", "nosuch:0.5"]) == 1
    assert "nosuch:0.5" in capsys.readouterr().err
    assert main(["search", str(saved / "gallery"), "--text", "red:0.0"]) == 1
    assert "weight" in capsys.readouterr().err
    assert main(["search", str(saved / "gallery"), "--without", "red"]) == 2
    assert "--text" in capsys.readouterr().err
    assert main(["search", str(saved / "gallery"), "--text", "red:1.0", "--without", "people"]) == 0
    assert "without people (0.5)" in capsys.readouterr().out
