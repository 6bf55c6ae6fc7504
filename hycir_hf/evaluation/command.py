"""What `hycir evaluate` does, apart from reading its arguments."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..retrieval.queries import MAPPER, TRAINING_FREE
from .benchmarks import BenchmarkData, read_benchmark
from .evaluate import Evaluation, evaluate_benchmark
from .methods import Method
from .report import difference_table, render_report, render_table, result_tables
from .results import EvaluationResults, compare_results, main_method
from .submissions import read_rankings, score_rankings, write_submission

RIVAL = "image + text"

LoadMethod = Callable[[Any, Any, BenchmarkData], Method]
"""Model, processor and data -> a method."""


def run_evaluation(
    load_model: Callable[[], tuple[Any, Any]],
    model_name: str,
    benchmark: str,
    directory: str | os.PathLike,
    split: str | None = None,
    *,
    part_names: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    further_methods: Mapping[str, LoadMethod] | None = None,
    pair: Sequence[str] | None = None,
    submission: str | os.PathLike | None = None,
    html: str | os.PathLike | None = None,
    json_path: str | os.PathLike | None = None,
    allow_missing: bool = False,
) -> list[str]:
    """Evaluate a model on a benchmark.

    Args:
        load_model (`Callable`): Gives model and processor; called once the data have been read.
        model_name (`str`): Kept in the results.
        benchmark (`str`): A key of `BENCHMARKS`.
        directory (`str` or `Path`): The benchmark's folder.
        split (`str`, *optional*): By default "val".
        part_names (`Sequence[str]`, *optional*): Only these parts.
        methods (`Sequence[str]`, *optional*): By default the mapper, the training-free ones and the further ones.
        further_methods (`Mapping[str, LoadMethod]`, *optional*): Name -> how to load a method: a trained combiner,
            CIReVL's way.
        pair (`Sequence[str]`, *optional*): The two methods whose wins and losses the page shows; by default the main
            one and "image + text".
        submission (`str` or `Path`, *optional*): Folder for the test server's files, of the main method's rankings:
            the mapper's, or else the last one's.
        html (`str` or `Path`, *optional*): Page to write.
        json_path (`str` or `Path`, *optional*): Results to write.
        allow_missing (`bool`): Go on without the images that are not there.

    Returns:
        `list[str]`: What to print.

    Raises:
        ValueError: If nothing could come of it: a split without answers and no `submission`, a page of one method, or
            an unknown method.
    """
    further_methods = further_methods or {}
    names = _check_methods(methods, [*TRAINING_FREE, MAPPER, *further_methods])
    main = main_method(names)
    pair = _check_methods(
        pair or [main, next((one for one in (RIVAL, *names) if one in names and one != main), main)], names
    )
    if html is not None and len(pair) != 2:
        raise ValueError(
            f"Expected two methods for --html, whose wins and losses it shows, but found {pair}. Add one to --methods, "
            "or name two with --pair."
        )
    data = read_benchmark(benchmark, directory, split, part_names=part_names, allow_missing=allow_missing)
    needing_answers = [name for name, path in (("--json", json_path), ("--html", html)) if path is not None]
    if not data.has_targets and needing_answers:
        raise _unanswered(data, " and ".join(needing_answers))
    if not data.has_targets and submission is None:
        raise ValueError(
            f"Expected --submission DIR for {benchmark} {data.split}, whose answers only its test server knows. Add "
            "it, or evaluate the val split."
        )
    if submission is not None and (data.missing_ids or part_names):
        raise ValueError(
            "Expected all images and parts for a submission, but some are left out. The server wants every query."
        )
    model, processor = load_model()
    evaluation = evaluate_benchmark(
        model,
        processor,
        data,
        further_methods={name: load(model, processor, data) for name, load in further_methods.items() if name in names},
        methods=names,
        model_name=model_name,
    )
    lines = _missing_lines(data)
    if evaluation.results is not None:
        lines += _results_lines(evaluation.results, json_path)
    if submission is not None:
        paths = write_submission(data, *_rankings_by_query(data, evaluation, main), directory=submission)
        lines += [f"Submission, checked: {path}" for path in paths]
    if html is not None:
        _write(html, render_report(data, evaluation, *pair))
        lines.append(f"Page: {html}")
    return lines


def run_scoring(
    predictions: Sequence[str | os.PathLike],
    benchmark: str,
    directory: str | os.PathLike,
    split: str | None = None,
    *,
    json_path: str | os.PathLike | None = None,
) -> list[str]:
    """Score files of rankings without any model; where the answers are not known, check the files alone."""
    data = read_benchmark(benchmark, directory, split, with_images=False)
    if data.has_targets:
        return _results_lines(score_rankings(predictions, data), json_path)
    if json_path is not None:
        raise _unanswered(data, "--json")
    lines = []
    for path in predictions:
        kind, rankings = read_rankings(path, data)
        lines.append(f"{path}: as the server wants it, {len(rankings)} queries with {kind.length} ids each")
    return lines


def run_comparison(first: str, second: str, json_path: str | os.PathLike | None = None) -> list[str]:
    """Compare two results, each given as PATH or PATH:METHOD (by default the mapper, or else the last method)."""
    sides = [_results_and_method(one) for one in (first, second)]
    (one, first_method), (two, second_method) = sides
    differences = compare_results(one, two, first_method, second_method)
    if json_path is not None:
        rows = [{**vars(each), "difference": vars(each.difference)} for each in differences]
        _write(json_path, json.dumps({"first": first, "second": second, "differences": rows}, indent=2) + "\n")
    names = [first_method, second_method]
    if first_method == second_method:
        names = [f"{place.removesuffix(f':{first_method}')}: {first_method}" for place in (first, second)]
    return [render_table(difference_table(differences, *names))]


def _unanswered(data: BenchmarkData, options: str) -> ValueError:
    return ValueError(
        f"Expected a split with answers for {options}, but those of {data.benchmark.name} {data.split} are its test "
        f"server's. Leave {options} out, or take the val split."
    )


def _check_methods(methods: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """The methods asked for, or all; each once."""
    unknown = [name for name in methods or () if name not in known]
    if unknown:
        raise ValueError(
            f"Expected methods of {list(known)}, but found {unknown}. Choose among them; a combiner needs --combiner, "
            "cirevl --captioner and --llm."
        )
    return list(dict.fromkeys(methods or known))


def _results_lines(results: EvaluationResults, json_path: str | os.PathLike | None) -> list[str]:
    lines = [render_table(table) + "\n" for table in result_tables(results)]
    if json_path is not None:
        results.save(json_path)
        lines.append(f"Results: {json_path}")
    return lines


def _missing_lines(data: BenchmarkData) -> list[str]:
    if not data.missing_ids:
        return []
    return [
        f"{len(data.missing_ids)} images are missing; {data.num_dropped_queries} queries were left out with them. "
        "These figures are not comparable with others.\n"
    ]


def _rankings_by_query(data: BenchmarkData, evaluation: Evaluation, method: str) -> tuple[dict, dict | None]:
    """A method's rankings, and those of the subsets, by query id."""
    rankings: dict[str, list[str]] = {}
    subsets: dict[str, list[str]] = {}
    for part in data.parts:
        found = evaluation.rankings[method][part.name]
        rankings |= dict(zip(part.query_ids, found.ids, strict=True))
        subsets |= dict(zip(part.query_ids, found.subset_ids or (), strict=False))
    return rankings, subsets or None


def _results_and_method(place: str) -> tuple[EvaluationResults, str]:
    path, colon, method = place.rpartition(":")
    if not colon or Path(place).exists():
        path, method = place, ""
    results = EvaluationResults.load(path)
    return results, method or main_method(list(results.methods))


def _write(path: str | os.PathLike, text: str) -> None:
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text, encoding="utf-8", errors="backslashreplace")
