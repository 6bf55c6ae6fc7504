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

from .checks import ComposedCheck, PictureCheck
from .config import SynCirConfig
from .dataset import refilter
from .filter import FilterResult, filter_triplets, language_similarity
from .llm.answers import Answer, AnswerStore, Failure, Generator, Question, answer_prompts
from .llm.chat import BatchGenerator, ChatGenerator
from .llm.local import LocalGenerator
from .pairs import find_image_groups, find_image_pairs, pairs_of_groups
from .query_texts import FEW_SHOT_PROMPT, PAPER_PROMPT, VISION_PROMPT, Prompt, parse_query_text
from .run import Estimate, SynCirModels, SynCirRun, build_triplets

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
