"""SynCir: pseudo triplets from unlabeled images (paper: Pseudo Triplet Generation).

pairs.py       subgroups of similar images, and the pairs taken from each
query_text.py  what an LLM is asked, and what of its answer can be used
chat.py        asking by an OpenAI-compatible endpoint or its Batch API
local.py       asking a `transformers` model in this process
answers.py     questions and answers on disk
filtering.py   the filter in language space
checks.py      further checks by the pictures
pipeline.py    all of it, resumable
output.py      the data set's folder; report.py: its card and report page
"""

# ruff: noqa: F401 (what type checkers see is the table below)

import importlib
from typing import TYPE_CHECKING, Any

_NAMES_OF_MODULE = {
    "checks": ("ComposedCheck", "PictureCheck"),
    "config": ("SynCirConfig",),
    "dataset": ("refilter",),
    "filter": ("FilterResult", "filter_triplets", "language_similarity"),
    "launch": ("run_launched",),
    "llm.answers": ("Answer", "AnswerStore", "Failure", "Generator", "Question", "answer_prompts"),
    "llm.chat": ("BatchGenerator", "ChatGenerator"),
    "llm.local": ("LocalGenerator",),
    "models": ("load_captioner",),
    "pairs": ("find_image_groups", "find_image_pairs", "pairs_of_groups"),
    "query_texts": ("FEW_SHOT_PROMPT", "PAPER_PROMPT", "VISION_PROMPT", "Prompt", "parse_query_text"),
    "report": ("count_rows", "share_kept"),
    "run": ("Estimate", "SynCirModels", "SynCirRun", "build_triplets"),
}
_MODULE_OF_NAME = {name: module for module, names in _NAMES_OF_MODULE.items() for name in names}

__all__ = [*_MODULE_OF_NAME]

if TYPE_CHECKING:
    from .checks import ComposedCheck, PictureCheck
    from .config import SynCirConfig
    from .dataset import refilter
    from .filter import FilterResult, filter_triplets, language_similarity
    from .launch import run_launched
    from .llm.answers import Answer, AnswerStore, Failure, Generator, Question, answer_prompts
    from .llm.chat import BatchGenerator, ChatGenerator
    from .llm.local import LocalGenerator
    from .models import load_captioner
    from .pairs import find_image_groups, find_image_pairs, pairs_of_groups
    from .query_texts import FEW_SHOT_PROMPT, PAPER_PROMPT, VISION_PROMPT, Prompt, parse_query_text
    from .report import count_rows, share_kept
    from .run import Estimate, SynCirModels, SynCirRun, build_triplets


def __getattr__(name: str) -> Any:
    """Import a name's module when it is first asked for: the settings alone need no torch."""
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF_NAME[name]}", __name__), name)
