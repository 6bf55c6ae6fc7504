"""Every script of `examples/` that shows one use is run as a reader would run it, and what it found is checked."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import TOKEN
from datasets import load_dataset

from hycir_hf import Gallery, HyCIRModel
from hycir_hf.evaluation import EvaluationResults
from hycir_hf.images import open_images
from hycir_hf.reports.cards import read_results

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
QUERY = "woman firefighter + 'make it a man': "


@pytest.fixture
def run(tmp_path):
    """Run an example in an empty folder; returns the lines that it printed."""

    def run_example(name, *arguments, **environment):
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths} | environment
        command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.splitlines()

    return run_example


def test_each_is_short_says_its_command_and_is_run_here():
    here = Path(__file__).read_text(encoding="utf-8")
    listed = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    scripts = [path for path in EXAMPLES.glob("*.py") if path.stem != "syncir_ray"]  # it has a test of its own
    assert len(scripts) == 9
    for path in scripts:
        text = path.read_text(encoding="utf-8")
        assert f"    python examples/{path.name}" in text.split('"""')[1] and len(text.splitlines()) <= 56
        assert f'run("{path.stem}"' in here and f"`examples/{path.name}`" in listed


def test_retrieve(run, tmp_path):
    lines = run("retrieve")
    assert lines[0].startswith(f"{QUERY}man firefighter (") and lines[1].startswith("man cook + ") and len(lines) == 3
    assert "woman cook" in lines[1] and len(Gallery.load(tmp_path / "demo/retrieve/gallery")) == 315


@pytest.mark.slow
def test_sentence_transformers(run):
    query, accuracy = run("use_sentence_transformers")[-2:]
    assert query.startswith(f"{QUERY}man firefighter (") and accuracy == "accuracy@5: 1.00"


@pytest.mark.slow
def test_vector_store(run):
    count, roles, sports = run("vector_store")
    assert count.startswith("315 images of width 256 in ")
    assert roles.startswith('kind == "person-role": man firefighter (') and "woman firefighter" not in roles
    table = pq.read_table(EXAMPLES / "emoji/data/images/heldout_vendor.parquet", columns=["name", "subcategory"])
    kinds = {row["name"]: row["subcategory"] for row in table.to_pylist()}
    names = re.findall(r"(?:: |, )(.+?) \(\d", sports)
    assert len(names) == 3 and {kinds[name] for name in names} == {"person-sport"}


def test_dataset_map(run, tmp_path):
    cook, firefighter = run("dataset_map")
    assert cook.startswith("man cook + 'make it a woman': ") and "woman cook, " in cook
    assert firefighter.startswith(f"{QUERY}man firefighter, ") and (tmp_path / "demo/people.faiss").is_file()


@pytest.mark.slow
def test_webdataset(run, tmp_path):
    indexed, found, trained = run("use_webdataset")
    assert indexed == "128 images of demo/shards indexed, 000000000 to 000010063"
    assert found.startswith("image 70 is found as 000010006 (1.000")
    first, last = map(float, re.findall(r"\d+\.\d+", trained))
    assert last < first and HyCIRModel.from_pretrained(tmp_path / "demo/shards_training/model").config.num_pseudo_tokens
    picture = np.asarray(open_images(str(tmp_path / "demo/shards")).load(70), dtype=float)
    original = load_dataset(str(EXAMPLES / "emoji/data"), "images", split="train")[70]["image"]
    assert abs(picture - np.asarray(original, dtype=float)).mean() < 10  # JPEG


@pytest.mark.slow
def test_train(run, tmp_path):
    *losses, model = run("train")
    values = [float(line.rpartition(" ")[2]) for line in losses]
    assert [line.split(":")[0] for line in losses] == ["step 5", "step 10", "step 15", "step 20"]
    assert values[-1] < values[0] / 2 and model == "demo/train/model: 4 pseudo tokens, clip encoder"
    assert (tmp_path / "demo/train/model/README.md").is_file()


@pytest.mark.slow
def test_build_syncir(run, tmp_path):
    counts, *triplets = run("build_syncir")
    kept = int(re.match(r"kept (\d+) of 8 pairs", counts)[1])
    assert kept == len(triplets) >= 1 and all(len(line.split(" | ")) == 3 for line in triplets)
    folder = tmp_path / "demo/syncir_triplets"
    rows = load_dataset(str(folder), "triplets", split="train", cache_dir=str(tmp_path))
    assert [f"{r['reference_caption']} | {r['query_text']} | {r['target_caption']}" for r in rows] == triplets
    assert min(rows["similarity"]) >= 0.5 and "SmolLM2-135M-Instruct" in (folder / "README.md").read_text()


@pytest.mark.slow
def test_evaluate(run, tmp_path):
    lines = run("evaluate_model")
    assert lines[2] == "image + text: R@1 13.21, R@5 33.21, R@10 45.51, R@50 75.38"  # of the encoder alone
    results = EvaluationResults.load(tmp_path / "demo/results.json")
    card = read_results(tmp_path / "demo/results.json").methods["mapper"]["heldout_vendor"]
    found = results.intervals()["mapper"]["heldout_vendor"]["R@10"]
    assert f"R@10 {100 * found.mean:.2f}," in lines[4] and card["R@10"].mean == found.mean
    difference = found.mean - results.intervals()["image + text"]["heldout_vendor"]["R@10"].mean
    assert lines[5].startswith(f"mapper - (image + text), R@10: {100 * difference:.2f} (")


def test_push(run, hub, tmp_path):
    online = {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"),
    }
    model, triplets, difference = run("push", "ann/emoji", HF_TOKEN=TOKEN, **online)[-3:]
    assert model.startswith(f"{hub.url}/ann/emoji (private): ") and "emoji-triplets (private): " in triplets
    assert float(difference.removeprefix("largest difference of the features: ")) < 1e-6
    assert {"model.safetensors", "modeling_hycir.py", "README.md"} <= set(hub.repo("ann/emoji").files)
    card = hub.repo("ann/emoji-triplets", "dataset").files["README.md"].decode()
    assert 'load_dataset("ann/emoji-triplets", "triplets"' in card and "CC BY-SA 4.0" in card
