"""SynCir: pseudo triplets from unlabeled images (paper: Pseudo Triplet Generation).

pairs.py        groups of similar images, and the pairs taken from each
query_texts.py  what an LLM is asked, and which part of its answer is used
filter.py       the filter in language space, and the reasons for which a triplet is dropped
checks.py       further checks by the images
scoring.py      scores of many triplets, resumable
stages.py       the stages of a run: features, pairs, captions, query texts, scores
run.py          all of it in order, resumable
provenance.py   what the result was made from
models.py       SynCir's models, given or loaded by name
dataset.py      the dataset's folder; report.py: its card and report page
llm/            endpoints, Batch API, local models, stored answers

Public names are imported on first use, so that reading the settings does not load torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

_MODULE_OF_NAME = {
    "ComposedCheck": "checks",
    "PictureCheck": "checks",
    "SynCirConfig": "config",
    "refilter": "dataset",
    "FilterResult": "filter",
    "Reason": "filter",
    "filter_triplets": "filter",
    "language_similarity": "filter",
    "Answer": "llm.answers",
    "AnswerStore": "llm.answers",
    "Failure": "llm.answers",
    "Generator": "llm.answers",
    "Question": "llm.answers",
    "answer_prompts": "llm.answers",
    "BatchGenerator": "llm.chat",
    "ChatGenerator": "llm.chat",
    "LocalGenerator": "llm.local",
    "SynCirModels": "models",
    "find_image_groups": "pairs",
    "find_image_pairs": "pairs",
    "pairs_of_groups": "pairs",
    "FEW_SHOT_PROMPT": "query_texts",
    "PAPER_PROMPT": "query_texts",
    "VISION_PROMPT": "query_texts",
    "Prompt": "query_texts",
    "parse_query_text": "query_texts",
    "Estimate": "run",
    "SynCirRun": "run",
    "build_triplets": "run",
}

__all__ = [
    "FEW_SHOT_PROMPT",
    "PAPER_PROMPT",
    "VISION_PROMPT",
    "Answer",
    "AnswerStore",
    "BatchGenerator",
    "ChatGenerator",
    "ComposedCheck",
    "Estimate",
    "Failure",
    "FilterResult",
    "Generator",
    "LocalGenerator",
    "PictureCheck",
    "Prompt",
    "Question",
    "Reason",
    "SynCirConfig",
    "SynCirModels",
    "SynCirRun",
    "answer_prompts",
    "build_triplets",
    "filter_triplets",
    "find_image_groups",
    "find_image_pairs",
    "language_similarity",
    "pairs_of_groups",
    "parse_query_text",
    "refilter",
]

if TYPE_CHECKING:
    from .checks import ComposedCheck, PictureCheck
    from .config import SynCirConfig
    from .dataset import refilter
    from .filter import FilterResult, Reason, filter_triplets, language_similarity
    from .llm.answers import Answer, AnswerStore, Failure, Generator, Question, answer_prompts
    from .llm.chat import BatchGenerator, ChatGenerator
    from .llm.local import LocalGenerator
    from .models import SynCirModels
    from .pairs import find_image_groups, find_image_pairs, pairs_of_groups
    from .query_texts import FEW_SHOT_PROMPT, PAPER_PROMPT, VISION_PROMPT, Prompt, parse_query_text
    from .run import Estimate, SynCirRun, build_triplets


def __getattr__(name: str) -> Any:
    """Import a public name's module when the name is first asked for (PEP 562)."""
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF_NAME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
