"""Model cards from facts: the saved config, results JSON, and what only a person knows (data, licence).

The card's text is `model_card_template.md`; nothing in it is typed by hand twice.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

TEMPLATE = Path(__file__).with_name("model_card_template.md")
PIPELINE_TAG = "image-feature-extraction"  # the nearest of the Hub's tasks: it has none for composed image retrieval
TASK = "composed-image-retrieval"


@dataclass(frozen=True)
class BenchmarkResult:
    """One benchmark's metrics.

    Args:
        benchmark (`str`): For example "cirr".
        split (`str`): For example "val".
        metrics (`Mapping[str, float]`): Fractions in [0, 1]; shown in percent.
    """

    benchmark: str
    split: str
    metrics: Mapping[str, float]


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
        """Take what a saved model's `config.json` and `results.json` say; `facts` say the rest.

        Raises:
            ValueError: If the folder holds no HyCIR model, or its results have another shape.
        """
        folder = Path(folder)
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if config.get("model_type") != "hycir":
            raise ValueError(f"Expected a HyCIR model in {folder}, but found none. Give the folder it was saved in.")
        name = config.get("encoder_name_or_path")
        facts.setdefault("base_model", name if is_hub_id(name) else None)
        if (folder / "results.json").is_file():
            facts.setdefault("results", read_results(folder / "results.json"))
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
            library_name="transformers",
            pipeline_tag=PIPELINE_TAG,
            tags=[TASK, "hycir"],
            base_model=self.base_model,
            datasets=list(self.datasets) or None,
            model_name=self.repo_id.rpartition("/")[2],
            eval_results=_eval_results(self.results) or None,
        )
        return str(ModelCard.from_template(data, template_path=str(TEMPLATE), facts=self)) + "\n"


def read_results(path: str | os.PathLike) -> list[BenchmarkResult]:
    """Read results JSON: one `{"benchmark", "split", "metrics": {name: fraction}}`, or a list of them.

    Raises:
        ValueError: If the file has another shape, or a metric is no finite number.
    """
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    results = []
    for record in content if isinstance(content, list) else [content]:
        metrics = record.get("metrics") if isinstance(record, dict) else None
        if not isinstance(metrics, dict) or not {"benchmark", "split"} <= set(record):
            found = sorted(record) if isinstance(record, dict) else type(record).__name__
            raise ValueError(
                f"Expected 'benchmark', 'split' and 'metrics' in {path}, but found {found}. Write it with "
                "`hycir evaluate`."
            )
        wrong = [name for name, value in metrics.items() if not _is_number(value)]
        if wrong:
            raise ValueError(f"Expected finite numbers as metrics in {path}, but {wrong} are none. Evaluate again.")
        results.append(BenchmarkResult(record["benchmark"], record["split"], metrics))
    return results


def is_hub_id(name: Any) -> bool:
    """Tell whether a name reads as a Hub id, "owner/name", and is no folder here."""
    if not isinstance(name, str) or name.count("/") != 1 or name.startswith((".", "/", "~")) or "\\" in name:
        return False
    return all(name.split("/")) and not Path(name).exists()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _eval_results(results: Sequence[BenchmarkResult]) -> list[EvalResult]:
    """The Hub's `model-index` entries, in percent."""
    return [
        EvalResult(
            task_type=TASK,
            task_name="Composed image retrieval",
            dataset_type=result.benchmark,
            dataset_name=result.benchmark,
            dataset_split=result.split,
            metric_type=name,
            metric_name=name,
            metric_value=round(100 * value, 2),
        )
        for result in results
        for name, value in result.metrics.items()
    ]
