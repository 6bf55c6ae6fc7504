"""The benchmarks, one file each: what it asks, its folder, its reader and its protocol.

A new benchmark is one file here and one line in `_MODULES`.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from ...settings import ParameterError, did_you_mean
from . import circo, cirr, coco, emoji, fashioniq, genecis, imagenet
from .annotations import AnnotationsMissingError
from .checks import check_data
from .emoji import EMOJI_VENDORS
from .missing import without_missing
from .table import read_table
from .types import (
    Benchmark,
    BenchmarkData,
    BenchmarkPart,
    ImageRegion,
    SourceImage,
    SubmissionFile,
    name_of,
    open_image,
    reference_ids_of,
)

_MODULES = (
    (cirr, (cirr.CIRR,)),
    (circo, (circo.CIRCO,)),
    (fashioniq, fashioniq.FASHIONIQ),
    (genecis, (genecis.GENECIS,)),
    (coco, (coco.COCO,)),
    (imagenet, (imagenet.IMAGENET,)),
    (emoji, (emoji.EMOJI,)),
)
BENCHMARKS = {benchmark.name: benchmark for _, benchmarks in _MODULES for benchmark in benchmarks}
"""Benchmark name -> specification."""
_READERS = {benchmark.name: module.read for module, benchmarks in _MODULES for benchmark in benchmarks}

__all__ = [
    "BENCHMARKS",
    "EMOJI_VENDORS",
    "AnnotationsMissingError",
    "Benchmark",
    "BenchmarkData",
    "BenchmarkPart",
    "ImageRegion",
    "SourceImage",
    "SubmissionFile",
    "check_data",
    "name_of",
    "open_image",
    "read_benchmark",
    "read_table",
    "reference_ids_of",
]


def read_benchmark(
    name: str,
    directory: str | os.PathLike,
    split: str | None = None,
    *,
    part_names: Sequence[str] | None = None,
    allow_missing: bool = False,
    with_images: bool = True,
) -> BenchmarkData:
    """Read a benchmark's split from its official files.

    Args:
        name (`str`): A key of `BENCHMARKS`.
        directory (`str` or `Path`): The benchmark's folder; each benchmark's file shows the layout.
        split (`str`, *optional*): By default the benchmark's first, "val".
        part_names (`Sequence[str]`, *optional*): Only these parts.
        allow_missing (`bool`): Leave out images that are not there, targets among them, and queries that lose their
            reference or all targets; how many is logged and kept in the data.
        with_images (`bool`): Whether the images are needed; without, rankings can be scored.

    Returns:
        `BenchmarkData`

    Raises:
        FileNotFoundError: If an annotation file or, unless allowed, images are missing.
        ValueError: If a name is unknown, or a file is cut, of another version, repeats an id, or names a target that
            the gallery lacks; the message has file and entry.
    """
    if name not in BENCHMARKS:
        names = [*BENCHMARKS, "table"]  # a table is read by `read_table`
        raise ParameterError(
            f"There is no benchmark {name!r}{did_you_mean(name, names)}. Choose one of {names}.", "benchmark"
        )
    benchmark, directory = BENCHMARKS[name], Path(directory)
    split = split or benchmark.splits[0]
    if split not in benchmark.splits:
        raise ParameterError(
            f"The benchmark {name} has no split {split!r}. Choose one of {list(benchmark.splits)}.", "split"
        )
    if not directory.is_dir():
        raise FileNotFoundError(f"There is no folder {directory} for the benchmark {name}. Check the path.")
    parts, images = _READERS[name](directory, split, benchmark, with_images)
    if part_names:
        unknown = sorted(set(part_names) - {part.name for part in parts})
        if unknown:
            known = [part.name for part in parts]
            raise ParameterError(f"There are no parts {unknown}. Choose among {known}.", "part")
        parts = [part for part in parts if part.name in part_names]
    if not with_images:
        return BenchmarkData(benchmark, split, parts)
    return without_missing(benchmark, split, parts, images, allow_missing)
