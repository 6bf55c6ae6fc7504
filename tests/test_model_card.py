import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import NUM_PSEUDO_TOKENS, build_encoder, build_model, build_processor, random_picture
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from test_evaluation_files import make_cirr, make_fashioniq

from hycir_hf import HyCIRModel
from hycir_hf.cli.main import main
from hycir_hf.evaluation import EvaluationResults
from hycir_hf.names import is_hub_id
from hycir_hf.reports.cards import ModelCardFacts, add_results, read_results

CARDS = Path(__file__).parents[1] / "model_cards"
RESULTS = {
    "format": "hycir-evaluation",
    "format_version": 1,
    "benchmark": "cirr",
    "split": "val",
    "results": {
        "image only": {"all": {"R@1": {"mean": 0.1, "low": 0.05, "high": 0.15}}},
        "mapper": {"all": {"R@1": {"mean": 0.25153, "low": 0.2, "high": 0.30006}}},
    },
}


def render_script():
    spec = importlib.util.spec_from_file_location("render", CARDS / "render.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(CARDS.glob("*.md")), ids=lambda path: path.stem)
def test_golden_cards(path):
    """`python model_cards/render.py` writes them again."""
    assert path.read_text(encoding="utf-8") == render_script().render(path.with_suffix(".json"))


@pytest.mark.parametrize("path", sorted(CARDS.glob("*.md")), ids=lambda path: path.stem)
def test_golden_cards_pass_the_hubs_metadata_checks(path):
    """All of `huggingface_hub`'s checks that need no network: YAML, types of the fields, model-index both ways."""
    card = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=False)
    metadata = yaml.safe_load(path.read_text(encoding="utf-8").split("---")[1])
    assert card.data.to_dict() == metadata
    name, results = model_index_to_eval_results(metadata["model-index"])
    assert name == card.data.model_name and len(results) == 45 and results == card.data.eval_results


def test_the_emoji_card_shows_the_committed_figures():
    committed = json.loads((CARDS.parent / "examples" / "emoji" / "hycir" / "results.json").read_text(encoding="utf-8"))
    found = {
        (result.dataset_name, result.metric_name): result.metric_value
        for result in ModelCard.load(CARDS / "emoji.md").data.eval_results
    }
    for part, methods in committed["parts"].items():
        for metric, value in methods["mapper"].items():
            assert found[f"emoji, {part.replace('_', ' ')}", metric] == round(100 * value, 2)


def test_a_card_from_a_folder(tmp_path):
    model = build_model("blip", encoder_name_or_path="Salesforce/blip-itm-base-coco")
    model.save_pretrained(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    (tmp_path / "results_of_another_tool.json").write_text('{"accuracy": 1}')
    (tmp_path / "results_circo.json").write_text(json.dumps(RESULTS | {"benchmark": "circo"}))
    facts = ModelCardFacts.from_folder(
        tmp_path, "ann/blip", datasets=["ann/triplets"], license="bsd-3-clause", training="L."
    )
    card = ModelCard(facts.render())
    assert card.data.base_model == "Salesforce/blip-itm-base-coco" and card.data.datasets == ["ann/triplets"]
    assert (card.data.license, card.data.library_name) == ("bsd-3-clause", "transformers")
    assert card.data.pipeline_tag == "image-feature-extraction" and "composed-image-retrieval" in card.data.tags
    assert [(r.dataset_type, r.dataset_split, r.metric_type, r.metric_value) for r in card.data.eval_results] == [
        ("cirr", "val", "R@1", 25.15),
        ("circo", "val", "R@1", 25.15),
    ]
    assert card.data.eval_results[0].metric_args == {"confidence_level": 0.95, "low": 20.0, "high": 30.01}
    assert (
        "| | image only | mapper |\n|---|---|---|\n| R@1 | 10.00 (5.00 to 15.00) | 25.15 (20.00 to 30.01) |\n"
        in card.text
    )
    assert (
        "[Salesforce/blip-itm-base-coco](https://huggingface.co/Salesforce/blip-itm-base-coco)" in card.text
        and "## Training\n\nL.\n" in card.text
    )


def test_a_card_of_a_local_encoder_names_no_path(tmp_path):
    build_encoder("clip").save_pretrained(tmp_path / "encoder")
    HyCIRModel.from_encoder(tmp_path / "encoder", 1).save_pretrained(tmp_path / "model")
    text = ModelCardFacts.from_folder(tmp_path / "model", "ann/clip").render()
    assert "base_model" not in text and str(tmp_path) not in text and "1 pseudo-word token of" in text
    assert "## Evaluation" not in text and "## Training" not in text and "model-index" not in text


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


def test_from_evaluation_to_card_by_its_json_alone(tmp_path):
    """`hycir evaluate run --output` into the model's folder: the card's metadata hold what it wrote."""
    folder = tmp_path / "model"
    HyCIRModel.from_encoder(build_encoder("clip"), NUM_PSEUDO_TOKENS).save_pretrained(folder)
    build_processor().save_pretrained(folder)
    cirr, fashioniq = make_cirr(tmp_path / "cirr"), make_fashioniq(tmp_path / "fashioniq")
    for name, data in (("cirr", cirr), ("fashioniq", fashioniq)):
        command = ["evaluate", "run", "--model", str(folder), "--benchmark", name, "--data", str(data)]
        assert main([*command, "--output", str(folder / f"results_{name}.json")]) == 0
    text = ModelCardFacts.from_folder(folder, "ann/model").render()
    card = ModelCard(text, ignore_metadata_errors=False)
    name, results = model_index_to_eval_results(yaml.safe_load(text.split("---")[1])["model-index"])
    assert name == "model" and results == card.data.eval_results
    expected = {}
    for benchmark in ("cirr", "fashioniq"):
        evaluated = EvaluationResults.load(folder / f"results_{benchmark}.json").intervals()["mapper"]
        for part, metrics in evaluated.items():
            title = benchmark if len(evaluated) == 1 else f"{benchmark}, {part}"
            expected |= {(benchmark, title, metric): interval for metric, interval in metrics.items()}
    found = {(r.dataset_type, r.dataset_name, r.metric_type): r for r in results}
    assert found.keys() == expected.keys() and ("fashioniq", "fashioniq, average", "R@10") in found
    for key, interval in expected.items():
        shown = [found[key].metric_value, found[key].metric_args["low"], found[key].metric_args["high"]]
        assert shown == [round(100 * value, 2) for value in (interval.mean, interval.low, interval.high)]
    assert {result.dataset_split for result in results} == {"val"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"metrics": {}}, "'format'"),
        ([3], "list"),
        (RESULTS | {"format": "another"}, "'another'"),
        (RESULTS | {"format_version": 2}, "newer"),
        ({name: value for name, value in RESULTS.items() if name != "split"}, "'split'"),
        (RESULTS | {"results": {"slerp": {"all": {}}}}, r"'mapper'.*'slerp'"),
    ],
)
def test_other_results_are_refused(tmp_path, content, message):
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        read_results(tmp_path / "results.json")
    assert "results.json" in str(caught.value)


@pytest.mark.parametrize("text", ["---\ntags:\n- mine\n---\n\n# My model\n", "# My model\n"])
def test_figures_are_added_to_a_card_once(tmp_path, text):
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    facts = ModelCardFacts("ann/model", "clip", 4, "{image}", results=[read_results(tmp_path / "results.json")])
    added = add_results(text, facts)
    card = ModelCard(added)
    assert card.data.model_name == "model" and card.data.eval_results[0].metric_value == 25.15
    assert "# My model\n\n## Evaluation\n" in card.text and ("mine" in (card.data.tags or ())) == ("mine" in text)
    assert add_results(added, facts) == added
    assert add_results(text, replace(facts, results=[])) == text


def test_damaged_results_are_refused(tmp_path):
    (tmp_path / "results.json").write_text('{"format": ')
    with pytest.raises(ValueError, match=r"results\.json"):
        read_results(tmp_path / "results.json")


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        ModelCardFacts.from_folder(tmp_path, "ann/model")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ValueError, match=r"config\.json"):
        ModelCardFacts.from_folder(tmp_path, "ann/model")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("openai/clip-vit-large-patch14", True),
        ("gpt2", False),
        ("/home/x", False),
        ("a/b/c", False),
        ("./x", False),
        ("../x", False),
        ("C:/x", False),
        ("C:\\Users\\x", False),
        (None, False),
    ],
)
def test_is_hub_id(name, expected):
    assert is_hub_id(name) is expected
