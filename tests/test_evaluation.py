"""Scores, intervals, comparison, and `hycir evaluate` on a small CIRR."""

import json
import re

import numpy as np
import pytest
from conftest import NUM_PSEUDO_TOKENS, build_encoder, build_processor
from test_cli import failing, read_page
from test_evaluation_files import make_cirr, make_fashioniq

from hycir_hf import HyCIRModel
from hycir_hf.cli.main import main
from hycir_hf.evaluation import (
    BENCHMARKS,
    BenchmarkPart,
    EvaluationResults,
    PartScores,
    compare_results,
    mean_intervals,
    result_tables,
    score_part,
)


def query(number, rule="", **values):
    row = {"query_id": str(number), "reference_id": f"r{number}", "query_text": "red", "target_ids": ["t"]}
    return row | {"hard_negative_ids": [], "subset_ids": [], "rule": rule, "wording": 0} | values


def test_hard_negatives_and_wordings_by_hand():
    """Two wordings of one change, the first finds the target; then another query that both negatives go before."""
    others = [f"x{number}" for number in range(60)]
    queries = [
        query(0, "night", reference_id="r", hard_negative_ids=["n1", "n2"]),
        query(1, "night", reference_id="r", hard_negative_ids=["n1", "n2"], wording=1),
        query(2, "night", hard_negative_ids=["n1", "n2"]),
    ]
    rankings = [["t", *others], ["n1", *others], ["n1", "n2", "t", *others]]
    scores = score_part(BENCHMARKS["emoji"], BenchmarkPart("all", queries, []), rankings)
    assert scores.values["HN@10"].tolist() == [0, 0.1, 0.2]
    assert scores.values["wording spread@10"].tolist() == [1, 1, 0]
    assert scores.values["R@1"].tolist() == [1, 0, 0] and scores.values["R@5"].tolist() == [1, 0, 1]
    assert len(set(scores.groups)) == 2


def circo_scores(rankings):
    queries = [
        query(0, target_ids=["t", "u"], semantic_aspects=["negation", "addition"]),
        query(1, target_ids=["t"], semantic_aspects=["addition"]),
        query(2, target_ids=["t"], semantic_aspects=[]),
    ]
    return score_part(BENCHMARKS["circo"], BenchmarkPart("all", queries, []), rankings)


def test_circo_reports_what_its_server_does_by_hand(tmp_path):
    """R@K counts the first target alone; mAP@10 by aspect is the mean over the aspect's queries."""
    others = [f"x{number}" for number in range(60)]
    scores = circo_scores([["u", *others[:7], "t", *others[7:]], ["x", "t", *others], others])
    assert scores.values["R@5"].tolist() == [0, 1, 0] and scores.values["R@10"].tolist() == [1, 1, 0]
    first = (1 + 2 / 9) / 2
    assert scores.values["mAP@10"].tolist() == pytest.approx([first, 0.5, 0])
    found = mean_intervals(scores)
    assert found["mAP@10 negation"].mean == pytest.approx(first)
    assert found["mAP@10 addition"].mean == pytest.approx((first + 0.5) / 2)
    assert found["mAP@10 negation"].low == found["mAP@10 negation"].high == pytest.approx(first)  # one query
    results = EvaluationResults("circo", "val", {"mapper": {"all": scores}})
    results.save(tmp_path / "r.json")
    assert "NaN" not in (tmp_path / "r.json").read_text()
    loaded = EvaluationResults.load(tmp_path / "r.json")
    for metric, one in loaded.intervals()["mapper"]["all"].items():
        assert vars(one) == pytest.approx(vars(found[metric]), abs=1e-6)
    tables = result_tables(results)
    assert [table.header[-2:] for table in tables] == [["R@25", "R@50"], ["addition", "negation"]]
    assert tables[1].rows[0][2] == f"{100 * first:.2f} ±0.00"
    better = EvaluationResults("circo", "val", {"mapper": {"all": circo_scores([["t", "u", *others]] * 3)}})
    found = {one.metric: one for one in compare_results(better, results, "mapper", "mapper")}
    assert found["mAP@10 negation"].difference.mean == pytest.approx(1 - first)
    assert (found["mAP@10 negation"].wins, found["mAP@10 negation"].losses) == (1, 0)


def test_cirr_average_is_the_mean_over_its_ranks():
    rankings = [["x", "t", *(f"y{number}" for number in range(50))]]
    scores = score_part(BENCHMARKS["cirr"], BenchmarkPart("all", [query(0)], []), rankings)
    assert scores.values["avg"].tolist() == [0.75]


def scores_of(values, groups=None):
    ids = [str(number) for number in range(len(values))]
    return PartScores(ids, groups or ids, {"R@5": np.asarray(values, dtype=float)})


def test_intervals_are_the_binomial_ones_and_wider_for_dependent_queries():
    values = np.random.default_rng(0).random(2000) < 0.3
    found = mean_intervals(scores_of(values))["R@5"]
    half = 1.96 * np.sqrt(values.mean() * (1 - values.mean()) / 2000)
    assert found.mean == pytest.approx(values.mean())
    assert found.high - found.mean == pytest.approx(half, rel=0.1)
    assert found.mean - found.low == pytest.approx(half, rel=0.1)
    repeated = mean_intervals(scores_of(np.repeat(values, 4), [str(n // 4) for n in range(8000)]))["R@5"]
    assert repeated.high - repeated.low == pytest.approx(found.high - found.low, rel=0.1)
    assert mean_intervals(scores_of(values)) == mean_intervals(scores_of(values))  # the same seed


def results_of(values, method="mapper", benchmark="cirr"):
    return EvaluationResults(benchmark, "val", {method: {"all": scores_of(values)}})


def test_pairs_tell_apart_what_separate_intervals_do_not():
    random = np.random.default_rng(0)
    base = random.random(1000) < 0.5
    better = base | (random.random(1000) < 0.02)
    (found,) = compare_results(results_of(better), results_of(base, "sum"), "mapper", "sum")
    assert found.difference.low > 0 and (found.wins, found.losses) == (int((better & ~base).sum()), 0)
    assert found.difference.mean == pytest.approx(found.first - found.second)
    assert mean_intervals(scores_of(better))["R@5"].low < base.mean()


def test_queries_are_paired_by_id_whatever_their_order():
    first = results_of([1, 0, 0])
    turned = EvaluationResults(
        "cirr", "val", {"mapper": {"all": PartScores(["2", "1", "0"], ["2", "1", "0"], {"R@5": np.array([0, 0, 1.0])})}}
    )
    (found,) = compare_results(first, turned, "mapper", "mapper")
    assert (found.wins, found.losses) == (0, 0)


def test_comparisons_refused():
    with pytest.raises(ValueError, match="different benchmarks"):
        compare_results(results_of([1]), results_of([1], benchmark="circo"), "mapper", "mapper")
    with pytest.raises(ValueError, match="different queries"):
        compare_results(results_of([1]), results_of([1, 0]), "mapper", "mapper")
    with pytest.raises(ValueError, match=r"'sum'.*\['mapper'\]"):
        compare_results(results_of([1]), results_of([1]), "mapper", "sum")


def test_fashioniq_average_counts_each_part_the_same(tmp_path):
    parts = {"dress": scores_of([1, 1, 1, 1]), "shirt": scores_of([0])}
    results = EvaluationResults("fashioniq", "val", {"mapper": parts}, {"versions": {}}, seed=3)
    assert results.intervals()["mapper"]["average"]["R@5"].mean == 0.5
    results.save(tmp_path / "results.json")
    again = EvaluationResults.load(tmp_path / "results.json")
    assert again.to_dict() == results.to_dict() and again.seed == 3


def test_the_average_is_compared_too_and_other_galleries_are_not():
    def results(dress, shirt, size):
        parts = {"dress": scores_of(dress), "shirt": scores_of(shirt)}
        provenance = {"data": {"gallery": {"dress": size, "shirt": 9}}}
        return EvaluationResults("fashioniq", "val", {"mapper": parts}, provenance)

    better = results([1, 1, 1, 0], [0, 1], 9)
    found = compare_results(better, results([1, 0, 0, 0], [0, 0], 9), "mapper", "mapper")
    average = found[-1]
    assert (average.part, average.metric, average.wins, average.losses) == ("average", "R@5", 3, 0)
    assert (average.first, average.second, average.difference.mean) == (0.625, 0.125, 0.5)
    with pytest.raises(ValueError, match=r"'dress' has 9 and 8 images"):
        compare_results(better, results([1, 1, 1, 0], [0, 1], 8), "mapper", "mapper")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "JSON"),
        ("[]", "list"),
        ('{"format": "hycir-evaluation", "format_version": 9}', "newer|older"),
        ('{"format": "hycir-evaluation"}', "format_version"),
        (
            '{"format": "hycir-evaluation", "format_version": 1, "benchmark": "cirr", "split": "val", "seed": 0, '
            '"results": {}, "per_query": {}}',
            "per_query",
        ),
    ],
)
def test_results_files_that_are_none(tmp_path, text, words):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        EvaluationResults.load(tmp_path / "x.json")
    assert "x.json" in str(caught.value)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    HyCIRModel.from_encoder(build_encoder("clip"), NUM_PSEUDO_TOKENS).save_pretrained(path)
    build_processor().save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def cirr(tmp_path_factory):
    return str(make_cirr(tmp_path_factory.mktemp("cirr")))


def test_evaluate_writes_table_json_page_and_submission_that_score_the_same(model_path, cirr, tmp_path, capsys):
    results, page, files = tmp_path / "new" / "results.json", tmp_path / "page.html", tmp_path / "files"
    command = [
        "evaluate",
        "run",
        "--model",
        model_path,
        "--benchmark",
        "cirr",
        "--data",
        cirr,
        "--output",
        str(results),
    ]
    assert main([*command, "--html", str(page), "--submission", str(files)]) == 0
    table = capsys.readouterr().out
    assert "| method | R@1 | R@5 | R@10 | R@50 | avg | R_subset@1 |" in table
    assert re.search(r"^\| mapper \| \d+\.\d\d ±\d+\.\d\d \|", table, re.MULTILINE)
    saved = json.loads(results.read_text())
    assert saved["data"]["queries"] == {"all": 8} and saved["versions"]["torch"] and saved["encoder_fingerprint"]
    assert list(saved["results"]) == ["image only", "text only", "image + text", "slerp", "mapper"]
    text = page.read_text(encoding="utf-8")
    assert (
        len(read_page(text).images) > 0
        and text.rindex("<caption>") > text.index("make it night")
        and "make it night" in text
    )
    written = [str(path) for path in sorted(files.iterdir())]
    again = tmp_path / "again.json"
    scoring = ["evaluate", "score", *written, "--benchmark", "cirr", "--data", cirr, "--output", str(again)]
    assert main(scoring) == 0
    assert json.loads(again.read_text())["results"]["predictions"] == saved["results"]["mapper"]
    capsys.readouterr()
    assert main(["evaluate", "compare", f"{results}:mapper", str(again)]) == 0
    assert "| all R@1 |" in capsys.readouterr().out
    copy = tmp_path / results.name
    copy.write_bytes(results.read_bytes())
    assert main(["evaluate", "compare", str(results), str(copy)]) == 0
    assert f"{results}: mapper minus {copy}: mapper" in capsys.readouterr().out
    assert "--pair" in failing([*command, "--methods", "slerp", "--html", "x.html"], capsys)
    assert (
        main(["evaluate", "compare", str(results), f"{results}:image only", "--output", str(tmp_path / "d.json")]) == 0
    )
    assert len(json.loads((tmp_path / "d.json").read_text())["differences"]) == 8


def test_the_test_split_gives_files_and_their_check_alone(model_path, cirr, tmp_path, capsys):
    command = ["evaluate", "run", "--model", model_path, "--benchmark", "cirr", "--data", cirr, "--split", "test1"]
    assert "--submission" in failing(command, capsys)
    useless = [*command, "--submission", str(tmp_path / "none"), "--output", "x.json", "--html", "x.html"]
    assert "--output, --html" in failing(useless, capsys)
    assert not (tmp_path / "none").exists()
    assert main([*command, "--submission", str(tmp_path)]) == 0
    assert "cirr_test1_recall_subset.json" in capsys.readouterr().out
    check = ["evaluate", "score", "--benchmark", "cirr", "--data", cirr, "--split", "test1"]
    assert main([*check, str(tmp_path / "cirr_test1_recall.json")]) == 0
    assert "8 queries with 50 ids each" in capsys.readouterr().out


def test_fashioniq_by_parts_with_an_image_missing(model_path, tmp_path, capsys):
    make_fashioniq(tmp_path)
    (tmp_path / "images" / "SHIRT7.png").unlink()
    command = ["evaluate", "run", "--model", model_path, "--benchmark", "fashioniq", "--data", str(tmp_path)]
    assert "such as" in failing(command, capsys) and main([*command, "--allow-missing"]) == 0
    table = capsys.readouterr().out
    assert "1 images are missing" in table and "; 0 queries were left out" in table
    assert [word in table for word in ("val, dress", "val, shirt", "val, toptee", "val, average")] == [True] * 4
    assert main([*command, "--part", "dress"]) == 0 and "val, average" not in capsys.readouterr().out


def test_errors_are_one_line(model_path, cirr, tmp_path, capsys):
    assert "'mscoco'" in failing(["evaluate", "run", "--model", "m", "--benchmark", "mscoco", "--data", cirr], capsys)
    assert "/nowhere" in failing(
        ["evaluate", "run", "--model", "m", "--benchmark", "cirr", "--data", "/nowhere"], capsys
    )
    assert "a.json" in failing(["evaluate", "compare", str(tmp_path / "a.json"), "b.json"], capsys)
    command = ["evaluate", "run", "--model", "./nowhere", "--benchmark", "cirr", "--data", cirr]
    assert "'./nowhere'" in failing(command, capsys)
    part = [*command, "--part", "dress"]
    assert "['dress']" in failing(part, capsys)
    predictions = ["evaluate", "score", "--benchmark", "cirr", "--data", cirr]
    assert "none.json" in failing([*predictions, str(tmp_path / "none.json")], capsys)


def test_json_goes_to_stdout_alone_for_every_subcommand(model_path, cirr, tmp_path, capsys):
    results, files = tmp_path / "results.json", tmp_path / "files"
    command = ["evaluate", "run", "--model", model_path, "--benchmark", "cirr", "--data", cirr, "--json"]
    assert main([*command, "--methods", "mapper", "slerp", "--output", str(results), "--submission", str(files)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["results"] == json.loads(results.read_text())["results"] and len(printed["submission"]) == 2
    assert main(["evaluate", "score", *printed["submission"], "--benchmark", "cirr", "--data", cirr, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"]["predictions"] == printed["results"]["mapper"]
    assert main(["evaluate", "compare", f"{results}:mapper", f"{results}:slerp", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["differences"]) == 8
