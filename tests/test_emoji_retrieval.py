"""The emoji world's methods and figures: closed forms, and the committed weights against their recorded results."""

import math
import sys
from pathlib import Path

import pytest
import torch
from conftest import build_encoder, build_processor

from hycir_hf import Gallery, HyCIRModel, RetrievalResults

EMOJI = Path(__file__).parents[1] / "examples" / "emoji"
sys.path.insert(0, str(EMOJI))

from retrieval import compose, evaluate_methods, query_features, recall_at_k, slerp, table_rows  # noqa: E402


@pytest.fixture(scope="module")
def tiny():
    return HyCIRModel.from_encoder(build_encoder("clip"), 3).eval(), build_processor()


def test_slerp_in_closed_form():
    image, text = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    for weight in (0.0, 0.3, 0.5, 1.0):
        angle = weight * math.pi / 2
        expected = torch.tensor([[math.cos(angle), math.sin(angle)]])
        torch.testing.assert_close(slerp(image, text, weight), expected, atol=1e-5, rtol=0)


def test_slerp_of_equal_vectors_stays_finite():
    vector = torch.tensor([[0.6, 0.8]])
    torch.testing.assert_close(slerp(vector, vector, 0.5), vector, atol=1e-3, rtol=0)


def test_recall_counts_queries_with_any_target():
    results = RetrievalResults([["a", "b", "c"], ["d", "a", "b"]], [[3.0, 2.0, 1.0]] * 2)
    queries = [{"target_ids": ["c", "b"]}, {"target_ids": ["b"]}]
    assert [recall_at_k(results, queries, k) for k in (1, 2, 3)] == [0.0, 0.5, 1.0]


def test_every_method_leaves_the_reference_out_and_gives_unit_features(tiny):
    model, processor = tiny
    torch.manual_seed(0)
    features = {f"picture {row}": torch.randn(model.config.feature_size) for row in range(12)}
    stacked = torch.stack(list(features.values()))
    texts = ["make it night", "", "a dog"] * 4
    found = query_features(model, processor, stacked, texts)
    assert list(found) == ["image only", "text only", "image + text", "slerp", "mapper"]
    for name, composed in found.items():
        torch.testing.assert_close(composed.norm(dim=-1), torch.ones(12), atol=1e-4, rtol=0, msg=name)
    gallery = Gallery.from_features(torch.nn.functional.normalize(stacked, dim=-1), list(features))
    queries = [
        {"reference_id": id_, "query_text": text, "target_ids": [id_]}
        for id_, text in zip(features, texts, strict=True)
    ]
    report = evaluate_methods(model, processor, gallery, features, queries)
    assert all(recalls == {"R@1": 0, "R@5": 0, "R@10": 0, "R@50": 0} for recalls in report.values())
    assert table_rows(report)[0] == ["image only", "0.0", "0.0", "0.0", "0.0"]


def test_composing_in_batches_changes_nothing(tiny):
    model, processor = tiny
    references, texts = torch.randn(300, model.config.feature_size), [f"text {row % 7}" for row in range(300)]
    whole = compose(model, processor, references, texts)
    alone = compose(model, processor, references[299:], texts[299:])
    torch.testing.assert_close(whole[299:], alone, atol=1e-5, rtol=0)
