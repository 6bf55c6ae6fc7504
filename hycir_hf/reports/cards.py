"""Cards from facts: what config, recipe and result files say, and what only a person knows (data, licence).

The Markdown is in `templates/`. Figures come from the files of `hycir evaluate run --output` alone.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import RepoCard

from ..files import read_record
from ..formats import EVALUATION
from ..metrics.intervals import CONFIDENCE_LEVEL, MAPPER, ResultsSummary
from ..names import is_hub_id
from .render import render

PIPELINE_TAG = "image-feature-extraction"  # the nearest of the Hub's tasks: it has none for composed image retrieval
LIBRARY = "transformers"
TASK = "composed-image-retrieval"
TAGS = [TASK, "hycir"]
RESULTS = "results*.json"  # a model's result files, as `hycir evaluate run --output` writes them
_CONFIG_KEYS = {"model_type": str, "encoder_config": dict, "num_pseudo_tokens": int, "prompt": str}


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
        license (`str`, *optional*): A licence identifier of the Hub's list, such as "apache-2.0".
        training (`str`, *optional*): How the mapper was trained, in Markdown.
        results (`Sequence[ResultsSummary]`): Figures for the tables and for `model-index`.
    """

    repo_id: str
    encoder_family: str
    num_pseudo_tokens: int
    prompt: str
    base_model: str | None = None
    datasets: Sequence[str] = ()
    license: str | None = None
    training: str | None = None
    results: Sequence[ResultsSummary] = ()

    @property
    def name(self) -> str:
        """The model's name: the repository's, without its owner."""
        return self.repo_id.rpartition("/")[2]

    @classmethod
    def from_folder(cls, folder: str | os.PathLike, repo_id: str, **facts: Any) -> "ModelCardFacts":
        """Read the facts of a saved model from its `config.json` and its result files.

        Args:
            folder (`str` or `Path`): The model's. Other files that match `results*.json` are left alone.
            repo_id (`str`): Hub id.
            facts: Further arguments of this class.

        Raises:
            FileNotFoundError: If the folder holds no config.
            ValueError: If it is no HyCIR model's, or a result file is damaged.
        """
        folder = Path(folder)
        path = folder / "config.json"
        config = read_record(path, _CONFIG_KEYS, remedy="Give the folder of a saved HyCIR model.")
        if config["model_type"] != "hycir":
            raise ValueError(f"Expected the model_type 'hycir' in {path}, but found {config['model_type']!r}.")
        name = config.get("encoder_name_or_path")
        return cls(
            repo_id,
            encoder_family=config["encoder_config"]["model_type"],
            num_pseudo_tokens=config["num_pseudo_tokens"],
            prompt=config["prompt"],
            **{
                "base_model": name if is_hub_id(name) else None,
                "results": [read_results(path) for path in sorted(folder.glob(RESULTS)) if EVALUATION.is_in(path)],
                **facts,
            },
        )

    def render(self) -> str:
        """Render the README.md with its metadata."""
        metadata = ModelCardData(
            language="en",
            license=self.license,
            library_name=LIBRARY,
            pipeline_tag=PIPELINE_TAG,
            tags=TAGS,
            base_model=self.base_model,
            datasets=list(self.datasets) or None,
            model_name=self.name,
            eval_results=_eval_results(self.results) or None,
        )
        return render("model_card.md", metadata=metadata.to_yaml(), facts=self, mapper=MAPPER)


def read_results(path: str | os.PathLike) -> ResultsSummary:
    """Read the figures that `hycir evaluate run --output` wrote for a model.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is another file, of a newer format, or holds no figures of the mapper.
    """
    results = ResultsSummary.load(path)
    if MAPPER not in results.methods:
        raise ValueError(
            f"Expected the method {MAPPER!r} in {path}, but found {list(results.methods)}. {EVALUATION.remedy}"
        )
    return results


def complete_card(text: str, facts: ModelCardFacts) -> str:
    """Add to a card what it lacks: metadata, the id that its code loads, figures. What the card itself says stays.

    `hycir train` writes a card before the model has an id: its code loads `folder`, and its `library_name` is
    "hycir_hf", which the Hub does not know.

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
    return add_results(str(card), facts)


def read_card(text: str, card_class: type[RepoCard] = ModelCard) -> RepoCard:
    """Read a card as `huggingface_hub`'s object.

    Raises:
        ValueError: If its metadata cannot be read.
    """
    if not text.lstrip().startswith("---"):
        text = f"---\n\n---\n\n{text}"  # huggingface_hub warns of a card without metadata
    try:
        return card_class(text)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(
            f"The metadata of README.md cannot be read: {error}. Correct the lines between its two '---'."
        ) from error


def add_results(text: str, facts: ModelCardFacts) -> str:
    """Add figures to a card: `model-index` and a section. A card that has a `model-index` stays as it is."""
    card = ModelCard(text, ignore_metadata_errors=True)
    data: Any = card.data
    if data.eval_results or not facts.results:
        return text
    data.model_name, data.eval_results = facts.name, _eval_results(facts.results)
    return f"{str(card).rstrip()}\n\n{render('evaluation.md', facts=facts, mapper=MAPPER)}"


def _eval_results(results: Sequence[ResultsSummary]) -> list[EvalResult]:
    """The Hub's `model-index` entries of the mapper, in percent; intervals are arguments of the metric."""
    return [
        EvalResult(
            task_type=TASK,
            task_name="Composed image retrieval",
            dataset_type=result.benchmark,
            dataset_name=result.title(part),
            dataset_config=part if result.has_parts else None,
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
        for part, figures in result.methods[MAPPER].items()
        for name, figure in figures.items()
    ]


def _percent(fraction: float) -> float:
    return round(100 * fraction, 2)
