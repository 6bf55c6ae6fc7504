"""The benchmarks as data: what each asks, leaves out, counts, and wants in its test server's files."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class SubmissionFile:
    """One JSON file of rankings: `{**header, query id: ranking}`.

    Args:
        name (`str`): File name; `{split}` stands for the split.
        header (`Mapping[str, str]`): Keys beside the queries, with the values that they must have.
        length (`int`): Ids in each ranking.
        ranks_subset (`bool`): Whether the ids are from each query's subset.
        has_integer_ids (`bool`): Whether ids are JSON numbers.
        max_bytes (`int`, *optional*): The largest file that the server takes.
    """

    name: str
    length: int
    header: Mapping[str, str] = field(default_factory=dict)
    ranks_subset: bool = False
    has_integer_ids: bool = False
    max_bytes: int | None = None


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark asks and how it counts.

    Args:
        name (`str`): As in `hycir evaluate --benchmark`.
        title (`str`): As in tables.
        metric (`str`): "R" (hit rate), "mAP" (divided by min(targets, K)) or "share" (of all targets, those among the
            first K: what others call recall).
        ranks (`tuple[int, ...]`): The K of the metric; empty where each query has a gallery of its own, its subset.
        splits (`tuple[str, ...]`): The first is the default.
        leaves_reference_out (`bool`): Whether a query's references are dropped from its ranking.
        subset_ranks (`tuple[int, ...]`): The K of R_subset@K; the candidates are a query's `subset_ids`, without its
            references where these are left out.
        hard_negative_rank (`int`, *optional*): K of "HN@K", the share of the first K that are hard negatives.
        wording_rank (`int`, *optional*): K of "wording spread@K": max - min of R@K over the wordings of one query.
        averages_ranks (`bool`): Whether "avg", the mean over the ranks, is reported (the paper's ablations on CIRR).
        averages_parts (`bool`): Whether the mean over the parts is reported (FashionIQ).
        prompt (`str`, *optional*): Template with {image} and {text}; None is the model's own.
        text_prompt (`str`, *optional*): Template with {text} of what methods without pseudo words read.
        options (`Mapping[str, str]`): What the reader of the files is told: FashionIQ's protocols.
        submissions (`tuple[SubmissionFile, ...]`): The files of rankings that are written and scored.
    """

    name: str
    title: str
    metric: str
    ranks: tuple[int, ...]
    splits: tuple[str, ...]
    submissions: tuple[SubmissionFile, ...]
    leaves_reference_out: bool = False
    subset_ranks: tuple[int, ...] = ()
    hard_negative_rank: int | None = None
    wording_rank: int | None = None
    averages_ranks: bool = False
    averages_parts: bool = False
    prompt: str | None = None
    text_prompt: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)


_CIRR = Benchmark(
    name="cirr",
    title="CIRR",
    metric="R",
    ranks=(1, 5, 10, 50),
    splits=("val", "test1"),
    leaves_reference_out=True,
    subset_ranks=(1, 2, 3),
    averages_ranks=True,
    # cirr.cecs.anu.edu.au: the 50 best of each query, the 3 best of its subset, 5 MB a file.
    submissions=(
        SubmissionFile("cirr_{split}_recall.json", 50, {"version": "rc2", "metric": "recall"}, max_bytes=5_000_000),
        SubmissionFile(
            "cirr_{split}_recall_subset.json",
            3,
            {"version": "rc2", "metric": "recall_subset"},
            ranks_subset=True,
            max_bytes=5_000_000,
        ),
    ),
)

_CIRCO = Benchmark(
    name="circo",
    title="CIRCO",
    metric="mAP",
    ranks=(5, 10, 25, 50),
    splits=("val", "test"),
    submissions=(SubmissionFile("circo_{split}.json", 50, has_integer_ids=True),),
)


def _fashioniq(name: str, gallery: str, captions: str) -> Benchmark:
    galleries = {"split": "the split's gallery", "union": "val's references and targets as gallery"}
    return Benchmark(
        name=name,
        title=f"FashionIQ ({galleries[gallery]}, captions {captions})",
        metric="R",
        ranks=(10, 50),
        splits=("val",),
        averages_parts=True,
        options={"gallery": gallery, "captions": captions},
        submissions=(SubmissionFile(name + "_{split}.json", 50),),
    )


_GENECIS = Benchmark(
    name="genecis",
    title="GeneCIS",
    metric="R",
    ranks=(),
    splits=("val",),
    subset_ranks=(1, 2, 3),
    averages_parts=True,
    submissions=(SubmissionFile("genecis_{split}.json", 3, ranks_subset=True),),
)

_COCO = Benchmark(
    name="coco",
    title="COCO object composition",
    metric="R",
    ranks=(1, 5, 10, 50),
    splits=("val",),
    prompt="a photo of {image} and {text}",
    text_prompt="a photo of {text}",
    submissions=(SubmissionFile("coco_{split}.json", 50),),
)

_IMAGENET = Benchmark(
    name="imagenet",
    title="ImageNet domain conversion",
    metric="share",
    ranks=(10, 50),
    splits=("val",),
    averages_parts=True,
    prompt="{text} {image}",
    submissions=(SubmissionFile("imagenet_{split}.json", 50),),
)

_EMOJI = Benchmark(
    name="emoji",
    title="Emoji",
    metric="R",
    ranks=(1, 5, 10, 50),
    splits=("val", "test"),
    leaves_reference_out=True,
    subset_ranks=(1, 2, 3),
    hard_negative_rank=10,
    wording_rank=10,
    submissions=(
        SubmissionFile("emoji_{split}.json", 50),
        SubmissionFile("emoji_{split}_subset.json", 3, {"metric": "recall_subset"}, ranks_subset=True),
    ),
)

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        _CIRR,
        _CIRCO,
        _fashioniq("fashioniq", gallery="split", captions="averaged"),
        _fashioniq("fashioniq-joined", gallery="split", captions="joined"),
        _fashioniq("fashioniq-union", gallery="union", captions="averaged"),
        _fashioniq("fashioniq-union-joined", gallery="union", captions="joined"),
        _GENECIS,
        _COCO,
        _IMAGENET,
        _EMOJI,
    )
}
"""Benchmark name -> specification."""


@dataclass(frozen=True)
class BenchmarkPart:
    """Queries over one gallery.

    Args:
        name (`str`): FashionIQ's category, the emoji benchmark's vendor; "all" where there is one part.
        queries (`Sequence[Mapping]`): Rows in the QUERY schema. Two columns more may stand there: `other_texts`, whose
            features are averaged with those of `query_text`, and `further_reference_ids`.
        gallery_ids (`Sequence[str]`): In gallery order; empty where the files do not say what the gallery is.
    """

    name: str
    queries: Sequence[Mapping[str, Any]]
    gallery_ids: Sequence[str]

    @property
    def query_ids(self) -> list[str]:
        """Each query's id."""
        return [query["query_id"] for query in self.queries]

    @property
    def has_targets(self) -> bool:
        """Whether the answers are known."""
        return any(query["target_ids"] for query in self.queries)


def reference_ids_of(query: Mapping[str, Any]) -> list[str]:
    """The query's reference, then any further ones."""
    return [query["reference_id"], *query.get("further_reference_ids", ())]


@dataclass(frozen=True)
class BenchmarkData:
    """A benchmark's split as read from its files.

    Args:
        benchmark (`Benchmark`): The specification.
        split (`str`): One of its splits.
        parts (`Sequence[BenchmarkPart]`): At least one.
        pictures (`Mapping[str, Any]`): Image id -> path, `PictureRegion`, or a record with "bytes" and "name"; empty
            where the pictures were not asked for.
        missing_ids (`Sequence[str]`): Images left out since they are not there.
        num_dropped_queries (`int`): Queries left out with them.
    """

    benchmark: Benchmark
    split: str
    parts: Sequence[BenchmarkPart]
    pictures: Mapping[str, Any] = field(default_factory=dict)
    missing_ids: Sequence[str] = ()
    num_dropped_queries: int = 0

    @property
    def has_targets(self) -> bool:
        """Whether the answers of all parts are known."""
        return all(part.has_targets for part in self.parts)

    def fingerprint(self) -> str:
        """16 hex digits of a SHA-256 of queries and gallery ids: equal where the same is asked of the same gallery."""
        digest = hashlib.sha256()
        for part in self.parts:
            rows = [part.name, [dict(query) for query in part.queries], list(part.gallery_ids)]
            digest.update(json.dumps(rows, sort_keys=True).encode())
        return digest.hexdigest()[:16]
