"""Benchmarks, the methods in one harness, and metrics with intervals (paper: Experiments).

benchmarks/     one file each: specification, folder layout, reader and protocol
draft.py        a table of queries from pseudo triplets, for a person to correct
methods.py      combiners, CIReVL's way, and how a benchmark part is answered
evaluate.py     evaluate_benchmark: encode, compose, rank, score
scoring.py      from rankings to each query's values, with bootstrap intervals
results.py      EvaluationResults: JSON, paired comparison
submissions.py  the test servers' files: written, checked, scored
validation.py   your own benchmark, while a model is trained
report.py       what tables and page of an evaluation show
"""

from ..retrieval.queries import MAPPER, TRAINING_FREE, compose, encode_texts, query_features, slerp
from .benchmarks import (
    BENCHMARKS,
    EMOJI_VENDORS,
    AnnotationsMissingError,
    Benchmark,
    BenchmarkData,
    BenchmarkPart,
    ImageRegion,
    SubmissionFile,
    open_image,
    read_benchmark,
    read_table,
)
from .benchmarks.table import read_rows
from .draft import draft_queries, write_table
from .evaluate import Evaluation, PartRankings, evaluate_benchmark
from .methods import (
    CIREVL_PROMPT,
    Method,
    caption_features,
    combiner_method,
    encode_images,
    language_method,
    part_features,
)
from .report import difference_table, render_report, render_table, result_tables
from .results import Difference, EvaluationResults, compare_results, main_method
from .scoring import PartScores, mean_intervals, score_part
from .submissions import read_rankings, score_rankings, write_submission
from .validation import TableValidation

__all__ = [
    "BENCHMARKS",
    "CIREVL_PROMPT",
    "EMOJI_VENDORS",
    "MAPPER",
    "TRAINING_FREE",
    "AnnotationsMissingError",
    "Benchmark",
    "BenchmarkData",
    "BenchmarkPart",
    "Difference",
    "Evaluation",
    "EvaluationResults",
    "ImageRegion",
    "Method",
    "PartRankings",
    "PartScores",
    "SubmissionFile",
    "TableValidation",
    "caption_features",
    "combiner_method",
    "compare_results",
    "compose",
    "difference_table",
    "draft_queries",
    "encode_images",
    "encode_texts",
    "evaluate_benchmark",
    "language_method",
    "main_method",
    "mean_intervals",
    "open_image",
    "part_features",
    "query_features",
    "read_benchmark",
    "read_rankings",
    "read_rows",
    "read_table",
    "render_report",
    "render_table",
    "result_tables",
    "score_part",
    "score_rankings",
    "slerp",
    "write_submission",
    "write_table",
]
