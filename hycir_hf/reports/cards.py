"""Model cards from facts: the saved config, results JSON, and what only a person knows (data, licence).

The card's text is `model_card_template.md`; its figures come from `hycir evaluate --json` alone.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..names import is_hub_id

TEMPLATE = Path(__file__).with_name("model_card_template.md")
PIPELINE_TAG = "image-feature-extraction"  # the nearest of the Hub's tasks: it has none for composed image retrieval
LIBRARY = "transformers"
TASK = "composed-image-retrieval"
RESULTS = "results*.json"  # a model's files of results, as `hycir evaluate --json` writes them
RESULTS_FORMAT, RESULTS_VERSION = "hycir-evaluation", 1
METHOD = "mapper"
CONFIDENCE_LEVEL = 0.95


@dataclass(frozen=True)
class Figure:
    """A metric's mean and its 95% interval, as fractions in [0, 1]; shown in percent."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class BenchmarkResult:
    """What was reached on one part of a benchmark.

    Args:
        benchmark (`str`): For example "cirr".
        split (`str`): For example "val".
        part (`str`, *optional*): For example "dress", where the benchmark has several parts.
        methods (`Mapping[str, Mapping[str, Figure]]`): Method -> metric -> figure; `METHOD`, the model's own, and those
            that it is compared with.
    """

    benchmark: str
    split: str
    part: str | None
    methods: Mapping[str, Mapping[str, Figure]]

    @property
    def title(self) -> str:
        """Benchmark and part in words."""
        return self.benchmark if self.part is None else f"{self.benchmark}, {self.part.replace('_', ' ')}"


@dataclass(frozen=True)
class ModelCardFacts:
    """What a model card says.

    Args:
        repo_id (`str`): Hub id that the usage code loads.
        encoder_family (`str`): `model_type` of the frozen encoder.
        num_pseudo_tokens (`int`): K.
        prompt (`str`): The prompt template.
        base_model (`str`, *optional*): Hub id of the encoder.
        datasets (`Sequence[str]`): Hub ids of the training data.
        license (`str`, *optional*): Licence identifier of the Hub's list, such as "apache-2.0".
        training (`str`, *optional*): How the mapper was trained, in Markdown.
        results (`Sequence[BenchmarkResult]`): Figures for the tables and for `model-index`.
    """

    repo_id: str
    encoder_family: str
    num_pseudo_tokens: int
    prompt: str
    base_model: str | None = None
    datasets: Sequence[str] = ()
    license: str | None = None
    training: str | None = None
    results: Sequence[BenchmarkResult] = field(default_factory=tuple)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike, repo_id: str, **facts: Any) -> "ModelCardFacts":
        """Take what a saved model's `config.json` and its results say; `facts` say the rest.

        Results are the files `results*.json` that `hycir evaluate --json` wrote; others of that name are left alone.

        Raises:
            ValueError: If the folder holds no HyCIR model, or its results have another shape.
        """
        folder = Path(folder)
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if config.get("model_type") != "hycir":
            raise ValueError(f"Expected a HyCIR model in {folder}, but found none. Give the folder it was saved in.")
        missing = [name for name in ("encoder_config", "num_pseudo_tokens", "prompt") if name not in config]
        if missing:
            raise ValueError(f"Expected a whole config in {path}, but it lacks {missing}. Save the model anew.")
        name = config.get("encoder_name_or_path")
        facts.setdefault("base_model", name if is_hub_id(name) else None)
        paths = [path for path in sorted(folder.glob(RESULTS)) if _is_evaluation(_read_json(path))]
        facts.setdefault("results", [result for path in paths for result in read_results(path)])
        return cls(
            repo_id,
            encoder_family=config["encoder_config"]["model_type"],
            num_pseudo_tokens=config["num_pseudo_tokens"],
            prompt=config["prompt"],
            **facts,
        )

    def render(self) -> str:
        """Render the README.md, metadata included."""
        data = ModelCardData(
            language="en",
            license=self.license,
            library_name=LIBRARY,
            pipeline_tag=PIPELINE_TAG,
            tags=[TASK, "hycir"],
            base_model=self.base_model,
            datasets=list(self.datasets) or None,
            model_name=self.repo_id.rpartition("/")[2],
            eval_results=_eval_results(self.results) or None,
        )
        evaluation = f"\n{_evaluation(self.results)}" if self.results else ""
        card = ModelCard.from_template(data, template_path=str(TEMPLATE), facts=self, evaluation=evaluation)
        return str(card).rstrip() + "\n"


def read_results(path: str | os.PathLike) -> list[BenchmarkResult]:
    """Read the file that `hycir evaluate --json` wrote: one result for each part of the benchmark.

    Raises:
        ValueError: If it is another file, of a newer format, or holds no figures of the mapper.
    """
    content = _read_json(path)
    if not _is_evaluation(content):
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"Expected evaluation results in {path}, but found {found}. Write it with `hycir evaluate --json`."
        )
    missing = [name for name in ("format_version", "benchmark", "split", "results") if name not in content]
    if missing:
        raise ValueError(f"Expected evaluation results in {path}, but they lack {missing}. Evaluate again with --json.")
    if content["format_version"] > RESULTS_VERSION:
        raise ValueError(
            f"Expected results of format {RESULTS_VERSION} or older in {path}, but found {content['format_version']}. "
            "Update hycir_hf."
        )
    methods = content["results"]
    if METHOD not in methods:
        raise ValueError(
            f"Expected figures of the {METHOD!r} in {path}, but found those of {list(methods)}. Evaluate the model "
            "itself: `hycir evaluate --model`."
        )
    parts = list(methods[METHOD])
    return [
        BenchmarkResult(
            content["benchmark"],
            content["split"],
            part if len(parts) > 1 else None,
            {
                method: {metric: Figure(**figure) for metric, figure in found[part].items()}
                for method, found in methods.items()
                if part in found
            },
        )
        for part in parts
    ]


def complete_card(text: str, facts: ModelCardFacts) -> str:
    """Fill in what a card lacks: metadata, the id that its code loads, figures. What it says itself stays.

    `hycir train` writes its card before there is an id: the code there loads `folder`, and the library is this one,
    which the Hub does not know.

    Raises:
        ValueError: If the card's metadata cannot be read.
    """
    card = read_card(text)
    data: Any = card.data
    data.library_name = LIBRARY if data.library_name in (None, "hycir_hf") else data.library_name
    data.pipeline_tag = data.pipeline_tag or PIPELINE_TAG
    data.base_model = data.base_model or facts.base_model
    data.license = facts.license or data.license
    data.datasets = list(dict.fromkeys([*(data.datasets or []), *facts.datasets])) or None
    if not re.search(r"^ *folder *=", card.text, re.MULTILINE):
        card.text = card.text.replace("from_pretrained(folder)", f'from_pretrained("{facts.repo_id}")')
    return add_results(str(card), facts.results, facts.repo_id.rpartition("/")[2])


def read_card(text: str, card_class: Any = ModelCard) -> Any:
    """Read a card of `huggingface_hub`.

    Raises:
        ValueError: If its metadata cannot be read.
    """
    if not text.lstrip().startswith("---"):
        text = f"---\n\n---\n\n{text}"  # huggingface_hub warns of a card without metadata
    try:
        return card_class(text)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(
            f"Expected a README.md with the Hub's metadata, but reading them failed: {error}. Repair what stands "
            "between its '---' lines."
        ) from error


def add_results(text: str, results: Sequence[BenchmarkResult], model_name: str) -> str:
    """Add figures to a card: `model-index` and a section. A card that has a `model-index` stays as it is."""
    card = ModelCard(text, ignore_metadata_errors=True)
    data: Any = card.data
    if data.eval_results or not results:
        return text
    data.model_name, data.eval_results = model_name, _eval_results(results)
    return f"{str(card).rstrip()}\n\n{_evaluation(results)}"


def _read_json(path: str | os.PathLike) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"Expected JSON in {path}, but found: {error}. Evaluate again with --json.") from error


def _is_evaluation(content: Any) -> bool:
    return isinstance(content, dict) and content.get("format") == RESULTS_FORMAT


def _eval_results(results: Sequence[BenchmarkResult]) -> list[EvalResult]:
    """The Hub's `model-index` entries of the model's own method, in percent; intervals as the metric's arguments."""
    return [
        EvalResult(
            task_type=TASK,
            task_name="Composed image retrieval",
            dataset_type=result.benchmark,
            dataset_name=result.title,
            dataset_config=result.part,
            dataset_split=result.split,
            metric_type=name,
            metric_name=name,
            metric_value=_percent(figure.mean),
            metric_args={
                "confidence_level": CONFIDENCE_LEVEL,
                "low": _percent(figure.low),
                "high": _percent(figure.high),
            },
        )
        for result in results
        for name, figure in result.methods[METHOD].items()
    ]


def _evaluation(results: Sequence[BenchmarkResult]) -> str:
    """The card's section: a table for each result, metrics by methods."""
    lines = [
        "## Evaluation",
        "",
        f"In percent, with 95% intervals. `{METHOD}` is this model; the other columns need no training and have the "
        "same encoder.",
    ]
    for result in results:
        lines += ["", f"{result.title}, {result.split}:", "", f"| | {' | '.join(result.methods)} |"]
        lines.append("|---" * (1 + len(result.methods)) + "|")
        for metric in result.methods[METHOD]:
            figures = (found[metric] for found in result.methods.values())
            cells = (f"{100 * f.mean:.1f} ({100 * f.low:.1f} to {100 * f.high:.1f})" for f in figures)
            lines.append(f"| {metric} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _percent(fraction: float) -> float:
    return round(100 * fraction, 2)
