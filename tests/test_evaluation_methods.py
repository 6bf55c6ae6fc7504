"""Methods: closed forms, batches, several references, captions."""

import math

import pytest
import torch
from conftest import NUM_PSEUDO_TOKENS, build_encoder, build_processor, random_picture

from hycir_hf import HyCIRModel
from hycir_hf.evaluation import BenchmarkPart, caption_features, compose, encode_images, part_features, slerp


@pytest.fixture(scope="module")
def tiny():
    return HyCIRModel.from_encoder(build_encoder("clip"), NUM_PSEUDO_TOKENS).eval(), build_processor()


def test_slerp_in_closed_form():
    image, text = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    for weight in (0.0, 0.3, 0.5, 1.0):
        angle = weight * math.pi / 2
        expected = torch.tensor([[math.cos(angle), math.sin(angle)]])
        torch.testing.assert_close(slerp(image, text, weight), expected, atol=1e-5, rtol=0)


def test_slerp_of_equal_vectors_stays_finite():
    vector = torch.tensor([[0.6, 0.8]])
    torch.testing.assert_close(slerp(vector, vector, 0.5), vector, atol=1e-3, rtol=0)


def test_composing_in_batches_changes_nothing(tiny):
    model, processor = tiny
    references, texts = torch.randn(300, model.config.feature_size), [f"text {row % 7}" for row in range(300)]
    whole = compose(model, processor, references, texts)
    alone = compose(model, processor, references[299:], texts[299:])
    torch.testing.assert_close(whole[299:], alone, atol=1e-5, rtol=0)


def test_two_references_are_the_prompt_with_two_images(tiny):
    model, processor = tiny
    pictures, texts = [random_picture(0), random_picture(1), random_picture(2)], ["make it night", "red"]
    features = encode_images(model, processor, {str(row): one for row, one in enumerate(pictures)})
    references = torch.stack([features[[0, 1]], features[[2, 0]]])  # (2, 2, D)
    rows = [[pictures[0], pictures[1]], [pictures[2], pictures[0]]]
    with torch.inference_mode():
        expected = model.get_composed_features(**processor(images=rows, text=texts))
    torch.testing.assert_close(compose(model, processor, references, texts), expected, atol=1e-5, rtol=0)


def query(**values):
    return {"query_id": "q", "reference_id": "a", "query_text": "red", "target_ids": ["b"]} | values


def test_several_texts_are_averaged_as_unit_vectors(tiny):
    """SEARLE's way with FashionIQ's two orders; averaging a text with itself changes nothing."""
    model, processor = tiny
    feature_of = {"a": torch.randn(model.config.feature_size)}

    def answer(**values):
        return part_features(model, processor, BenchmarkPart("all", [query(**values)], ["b"]), feature_of)

    first, second = answer(), answer(query_text="blue")
    both, twice = answer(other_texts=["blue"]), answer(other_texts=["red"])
    for name in first:
        mean = torch.nn.functional.normalize((first[name] + second[name]) / 2, dim=-1)
        torch.testing.assert_close(both[name], mean, atol=1e-5, rtol=0, msg=name)
        torch.testing.assert_close(twice[name], first[name], atol=1e-5, rtol=0, msg=name)


def test_a_combiner_is_a_callable_of_both_unit_features(tiny):
    model, processor = tiny
    seen = {}

    def combiner(images, texts):
        seen["norms"] = torch.cat([images.norm(dim=-1), texts.norm(dim=-1)])
        return images - texts

    part = BenchmarkPart("all", [query()], ["b"])
    feature_of = {"a": 5 * torch.randn(model.config.feature_size)}
    assert list(part_features(model, processor, part, feature_of, {"mine": combiner})) == ["mine", "mapper"]
    torch.testing.assert_close(seen["norms"], torch.ones(2), atol=1e-5, rtol=0)


def test_captions_are_rewritten_and_encoded():
    encoded = []

    def encode_text(texts):
        encoded.extend(texts)
        return torch.ones(len(texts), 2)

    features, rewritten = caption_features(
        ["image 0", "image 1"],
        ["make it night", "two dogs"],
        caption=lambda images: [f"caption of {image}" for image in images],
        generate=lambda prompts: [f"reply\nto {prompt}" for prompt in prompts],
        encode_text=encode_text,
        prompt="{caption} | {text}",
    )
    assert (
        rewritten
        == encoded
        == ["reply to caption of image 0 | make it night", "reply to caption of image 1 | two dogs"]
    )
    assert features.shape == (2, 2)
    with pytest.raises(ValueError, match="Expected 1 replies, one for each query, but found 0"):
        caption_features([0], ["a"], lambda images: ["c"], lambda prompts: [], encode_text)
