"""The emoji example's tables."""

import sys
from pathlib import Path

import pytest
import torch
from conftest import build_encoder, build_processor

from hycir_hf import Gallery, HyCIRModel
from hycir_hf.evaluation import query_features

EMOJI = Path(__file__).parents[1] / "examples" / "emoji"
sys.path.insert(0, str(EMOJI))

from retrieval import evaluate_methods, table_rows  # noqa: E402


@pytest.fixture(scope="module")
def tiny():
    return HyCIRModel.from_encoder(build_encoder("clip"), 3).eval(), build_processor()


def test_every_method_leaves_the_reference_out_and_gives_unit_features(tiny):
    model, processor = tiny
    torch.manual_seed(0)
    features = {f"picture {row}": torch.randn(model.config.feature_size) for row in range(60)}
    stacked = torch.stack(list(features.values()))
    texts = ["make it night", "", "a dog"] * 20
    found = query_features(model, processor, stacked, texts)
    assert list(found) == ["image only", "text only", "image + text", "slerp", "mapper"]
    for name, composed in found.items():
        torch.testing.assert_close(composed.norm(dim=-1), torch.ones(60), atol=1e-4, rtol=0, msg=name)
    gallery = Gallery.from_features(torch.nn.functional.normalize(stacked, dim=-1), list(features))
    queries = [
        {"reference_id": id_, "query_text": text, "target_ids": [id_]}
        for id_, text in zip(features, texts, strict=True)
    ]
    report = evaluate_methods(model, processor, gallery, features, queries)
    assert all(recalls == {"R@1": 0, "R@5": 0, "R@10": 0, "R@50": 0} for recalls in report.values())
    assert table_rows(report)[0] == ["image only", "0.00", "0.00", "0.00", "0.00"]
