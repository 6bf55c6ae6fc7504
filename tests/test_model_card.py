import importlib.util
import json
import re
from pathlib import Path

import pytest
import yaml
from conftest import build_encoder, build_model, build_processor, random_picture
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from hycir_hf import HyCIRModel
from hycir_hf.model_card import BenchmarkResult, ModelCardFacts, is_hub_id, read_results

CARDS = Path(__file__).parents[1] / "model_cards"
RESULTS = {"benchmark": "cirr", "split": "val", "metrics": {"recall@1": 0.25153, "recall@5": 0.5, "mAP@5": 0.1}}


def render_script():
    spec = importlib.util.spec_from_file_location("render", CARDS / "render.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(CARDS.glob("*.json")), ids=lambda path: path.stem)
def test_golden_cards(path):
    """`python model_cards/render.py` writes them anew."""
    assert path.with_suffix(".md").read_text(encoding="utf-8") == render_script().render(path)


@pytest.mark.parametrize("path", sorted(CARDS.glob("*.md")), ids=lambda path: path.stem)
def test_golden_cards_pass_the_hubs_metadata_checks(path):
    """All of `huggingface_hub`'s checks that need no network: YAML, types of the fields, model-index both ways."""
    card = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=False)
    metadata = yaml.safe_load(path.read_text(encoding="utf-8").split("---")[1])
    assert card.data.to_dict() == metadata
    name, results = model_index_to_eval_results(metadata["model-index"])
    assert name == card.data.model_name and len(results) == 12 and results == card.data.eval_results


def test_the_emoji_card_shows_the_committed_figures():
    results = json.loads((CARDS.parent / "examples" / "emoji" / "hycir" / "results.json").read_text(encoding="utf-8"))
    card = ModelCard.load(CARDS / "emoji.md")
    values = [result.metric_value for result in card.data.eval_results]
    expected = [round(100 * value, 2) for part in results["parts"].values() for value in part["mapper"].values()]
    assert values == expected


def test_a_card_from_a_folder(tmp_path):
    model = build_model("blip", encoder_name_or_path="Salesforce/blip-itm-base-coco")
    model.save_pretrained(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps([RESULTS]))
    facts = ModelCardFacts.from_folder(
        tmp_path, "ann/blip", datasets=["ann/triplets"], license="bsd-3-clause", training="L."
    )
    card = ModelCard(facts.render())
    assert card.data.base_model == "Salesforce/blip-itm-base-coco" and card.data.datasets == ["ann/triplets"]
    assert (card.data.license, card.data.library_name) == ("bsd-3-clause", "transformers")
    assert card.data.pipeline_tag == "image-feature-extraction" and "composed-image-retrieval" in card.data.tags
    assert [(r.metric_type, r.metric_value) for r in card.data.eval_results][:2] == [
        ("recall@1", 25.15),
        ("recall@5", 50.0),
    ]
    assert "| recall@1 | recall@5 | mAP@5 |\n|---|---|---|\n| 25.15 | 50.00 | 10.00 |\n" in card.text
    assert "frozen blip encoder ([Salesforce/blip-itm-base-coco]" in card.text and "## Training\n\nL.\n" in card.text


def test_a_card_of_a_local_encoder_names_no_path(tmp_path):
    build_encoder("clip").save_pretrained(tmp_path / "encoder")
    HyCIRModel.from_encoder(tmp_path / "encoder", 1).save_pretrained(tmp_path / "model")
    text = ModelCardFacts.from_folder(tmp_path / "model", "ann/clip").render()
    assert "base_model" not in text and str(tmp_path) not in text and "1 pseudo-word token of" in text
    assert "## Results" not in text and "## Training" not in text and "model-index" not in text


def test_the_cards_code_runs(tmp_path, monkeypatch):
    build_model().save_pretrained(tmp_path / "ann" / "model")
    build_processor().save_pretrained(tmp_path / "ann" / "model")
    for seed, name in enumerate(("first", "second", "third", "reference")):
        random_picture(seed).save(tmp_path / f"{name}.jpg")
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", ModelCardFacts.from_folder("ann/model", "ann/model").render(), re.DOTALL)
    variables: dict = {}
    exec(code[0], variables)
    assert sorted(variables["ranking"][0].tolist()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"metrics": {}}, r"found \['metrics'\]"),
        ({"benchmark": "cirr", "split": "val", "metrics": [1]}, "Expected 'benchmark', 'split' and 'metrics'"),
        ([3], "found int"),
        (RESULTS | {"metrics": {"recall@1": float("nan")}}, r"\['recall@1'\] are none"),
        (RESULTS | {"metrics": {"recall@1": "high"}}, r"\['recall@1'\] are none"),
    ],
)
def test_other_results_are_refused(tmp_path, content, message):
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_results(tmp_path / "results.json")


def test_results_of_one_benchmark(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(RESULTS | {"k": 5}))
    assert read_results(tmp_path / "results.json") == [BenchmarkResult("cirr", "val", RESULTS["metrics"])]


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Expected a HyCIR model"):
        ModelCardFacts.from_folder(tmp_path, "ann/model")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("openai/clip-vit-large-patch14", True),
        ("gpt2", False),
        ("/home/x", False),
        ("a/b/c", False),
        ("./x", False),
        (None, False),
    ],
)
def test_is_hub_id(name, expected):
    assert is_hub_id(name) is expected
