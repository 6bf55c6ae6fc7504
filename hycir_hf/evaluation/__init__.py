"""Benchmarks: their specifications and files, the methods in one harness, metrics with intervals (paper: Experiments).

benchmarks.py   Benchmark specifications as data; BenchmarkData, what a split's files hold
reading.py      the official files of CIRR, CIRCO, FashionIQ, GeneCIS, Pic2Word's tasks and the emoji benchmark
pictures.py     regions of pictures, cut out when needed
methods.py      mapper, image only, text only, sum, slerp, combiners, CIReVL's way
evaluating.py   evaluate_benchmark: encode, compose, rank, score
scoring.py      rankings to each query's values, bootstrap intervals
results.py      EvaluationResults: JSON, paired comparison
submissions.py  the test servers' files: written, checked, scored
report.py       tables and the HTML page
"""

from .benchmarks import BENCHMARKS, Benchmark, BenchmarkData, BenchmarkPart, SubmissionFile
from .evaluate import Evaluation, PartRankings, evaluate_benchmark
from .methods import (
    CIREVL_PROMPT,
    MAPPER,
    TRAINING_FREE,
    Method,
    caption_features,
    combiner_method,
    compose,
    encode_images,
    encode_texts,
    language_method,
    part_features,
    query_features,
    slerp,
)
from .pictures import PictureRegion, open_picture
from .reading import EMOJI_VENDORS, AnnotationsMissingError, read_benchmark
from .report import difference_table, render_report, render_table, result_tables
from .results import Difference, EvaluationResults, compare_results, main_method
from .scoring import PartScores, mean_intervals, score_part
from .submissions import read_rankings, score_rankings, write_submission

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
    "Method",
    "PartRankings",
    "PartScores",
    "PictureRegion",
    "SubmissionFile",
    "caption_features",
    "combiner_method",
    "compare_results",
    "compose",
    "difference_table",
    "encode_images",
    "encode_texts",
    "evaluate_benchmark",
    "language_method",
    "main_method",
    "mean_intervals",
    "open_picture",
    "part_features",
    "query_features",
    "read_benchmark",
    "read_rankings",
    "render_report",
    "render_table",
    "result_tables",
    "score_part",
    "score_rankings",
    "slerp",
    "write_submission",
]
