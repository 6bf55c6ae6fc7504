"""The committed emoji weights: their sizes, and that they still give the figures recorded beside them."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, BlipForConditionalGeneration, BlipProcessor, CLIPModel

from hycir_hf import HyCIRModel, HyCIRProcessor
from hycir_hf.evaluation import encode_texts

EMOJI = Path(__file__).parents[1] / "examples" / "emoji"
sys.path.insert(0, str(EMOJI))

from retrieval import build_gallery, evaluate_methods, picture_of, read_pictures, read_queries  # noqa: E402

TOLERANCE = 0.01  # of a share: another processor rounds differently


def recorded(folder: str) -> dict:
    return json.loads((EMOJI / folder / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model():
    return HyCIRModel.from_pretrained(EMOJI / "hycir").eval()


@pytest.fixture(scope="module")
def processor():
    return HyCIRProcessor.from_pretrained(EMOJI / "hycir")


@pytest.fixture(scope="module")
def pictures():
    return read_pictures("heldout_vendor")


@pytest.fixture(scope="module")
def gallery_and_features(model, processor, pictures):
    return build_gallery(model, processor, pictures, "Twemoji")


def test_the_weights_are_small():
    megabytes = {
        folder: sum(path.stat().st_size for path in (EMOJI / folder).glob("*.safetensors")) / 1e6
        for folder in ("encoder", "captioner", "hycir")
    }
    assert megabytes["encoder"] <= 25 and megabytes["captioner"] <= 15 and megabytes["hycir"] <= 5


def test_the_encoder_is_an_ordinary_clip():
    encoder, processor = CLIPModel.from_pretrained(EMOJI / "encoder"), AutoProcessor.from_pretrained(EMOJI / "encoder")
    inputs = processor(images=Image.new("RGB", (64, 64)), text=["a", "red apple"], padding=True, return_tensors="pt")
    assert encoder(**inputs).logits_per_image.shape == (1, 2)


def test_the_mapper_is_tied_to_its_encoder_and_loads_by_the_auto_classes(model):
    assert json.loads((EMOJI / "hycir" / "config.json").read_text(encoding="utf-8"))["mapper_only"]
    again = AutoModel.from_pretrained(EMOJI / "hycir")
    assert type(again) is HyCIRModel and again.encoder_fingerprint() == model.encoder_fingerprint()
    assert type(AutoProcessor.from_pretrained(EMOJI / "hycir")) is HyCIRProcessor


@pytest.mark.slow
def test_the_encoder_still_finds_names(model, processor, pictures, gallery_and_features):
    gallery, _ = gallery_and_features
    found = gallery.search(encode_texts(model, processor, [row["name"].lower() for row in pictures.values()]), k=10)
    hit = np.array([image_id in ids for image_id, ids in zip(pictures, found.ids, strict=True)])
    held_out = pq.read_table(EMOJI / "data/images/heldout_concepts.parquet", columns=["concept"])["concept"].to_pylist()
    is_held_out = np.isin([row["concept"] for row in pictures.values()], sorted(set(held_out)))
    figures = recorded("encoder")["twemoji"]
    assert hit[~is_held_out].mean() == pytest.approx(figures["seen"]["R@10"], abs=TOLERANCE)
    assert hit[is_held_out].mean() == pytest.approx(figures["held out"]["R@10"], abs=TOLERANCE)


@pytest.mark.slow
def test_the_mapper_still_answers_the_queries(model, processor, gallery_and_features):
    report = evaluate_methods(model, processor, *gallery_and_features, read_queries("val", "heldout_vendor"))
    figures = recorded("hycir")["parts"]["heldout_vendor"]
    for method in ("mapper", "image + text"):
        assert report[method] == pytest.approx(figures[method], abs=TOLERANCE), method


@pytest.mark.slow
def test_the_captioner_still_names_pictures(pictures):
    captioner = BlipForConditionalGeneration.from_pretrained(EMOJI / "captioner", dtype=torch.float32).eval()
    processor = BlipProcessor.from_pretrained(EMOJI / "captioner")
    sample = list(pictures.values())[::13]
    inputs = processor(images=[picture_of(row).convert("RGB") for row in sample], return_tensors="pt")
    with torch.inference_mode():
        tokens = captioner.generate(**inputs, max_new_tokens=24)
    captions = processor.batch_decode(tokens, skip_special_tokens=True)
    exact = np.mean([caption == row["name"].lower() for caption, row in zip(captions, sample, strict=True)])
    assert exact == pytest.approx(recorded("captioner")["all"]["exact"], abs=0.1)  # a sample of one in thirteen
