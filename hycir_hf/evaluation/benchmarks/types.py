"""What a benchmark asks and how it counts, and the queries, galleries and images of one split."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image


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
        name (`str`): As in `hycir evaluate run --benchmark`.
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
        first_target_ranks (`tuple[int, ...]`): The K of R@K of a query's first target alone (CIRCO's Recall@K).
        aspect_rank (`int`, *optional*): K of the metric over the queries of each semantic aspect (CIRCO).
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
    first_target_ranks: tuple[int, ...] = ()
    aspect_rank: int | None = None
    averages_ranks: bool = False
    averages_parts: bool = False
    prompt: str | None = None
    text_prompt: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BenchmarkPart:
    """Queries over one gallery.

    Args:
        name (`str`): FashionIQ's category, the emoji benchmark's vendor; "all" where there is one part.
        queries (`Sequence[Mapping]`): Rows in the QUERY schema. Further columns may stand there: `other_texts`,
            whose features are averaged with those of `query_text`, `further_reference_ids` and `semantic_aspects`.
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
class ImageRegion:
    """A region of an image, made square.

    Args:
        path (`Path`): The whole image's file.
        box (`tuple[float, float, float, float]`): Left, top, width and height in pixels.
        dilation (`float`): Share of width and height that is added at the left and at the top; what the image's edge
            leaves no room for is added at the other side, as in GeneCIS's code.
        pads (`bool`): Whether black bars make it square; otherwise it is stretched to its longer side.
    """

    path: Path
    box: tuple[float, float, float, float]
    dilation: float = 0.0
    pads: bool = True

    def load(self) -> Image.Image:
        """Cut the region out.

        Raises:
            OSError: If the file is not there or no image.
        """
        with Image.open(self.path) as image:
            whole = image.convert("RGB")
        x, y, width, height = self.box
        left, top = max(0, x - self.dilation * width), max(0, y - self.dilation * height)
        right = min(whole.width, left + (1 + self.dilation) * width)
        bottom = min(whole.height, top + (1 + self.dilation) * height)
        region = whole.crop((round(left), round(top), round(right), round(bottom)))
        side = max(region.size)
        if not self.pads:
            return region.resize((side, side), Image.Resampling.BICUBIC)
        square = Image.new("RGB", (side, side))
        square.paste(region, ((side - region.width) // 2, (side - region.height) // 2))
        return square


def open_image(image: Any) -> Any:
    """A region as an image; a path or a record as it is, since the processor takes it."""
    return image.load() if isinstance(image, ImageRegion) else image


def path_of(image: Any) -> Path | None:
    """The file that an image lies in; None for a record."""
    if isinstance(image, ImageRegion):
        return image.path
    return image if isinstance(image, Path) else None


def name_of(image: Any, id_: str) -> str:
    """What a reader calls an image: its record's name, or the end of its id."""
    name = image.get("name") if isinstance(image, dict) else None
    return name or id_.rpartition("/")[2]


@dataclass(frozen=True)
class BenchmarkData:
    """A benchmark's split as read from its files.

    Args:
        benchmark (`Benchmark`): The specification.
        split (`str`): One of its splits.
        parts (`Sequence[BenchmarkPart]`): At least one.
        images (`Mapping[str, Any]`): Image id -> path, `ImageRegion`, or a record with "bytes" and "name"; empty
            where the images were not asked for.
        missing_ids (`Sequence[str]`): Images left out since they are not there.
        num_dropped_queries (`int`): Queries left out with them.
    """

    benchmark: Benchmark
    split: str
    parts: Sequence[BenchmarkPart]
    images: Mapping[str, Any] = field(default_factory=dict)
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
