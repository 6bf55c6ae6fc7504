"""`hycir evaluate`: benchmarks. Subcommands: run, score, compare."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Group, Parameter

import hycir_hf

from ..files import write_json, write_text
from ..settings import ParameterError
from .models import load_model
from .options import Common, Device, Model, OutputFile, Report, Switch

if TYPE_CHECKING:
    from ..evaluation import BenchmarkData, Evaluation, EvaluationResults, Method

    LoadMethod = Callable[[Any, Any, BenchmarkData], Method]

RIVAL = "image + text"
TABLE = "table"
_ANSWERS, _FEATURES = ".cache/cirevl", ".cache/features"

Benchmark = Annotated[str, Parameter(alias="-b")]
DataFolder = Annotated[str | None, Parameter(alias="-d")]
ResultsFile = Annotated[OutputFile, Parameter(alias="-o")]

app = App(
    name="evaluate",
    help_epilogue="""\
Examples:
  hycir evaluate run --model MODEL --benchmark cirr --data cirr_dataset \\
      --output results.json
  hycir evaluate score recall.json --benchmark cirr --data cirr_dataset
  hycir evaluate compare results.json 'results.json:image + text'""",
)


@Parameter(name="*", group=Group("Options of the method cirevl", sort_key=100))
@dataclass
class Cirevl:
    """How CIReVL's way describes the target: a captioner and an LLM."""

    captioner: Annotated[str | None, Parameter(help="Captioning model: folder or Hub id.")] = None
    llm: Annotated[
        str | None,
        Parameter(help="LLM: folder or Hub id, or its name at the endpoint of --base-url."),
    ] = None
    base_url: Annotated[
        str | None, Parameter(help="OpenAI-compatible endpoint. By default the LLM runs in this process.")
    ] = None
    llm_prompt: Annotated[str | None, Parameter(help="Text file with {caption} and {text}: what the LLM is asked.")] = (
        None
    )
    answers: Annotated[
        str | None, Parameter(help=f"Folder where the LLM's answers are kept. [default: {_ANSWERS}]")
    ] = None

    def __post_init__(self) -> None:
        is_whole = self.captioner and self.llm
        if any(vars(self).values()) and not is_whole:
            raise ParameterError("The method cirevl needs both captioner and llm.", "captioner", "llm")


@Parameter(name="*", group=Group("Options of --benchmark table", sort_key=90))
@dataclass
class Table:
    """Your own benchmark: its queries and its images."""

    queries: Annotated[
        str | None,
        Parameter(
            help="Table with the columns reference_id, query_text, target_ids; optional: query_id, group, subset_ids, "
            "negative_ids, part. A .csv, .tsv, .jsonl or .parquet file."
        ),
    ] = None
    images: Annotated[
        str | None,
        Parameter(help="The gallery: folder of images, folder of `hycir index`, or PATH[:CONFIG] of a dataset."),
    ] = None
    metric: Annotated[
        Literal["R", "mAP", "share"] | None,
        Parameter(help="R (a target is among the first K), mAP, or share of all targets. By default R."),
    ] = None
    ranks: Annotated[
        list[int] | None,
        Parameter(consume_multiple=True, help="The K of the metric. By default 1 5 10 50, if there are enough images."),
    ] = None
    keep_reference: Annotated[Switch, Parameter(help="Keep the reference images in the rankings.")] = False


@app.command(
    help_epilogue="""\
Examples:
  hycir evaluate run --model MODEL --benchmark cirr --data cirr_dataset \\
      --output results.json --html report.html
  hycir evaluate run --model MODEL --benchmark table --queries queries.csv \\
      --images photos
  hycir evaluate run --model MODEL --benchmark circo --data CIRCO --split test \\
      --submission files
  hycir evaluate run --model MODEL --benchmark cirr --data cirr_dataset \\
      --methods mapper cirevl --llm NAME --base-url http://127.0.0.1:8000/v1 \\
      --captioner Salesforce/blip-image-captioning-base""",
    sort_key=1,
)
def run(
    *,
    model: Model,
    benchmark: Benchmark,
    data: DataFolder = None,
    split: str | None = None,
    part: list[str] | None = None,
    methods: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    combiner: str | None = None,
    pair: tuple[str, str] | None = None,
    submission: str | None = None,
    html: OutputFile = None,
    output: ResultsFile = None,
    features: Annotated[str | None, Parameter(metavar="FOLDER")] = None,
    allow_missing: Switch = False,
    table: Table | None = None,
    cirevl: Cirevl | None = None,
    device: Device = None,
    common: Common | None = None,
) -> Report:
    """Evaluate a model on a benchmark, with 95% intervals, next to methods that need no training.

    Args:
        model: HyCIR model: folder or Hub id.
        benchmark: table (your own), cirr, circo, fashioniq (also -union, -joined), genecis, coco, imagenet or emoji.
        data: The benchmark's official folder.
        split: By default val. The test splits: test1 of cirr, test of circo and emoji.
        part: Only this part of the benchmark, such as dress. Repeatable.
        methods: Any of 'image only', 'text only', 'image + text', slerp, mapper, combiner, cirevl. By default all that
            need no further options.
        combiner: Trained combiner (objective combiner), for the method combiner.
        pair: Two methods whose wins and losses the page shows.
        submission: Write the checked files of rankings, as the benchmark's test server takes them, to this folder.
        html: Write a page with tables, wins and losses to this file.
        output: Write the results, with every query's values, to this JSON file.
        features: Keep the images' features in this folder, so that they are made once. By default .cache/features.
        allow_missing: Evaluate without the images that are missing or broken. The figures are then not comparable.
    """
    further = _further_methods(combiner, cirevl or Cirevl())
    evaluation = hycir_hf.evaluation
    names = _checked_methods(methods, [*evaluation.TRAINING_FREE, evaluation.MAPPER, *further])
    shown_pair = _pair(pair, names, html)
    if benchmark == TABLE and (table is None or table.images is None):
        raise ParameterError("The benchmark table needs queries and images.", "queries", "images")
    read = _read(benchmark, data, table, split, part_names=part, allow_missing=allow_missing)
    _check_purpose(read, {"output": output, "html": html}, submission, part)
    loaded = load_model(model, device)
    found = evaluation.evaluate_benchmark(
        *loaded,
        read,
        further_methods={name: load(*loaded, read) for name, load in further.items() if name in names},
        methods=names,
        features_directory=_features_folder(features, benchmark, str(table.images if table else data)),
        model_name=model,
        allow_missing=allow_missing,
    )
    read = found.data
    _check_purpose(read, {}, submission, part)
    report = _results_report(found.results, output) if found.results else Report({"benchmark": benchmark}, [])
    if read.missing_ids:
        report.lines.insert(0, _missing_line(read))
    if submission is not None:
        rankings = _rankings_by_query(read, found, evaluation.main_method(names))
        paths = [str(path) for path in evaluation.write_submission(read, *rankings, directory=submission)]
        report.lines += [f"Submission, checked: {path}" for path in paths]
        report.values["submission"] = paths
    if html is not None:
        write_text(html, evaluation.render_report(read, found, *shown_pair))
        report.lines.append(f"Page: {html}")
    return report


@app.command(
    help_epilogue="""\
Examples:
  hycir evaluate score recall.json --benchmark cirr --data cirr_dataset
  hycir evaluate score rankings.json --benchmark table --queries queries.csv""",
    sort_key=2,
)
def score(
    files: list[str],
    /,
    *,
    benchmark: Benchmark,
    data: DataFolder = None,
    split: str | None = None,
    output: ResultsFile = None,
    table: Table | None = None,
    common: Common | None = None,
) -> Report:
    """Score any system's files of rankings, without a model. Files for a test server are checked.

    Args:
        files: Rankings in the format of the benchmark's test server, or of `hycir evaluate run --submission`.
        benchmark: table (your own), cirr, circo, fashioniq (also -union, -joined), genecis, coco, imagenet or emoji.
        data: The benchmark's official folder.
        split: By default val. The test splits: test1 of cirr, test of circo and emoji.
        output: Write the results, with every query's values, to this JSON file.
    """
    evaluation = hycir_hf.evaluation
    read = _read(benchmark, data, table, split, with_images=False)
    if read.has_targets:
        return _results_report(evaluation.score_rankings(files, read), output)
    _check_purpose(read, {"output": output}, "check", None)
    checked = {path: evaluation.read_rankings(path, read) for path in files}
    lines = [
        f"{path}: in the server's format, {len(rankings)} queries with {kind.length} ids each"
        for path, (kind, rankings) in checked.items()
    ]
    queries = {path: len(rankings) for path, (_, rankings) in checked.items()}
    return Report({"benchmark": benchmark, "split": read.split, "queries": queries}, lines)


@app.command(
    help_epilogue="""\
Examples:
  hycir evaluate compare mine.json theirs.json
  hycir evaluate compare results.json:mapper 'results.json:image + text'""",
    sort_key=3,
)
def compare(first: str, second: str, /, *, output: ResultsFile = None, common: Common | None = None) -> Report:
    """Compare two results query by query: differences with 95% intervals, wins and losses.

    Args:
        first: Results file, as PATH or PATH:METHOD. By default the mapper, or else the last method.
        second: The same, for the other side.
        output: Write the differences to this JSON file.
    """
    (one, first_method), (two, second_method) = (_results_and_method(place) for place in (first, second))
    differences = hycir_hf.evaluation.compare_results(one, two, first_method, second_method)
    rows = [{**vars(each), "difference": vars(each.difference)} for each in differences]
    values = {"first": first, "second": second, "differences": rows}
    if output is not None:
        write_json(output, values)
    names = [first_method, second_method]
    if first_method == second_method:
        names = [f"{place.removesuffix(f':{first_method}')}: {first_method}" for place in (first, second)]
    table = hycir_hf.evaluation.difference_table(differences, *names)
    return Report(values, [hycir_hf.evaluation.render_table(table)])


def _read(
    benchmark: str, data: str | None, table: Table | None, split: str | None, with_images: bool = True, **options: Any
) -> "BenchmarkData":
    """Read a benchmark's official folder, or your own table."""
    if benchmark != TABLE:
        given = [name for name, value in vars(table or Table()).items() if value]
        if given:
            raise ParameterError(f"{', '.join(given)} belong to the benchmark table, not to {benchmark}.", *given)
        if data is None:
            raise ParameterError(f"The benchmark {benchmark} needs its official folder as data.", "data")
        return hycir_hf.evaluation.read_benchmark(benchmark, data, split, with_images=with_images, **options)
    wrong = [name for name, value in (("data", data), ("split", split)) if value is not None]
    if wrong:
        raise ParameterError(f"The benchmark table has no {' and no '.join(wrong)}. Leave it out.", *wrong)
    if table is None or table.queries is None:
        raise ParameterError("The benchmark table needs its queries.", "queries")
    return hycir_hf.evaluation.read_table(
        table.queries,
        table.images,
        metric=table.metric or "R",
        ranks=table.ranks,
        leaves_reference_out=not table.keep_reference,
        **options,
    )


def _features_folder(given: str | None, benchmark: str, data: str) -> Path:
    """Where a benchmark's features are kept: apart for each folder of images, whose ids may be alike."""
    digest = hashlib.sha256(str(Path(data).resolve()).encode()).hexdigest()[:8]
    return Path(given or _FEATURES) / f"{benchmark.partition('-')[0]}-{digest}"


def _further_methods(combiner: str | None, cirevl: Cirevl) -> "Mapping[str, LoadMethod]":
    """How to load the methods that need a model of their own, of those whose options were given."""
    found: dict[str, LoadMethod] = {}
    if combiner:
        found["combiner"] = lambda model, processor, data: _load_combiner(combiner, model, processor)
    if cirevl.llm:
        found["cirevl"] = lambda model, processor, data: _load_cirevl(cirevl, model, processor, data)
    return found


def _load_combiner(path: str, model: Any, processor: Any) -> "Method":
    head = hycir_hf.training.CombinerHead.from_pretrained(path).eval().to(model.device)
    if head.feature_size != model.config.feature_size:
        raise ValueError(
            f"The combiner in {path} has the width {head.feature_size}, but the model's is "
            f"{model.config.feature_size}. Give the combiner that was trained on this encoder."
        )
    return hycir_hf.evaluation.combiner_method(model, processor, head)


def _load_cirevl(options: Cirevl, model: Any, processor: Any, data: "BenchmarkData") -> "Method":
    syncir, device = hycir_hf.syncir, str(model.device)
    if options.base_url:
        generator = syncir.ChatGenerator(options.llm, options.base_url, temperature=0.0, max_tokens=60)
    else:
        generator = syncir.LocalGenerator.from_pretrained(options.llm, device, max_new_tokens=60)
    answers = Path(options.answers or _ANSWERS)
    own_prompt = Path(options.llm_prompt).read_text(encoding="utf-8") if options.llm_prompt else None
    return hycir_hf.evaluation.language_method(
        model,
        processor,
        data.images,
        syncir.load_captioner(options.captioner, device),
        lambda prompts: syncir.answer_prompts(generator, prompts, answers),
        own_prompt or hycir_hf.evaluation.CIREVL_PROMPT,
    )


def _checked_methods(methods: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """The methods that were asked for, or all; each once."""
    unknown = [name for name in methods or () if name not in known]
    if unknown:
        raise ParameterError(
            f"Expected methods of {list(known)}, but found {unknown}. combiner needs --combiner; cirevl needs "
            "--captioner and --llm.",
            "methods",
        )
    return list(dict.fromkeys(methods or known))


def _pair(pair: Sequence[str] | None, names: list[str], html: str | None) -> list[str]:
    """The two methods that the page compares: those given, or the main one and its rival."""
    main = hycir_hf.evaluation.main_method(names)
    others = [one for one in (RIVAL, *names) if one in names and one != main]
    chosen = _checked_methods(pair or [main, *others[:1]], names)
    if html is not None and len(chosen) != 2:
        raise ParameterError(f"The page compares two methods, but there is only {chosen}. Add one.", "methods", "pair")
    return chosen


def _check_purpose(
    data: "BenchmarkData", outputs: Mapping[str, str | None], submission: str | None, part: Sequence[str] | None
) -> None:
    """Refuse a run that could write nothing, before the model is loaded."""
    needing_answers = [name for name, path in outputs.items() if path is not None]
    place = f"{data.benchmark.name} {data.split}"
    if not data.has_targets and needing_answers:
        raise ParameterError(f"Only the test server knows the answers of {place}. Evaluate val.", *needing_answers)
    if not data.has_targets and submission is None:
        raise ParameterError(
            f"Only the test server knows the answers of {place}. Write files for it, or evaluate val.", "submission"
        )
    if submission is not None and (data.missing_ids or part):
        raise ParameterError("A submission needs all images and parts: the server wants every query.", "submission")


def _results_report(results: "EvaluationResults", output: str | None) -> Report:
    evaluation = hycir_hf.evaluation
    lines = [evaluation.render_table(table) + "\n" for table in evaluation.result_tables(results)]
    if output is not None:
        results.save(output)
        lines.append(f"Results: {output}")
    return Report(results.to_dict(), lines)


def _missing_line(data: "BenchmarkData") -> str:
    return (
        f"{len(data.missing_ids)} images are missing or broken; {data.num_dropped_queries} queries were left out with "
        "them. These figures are not comparable with others.\n"
    )


def _rankings_by_query(data: "BenchmarkData", evaluation: "Evaluation", method: str) -> tuple[dict, dict | None]:
    """A method's rankings, and those of the subsets, by query id."""
    rankings: dict[str, list[str]] = {}
    subsets: dict[str, list[str]] = {}
    for part in data.parts:
        found = evaluation.rankings[method][part.name]
        rankings |= dict(zip(part.query_ids, found.ids, strict=True))
        subsets |= dict(zip(part.query_ids, found.subset_ids or (), strict=False))
    return rankings, subsets or None


def _results_and_method(place: str) -> "tuple[EvaluationResults, str]":
    path, colon, method = place.rpartition(":")
    if not colon or Path(place).exists():
        path, method = place, ""
    results = hycir_hf.evaluation.EvaluationResults.load(path)
    return results, method or hycir_hf.evaluation.main_method(list(results.methods))
