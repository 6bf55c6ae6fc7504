"""SynCir: pseudo triplets from unlabeled images (paper: Pseudo Triplet Generation).

pairs.py        groups of similar images, and the pairs taken from each
query_texts.py  what an LLM is asked, and which part of its answer is used
filter.py       the filter in language space, and the reasons for which a triplet is dropped
checks.py       further checks by the images
scoring.py      the stage of the scores
stages.py       the first stages of a run: features, pairs, captions
questions.py    the stage of the query texts
run.py          all of it in order, resumable
preview.py      a few triplets with all that led to them
provenance.py   what the result was made from
models.py       SynCir's models, given or loaded by name
dataset.py      the dataset's folder; report.py: its card and report page
llm/            endpoints, Batch API, local models, stored answers

Public names are imported on first use, so that reading the settings does not load torch.
"""

# ruff: noqa: F401 - __all__ is made from the table
import importlib
from typing import TYPE_CHECKING, Any

_NAMES = {
    "checks": ("ComposedCheck", "PictureCheck"),
    "config": ("SynCirConfig",),
    "dataset": ("refilter",),
    "filter": ("FilterResult", "Reason", "filter_triplets", "language_similarity"),
    "llm.answers": ("Answer", "AnswerStore", "Failure", "Generator", "Question", "answer_prompts"),
    "llm.batch": ("BatchGenerator",),
    "llm.chat": ("ChatGenerator",),
    "llm.local": ("LocalGenerator",),
    "launch": ("run_launched",),
    "models": ("SynCirModels", "load_captioner"),
    "pairs": ("find_image_groups", "find_image_pairs", "pairs_of_groups"),
    "query_texts": (
        "DETAILED_PROMPT",
        "FEW_SHOT_PROMPT",
        "PAPER_PROMPT",
        "VISION_PROMPT",
        "Prompt",
        "parse_query_text",
    ),
    "preview": ("preview_triplets",),
    "report": ("count_rows", "share_kept"),
    "run": ("Estimate", "SynCirRun", "build_triplets"),
}
_MODULE_OF_NAME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = list(_MODULE_OF_NAME)

if TYPE_CHECKING:
    from .checks import ComposedCheck, PictureCheck
    from .config import SynCirConfig
    from .dataset import refilter
    from .filter import FilterResult, Reason, filter_triplets, language_similarity
    from .launch import run_launched
    from .llm.answers import Answer, AnswerStore, Failure, Generator, Question, answer_prompts
    from .llm.batch import BatchGenerator
    from .llm.chat import ChatGenerator
    from .llm.local import LocalGenerator
    from .models import SynCirModels, load_captioner
    from .pairs import find_image_groups, find_image_pairs, pairs_of_groups
    from .preview import preview_triplets
    from .query_texts import DETAILED_PROMPT, FEW_SHOT_PROMPT, PAPER_PROMPT, VISION_PROMPT, Prompt, parse_query_text
    from .report import count_rows, share_kept
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
