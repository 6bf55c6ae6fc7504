"""Settings: YAML with flags over it, all complaints at once, recipes that parse."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from hycir_hf.cli.main import build_app
from hycir_hf.training import HybridTrainingArguments
from hycir_hf.training.arguments import TERMS

GOOD = {"output_dir": "o", "encoder": "e", "unlabeled": "u", "triplets": "t", "steps": 3}


def parse_arguments(words):
    """The settings that `hycir train` makes of its words."""
    _, bound, _ = build_app().parse_args(["train", *words])
    return HybridTrainingArguments.from_yaml(bound.arguments.get("config"), **bound.arguments.get("settings", {}))


CONFIGS = sorted((Path(__file__).parents[1] / "examples" / "configs").glob("*.yaml"))


def test_flags_go_over_the_file(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(
        "output-dir: o\nencoder: e\nunlabeled: u\ntriplets: t\nsteps: 3\nlearning_rate: 1e-4\n"
        "max_grad_norm: null\nreport_to: tensorboard\nvalidation_options: {a: 1}\n"
    )
    arguments = parse_arguments(
        [
            *("--config", str(config), "--steps", "5", "--no-progress", "--compile", "--adam_beta2", "0.98"),
            *("--validation-options", '{"a": [1]}'),
        ]
    )
    assert (arguments.steps, arguments.progress, arguments.compile) == (5, False, True)
    assert arguments.learning_rate == 1e-4 and arguments.adam_beta2 == 0.98  # YAML reads 1e-4 as a string
    assert arguments.report_to == ["tensorboard"] and arguments.validation_options == {"a": [1]}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--epochs", "2"], {"steps": None, "epochs": 2, "encoder": "e"}),
        (["--model", "m"], {"steps": 3, "encoder": None, "model": "m", "num_pseudo_tokens": 4}),
        (["--model", "m", "--steps", "5"], {"steps": 5, "encoder": None, "model": "m"}),
    ],
)
def test_a_flag_makes_the_other_half_of_a_pair_give_way(tmp_path, flags, expected):
    (tmp_path / "c.yaml").write_text(
        "output_dir: o\nencoder: e\nunlabeled: u\ntriplets: t\nsteps: 3\nnum-pseudo-tokens: 2\n"
    )
    arguments = parse_arguments(["--config", str(tmp_path / "c.yaml"), *flags])
    assert {name: getattr(arguments, name) for name in expected} == expected
    for both in (["--epochs", "2", "--steps", "2"], ["--encoder", "e", "--model", "m"]):
        with pytest.raises(ValueError, match="and not both"):
            parse_arguments(["--config", str(tmp_path / "c.yaml"), *both])


@pytest.mark.parametrize("given", [["tensorboard,wandb"], ["tensorboard", "wandb"], "tensorboard, wandb"])
def test_several_trackers(given):
    assert HybridTrainingArguments(**GOOD, report_to=given).report_to == ["tensorboard", "wandb"]
    if isinstance(given, list):
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in GOOD.items()]
        assert parse_arguments([*flags, "--report-to", *given]).report_to == ["tensorboard", "wandb"]


def test_all_complaints_come_at_once():
    with pytest.raises(ValueError) as caught:
        HybridTrainingArguments(
            encoder="e", model="m", optimizer="sgd", learning_rate=-1.0, mapper_dropout=1.0, objective="zs+phrases"
        )
    for complaint in (
        "output_dir is missing",
        "either encoder or model",
        "either steps or epochs",
        "optimizer must be one of ['adam', 'adamw']",
        "learning_rate must be at least 0",
        "mapper_dropout must be below 1",
        "needs unlabeled images",
        "needs phrases",
    ):
        assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"steps": 2.5}, "steps must be a whole number or null"),
        ({"steps": True}, "steps must be"),
        ({"steps": float("inf")}, "steps must be .* inf"),
        ({"report_to": [1]}, "report_to must be a list"),
        ({"num_views": 4, "cache_features": False}, "num_views needs a feature cache"),
        (
            {"encoder": None, "model": "m", "prompt": "{image}", "num_pseudo_tokens": 2},
            "num_pseudo_tokens, prompt would",
        ),
        ({"learning_rate": "fast"}, "learning_rate must be a number.*fast"),
        ({"learning_rate": float("nan")}, "learning_rate must be at least 0"),
        ({"compile": "yes"}, "compile must be .*yes"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"objective": "zs+nonsense"}, r"it has \['nonsense'\]"),
        ({"objective": "zs+zs"}, "a term twice"),
        ({"objective": "combiner+zs"}, "the combiner is trained alone"),
        ({"objective": "projection"}, "needs texts"),
        ({"load_best_at_end": True}, "load_best_at_end needs a metric"),
        ({"validation": "module"}, "MODULE:FUNCTION"),
        ({"unlabeled_streaming": True, "steps": None, "epochs": 1}, "no known length"),
    ],
)
def test_wrong_values(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        HybridTrainingArguments(**GOOD | changes)


def test_objectives():
    assert HybridTrainingArguments(**GOOD).terms == ("zs", "triplet")
    further = {"phrases": "p", "texts": "t"}
    for term in TERMS:
        assert HybridTrainingArguments(**GOOD, **further, objective=term).terms == (term,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rte: 1", "'learning_rte' .did you mean 'learning_rate'"),
        ("- a\n- b", r"c\.yaml.* list"),
        ("a: [", r"c\.yaml.*YAML"),
    ],
)
def test_wrong_files(tmp_path, content, message):
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        parse_arguments(["--config", str(tmp_path / "c.yaml")])
    with pytest.raises(ValueError, match=r"none\.yaml"):
        parse_arguments(["--config", str(tmp_path / "none.yaml")])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_recipes_are_settings(path):
    arguments = parse_arguments(["--config", str(path)])
    if path.stem == "emoji":
        assert (arguments.objective, arguments.steps, arguments.num_pseudo_tokens) == ("hybrid", 300, 4)
    elif "paper" in path.stem:
        recipe = (arguments.unlabeled_batch_size, arguments.triplet_batch_size, arguments.num_pseudo_tokens)
        assert recipe == (512, 256, 4) and arguments.optimizer == "adam" and arguments.learning_rate == 1e-4
    elif path.stem == "blip_vit_b16_two_sources":
        assert [size for _, size in arguments.triplet_sources()] == [192, 64]
    elif path.stem == "photos":
        assert (arguments.objective, arguments.optimizer, arguments.learning_rate) == ("hybrid", "adam", 1e-4)
    else:
        recipe = (arguments.weight_decay, arguments.warmup_steps, arguments.schedule, arguments.epochs)
        assert recipe == (0.1, 10_000, "cosine", 30) and arguments.optimizer == "adamw"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"path": "b"}], r"\[256, 0\]"),
        ([{"path": "b", "share": 0.6}, {"path": "c", "share": 0.4}], r"\[0, 154, 102\]"),
        ([{"path": "b", "share": 1.5}], "share"),
        ([{"share": 0.5}], "path"),
        ([{"path": "b", "share": 0.5, "imagse": "x"}], "imagse.*images"),
        (["b"], "mapping"),
        ([{"path": "b", "share": 0.5, "features": "f"}], "features"),
    ],
)
def test_wrong_further_triplets(entries, message):
    given = {"output_dir": "x", "encoder": "e", "steps": 1, "unlabeled": "u", "triplets": "t"}
    with pytest.raises(ValueError, match=message):
        HybridTrainingArguments(**given, further_triplets=entries, cache_features=False)
    sizes = HybridTrainingArguments(**given, further_triplets=[{"path": "b", "share": 0.25}]).triplet_sources()
    assert [size for _, size in sizes] == [192, 64]


def test_there_are_recipes():
    assert len(CONFIGS) == 7


def test_settings_load_no_torch():
    code = "import sys, hycir_hf.training.arguments, hycir_hf.syncir.config\nprint('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_every_setting_has_its_help_and_a_group():
    entries = dataclasses.fields(HybridTrainingArguments)
    assert entries[0].metadata["group"] and all(entry.metadata["help"].endswith(".") for entry in entries)
