"""The paper's tables: run as the command is run, on a tiny world; and what their sentences say, on figures by hand."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import Dataset
from PIL import Image
from test_evaluation_files import make_cirr, make_fashioniq

PAPER = Path(__file__).parents[1] / "examples" / "paper"
PAPER_TEXT = Path(__file__).parents[2] / "shared" / "paper" / "hycir.txt"
sys.path.insert(0, str(PAPER))

from ablation_runs import Place, Run, write_unfiltered  # noqa: E402
from paper_figures import read_figures  # noqa: E402
from tables import ABLATIONS, compare_orders, difference_of, figure_of  # noqa: E402
from two_rounds import score_triplets  # noqa: E402

from hycir_hf.evaluation import EvaluationResults, PartScores  # noqa: E402


@pytest.fixture(scope="module")
def syncir(syncir_folder, tmp_path_factory):
    """SynCir's folder with what it dropped: two triplets by the filter, and pairs without a query text."""
    path = tmp_path_factory.mktemp("syncir") / "triplets"
    shutil.copytree(syncir_folder, path)
    reasons = ["low_similarity", "equal_captions", "low_query_gain", "no_answer"]
    dropped = {
        "reference_id": ["00.png"] * 4,
        "target_id": ["05.png"] * 4,
        "query_text": ["fly", "", "swim", ""],
        "reason": reasons,
    }
    Dataset.from_dict(dropped).to_parquet(path / "dropped.parquet")
    card = (path / "README.md").read_text()
    # `datasets` finds its cache by the card: other rows under the same card would come from an older cache.
    config = "- config_name: dropped\n  description: kinds of reasons\n  data_files: dropped.parquet\n---\n"
    (path / "README.md").write_text(card.removesuffix("---\n") + config)
    return path


@pytest.fixture(scope="module")
def world(encoder_path, picture_folder, syncir, tmp_path_factory):
    """A config of tiny trainings, and a function that runs the command on it."""
    root = tmp_path_factory.mktemp("world")
    settings = {
        "encoder": str(encoder_path),
        "unlabeled": str(picture_folder),
        "triplets": str(syncir),
        "unlabeled_batch_size": 8,
        "triplet_batch_size": 4,
        "steps": 50,
    }
    (root / "tiny.yaml").write_text(yaml.safe_dump(settings))

    def run(*arguments, script="tables.py"):
        shared = ["--config", "tiny.yaml", "--work", "work", "--output", "out", "--steps", "2"]
        command = [sys.executable, str(PAPER / script), *arguments, *shared]
        # The clone's own package, whichever is installed; one thread.
        environment = {**os.environ, "PYTHONPATH": str(PAPER.parents[1]), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return root, run


def test_unfiltered_is_what_the_filter_dropped_and_not_what_had_no_text(syncir, tmp_path):
    path = write_unfiltered(str(syncir), tmp_path / "unfiltered.parquet")
    texts = pq.read_table(path)["query_text"].to_pylist()
    assert len(texts) == 22 and texts[20:] == ["fly", "swim"]


@pytest.mark.slow
def test_tables_share_runs_and_go_on(world):
    """Two tables at once; a lost evaluation is made again from its model, and nothing else is."""
    root, run = world
    cirr = ["--benchmark", "cirr", "--data", str(make_cirr(root / "cirr"))]
    printed = run("table3", "table5", *cirr, "--seeds", "0", "--jobs", "2")
    assert re.findall(r"(\d+) runs, (\d+) of them", printed) == [("2", "2"), ("3", "3")]  # K = 1, and K = 4
    text = (root / "out" / "table3.md").read_text()
    paper = "the paper (BLIP, CIRR val)"
    assert (
        f"| LaSCo | {paper} | 37.04 | 68.33 | 79.83 | 94.78 | 69.99 |" in text and "| LaSCo | here | not run |" in text
    )
    assert f"| SynCir, filtered | {paper} | 37.45 | 69.52 | 80.96 | 95.00 | 70.73 |" in text
    assert re.search(r"\| SynCir, filtered \| here (\| \d+\.\d\d ){5}\|", text)
    loss = (root / "out" / "table5.md").read_text()  # the tiny encoder is a CLIP
    assert (
        "| hybrid | the paper (CLIP, CIRR val) | 25.59 | 55.80 | 69.14 | 89.93 | 60.11 |" in loss
        and "72.14" not in loss
    )
    assert "Of 1 pair " in text and "(table3.png)" in text
    with Image.open(root / "out" / "table5.png") as plot:
        assert plot.size[0] > 500
    (runs,) = (root / "work").glob("tiny-*-2-*")
    models = {path: path.stat().st_mtime_ns for path in runs.glob("*/model/model.safetensors")}
    assert len(models) == 5 and not list(runs.glob("*/checkpoints"))
    lost = runs / "zs-k4-none-seed0" / "cirr-val.json"
    before = lost.read_text()
    lost.unlink()
    assert "3 runs, 1 of them" in run("table5", *cirr, "--seeds", "0")
    assert lost.read_text() == before
    captions = next((root / "cirr").rglob("cap.rc2.val.json"))
    captions.write_text(captions.read_text().replace("make it night", "make it red"))
    assert "3 runs, 0 of them" in run("table5", *cirr, "--seeds", "0")
    assert lost.read_text() != before  # other queries: evaluated anew
    assert models == {path: path.stat().st_mtime_ns for path in runs.glob("*/model/model.safetensors")}


def test_table6_sets_the_training_free_methods_beside(world):
    root, run = world
    run("table6", "--benchmark", "fashioniq", "--data", str(make_fashioniq(root / "fashioniq")), "--seeds", "0")
    text = (root / "out" / "table6.md").read_text()
    assert text.count("| slerp | ") == 4 and "Mean over the parts" in text
    assert "| method | R@10 | seeds | queries | R@50 | seeds | queries |" in text
    assert "| hybrid, the paper (CLIP) | 27.62 |  |  | 44.94 |  |  |" in text  # shirt
    assert text.count("Hybrid minus L_ZS, mean of R@10 and R@50: ") == 3


@pytest.mark.slow
def test_two_rounds_keep_the_triplets_that_the_first_rounds_model_finds_best(world):
    root, run = world
    cirr = ["--benchmark", "cirr", "--data", str(make_cirr(root / "cirr_of_rounds"))]
    run(*cirr, "--seeds", "0", "--keep", "0.4", script="two_rounds.py")
    text = (root / "out" / "two_rounds.md").read_text()
    assert text.count("| round two: the best |") == text.count("| control: drawn at random |") == 1
    (best,) = (root / "work").glob("tiny-*-2-*/round2-0.4.parquet")
    kept = pq.read_table(best).to_pylist()
    assert len(kept) == 8 == len(pq.read_table(best.with_name("random-0.4.parquet")))
    place = Place(root / "tiny.yaml", root / "work", "cirr", root / "cirr_of_rounds", 2)
    source, scores = score_triplets(place, Run())
    threshold = float(re.search(r"(-?\d\.\d{3}) or more", text)[1])
    expected = {source.triplets.reference_ids[row] for row in np.flatnonzero(scores >= threshold - 0.0005)}
    assert {row["reference_id"] for row in kept} <= expected and scores.min() < threshold


def results_of(values):
    ids = [str(number) for number in range(len(values))]
    return EvaluationResults(
        "cirr", "val", {"mapper": {"all": PartScores(ids, ids, {"R@1": np.asarray(values, dtype=float)})}}
    )


def figure(*seeds):
    return figure_of([results_of(values) for values in seeds], "mapper", "all", ["R@1"])


def test_a_figure_is_the_mean_over_seeds_with_both_spreads():
    one = figure([1, 0, 0, 0], [1, 1, 0, 0])
    assert one.mean == 0.375 and one.seeds.tolist() == [0.25, 0.5]
    assert one.scores.values["value"].tolist() == [1, 0.5, 0, 0]
    mean, seeds, queries = one.cells()
    assert (mean, seeds) == ("37.50", "25.00 – 50.00") and queries == "0.00 – 75.00"


def test_settings_are_told_apart_by_queries_and_by_every_seed():
    high, low = [1] * 30 + [0] * 10, [0] * 30 + [0] * 10
    assert difference_of(figure(high, high), figure(low, low)) == (0.75, True)
    assert difference_of(figure(high, low), figure(low, high)) == (0, False)
    assert difference_of(figure(high, high, low), figure(low, low, [1, *low[1:]]))[1] is False  # a seed disagrees
    assert difference_of(figure([1, *low]), figure([0, *low]))[1] is False  # one query of 41


def test_the_sentence_names_agreement_and_disagreement():
    high, middle, low = [1] * 40, [1] * 20 + [0] * 20, [0] * 40
    paper = {"a": 1.0, "b": 2.0, "c": 3.0}
    figures = {"a": figure(middle), "b": figure(high), "c": figure(low)}
    sentence = compare_orders(paper, figures, "this world")
    assert "Of 3 pairs of settings that the paper ranks, this world ranks: 1 as the paper does" in sentence
    assert "2 the other way round" in sentence and "Best here: b; in the paper: c." in sentence
    assert "As the paper does: b over a (+50.00)." in sentence and "c over a (-50.00)" in sentence
    many = compare_orders({"a": 1.0, "b": 2.0}, {"a": figure(high), "b": figure(high)}, "this world")
    assert "1 too close to call" in many and "Too close to call: b over a (+0.00)." in many


def test_the_runs_are_the_papers():
    assert [one.run.num_pseudo_tokens for one in ABLATIONS["table4"].settings] == list(range(1, 9))
    assert {one.run.num_pseudo_tokens for one in ABLATIONS["table3"].settings} == {1}
    assert ABLATIONS["table4"].settings[0].run == ABLATIONS["table3"].settings[2].run  # the paper's equal rows
    assert ABLATIONS["table4"].settings[3].run == ABLATIONS["table5"].settings[2].run == Run()


@pytest.mark.parametrize("table", ["table3", "table4", "table5", "table6"])
def test_every_setting_has_the_papers_figures(table):
    for encoder in ("clip", "blip"):
        figures = read_figures(table, encoder)
        assert list(figures.rows) == [one.name for one in ABLATIONS[table].settings]
        assert all(len(row) == len(figures.columns) for row in figures.rows.values())
        for row in figures.rows.values():
            if figures.columns[-1] == "avg":
                assert sum(row[:4]) / 4 == pytest.approx(row[4], abs=0.011)
    assert read_figures("table3", "clip").encoder == "blip"  # the paper's only one
    assert read_figures("table5", "siglip").rows == {}


@pytest.mark.skipif(not PAPER_TEXT.is_file(), reason=f"the paper's text is not at {PAPER_TEXT}")
def test_the_figures_are_those_in_the_papers_text():
    printed = [
        [float(number) for number in re.findall(r"(?<![\w.])\d{1,2}(?:\.\d+)?(?![\w.])", line)]
        for line in PAPER_TEXT.read_text(encoding="utf-8").splitlines()
    ]
    content = yaml.safe_load((PAPER / "figures.yaml").read_text())
    rows = [row for table in content.values() for name in table.keys() - {"columns"} for row in table[name].values()]
    assert len(rows) == 10 + 3 + 8 + 6 + 4
    for row in rows:
        wanted = [value for value in row if value is not None]
        assert any(line[-len(wanted) :] == wanted for line in printed), row
