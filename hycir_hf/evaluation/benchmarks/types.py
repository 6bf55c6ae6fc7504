"""What a benchmark asks and how it counts, and the queries, galleries and images of one split."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ...images import ImageSource


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
        takes_longer (`bool`): Whether rankings may have more ids than `length`.
    """

    name: str
    length: int
    header: Mapping[str, str] = field(default_factory=dict)
    ranks_subset: bool = False
    has_integer_ids: bool = False
    max_bytes: int | None = None
    takes_longer: bool = False


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark asks and how it counts.

    Args:
        name (`str`): As in `hycir evaluate run --benchmark`; of your own benchmark, a name that results carry.
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
        fits_ranks (`bool`): Whether ranks that the gallery is too small for are left out; by default they are an error.
    """

    name: str
    title: str
    metric: str
    ranks: tuple[int, ...]
    splits: tuple[str, ...] = ("all",)
    submissions: tuple[SubmissionFile, ...] = ()
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
    fits_ranks: bool = False

    def fitted(self, parts: "Sequence[BenchmarkPart]") -> "Benchmark":
        """Leave out the ranks that are too large for the parts' galleries and subsets, if `fits_ranks`."""
        if not self.fits_ranks:
            return self
        depth, width = (min(sizes, default=math.inf) for sizes in self.sizes(parts))
        ranks = tuple(k for k in self.ranks if k <= depth) or self.ranks[:1]
        subset_ranks = tuple(k for k in self.subset_ranks if k < width) or self.subset_ranks[:1]
        files = tuple(
            replace(kind, length=max(subset_ranks if kind.ranks_subset else ranks, default=kind.length))
            for kind in self.submissions
        )
        hard = self.hard_negative_rank and min(self.hard_negative_rank, max(ranks, default=1))
        return replace(self, ranks=ranks, subset_ranks=subset_ranks, hard_negative_rank=hard, submissions=files)

    def sizes(self, parts: "Sequence[BenchmarkPart]") -> tuple[list[int], list[int]]:
        """Count the images that are ranked for each query: of the gallery (if it is known), and of the subset."""
        depths, widths = [], []
        for part in parts:
            gallery = set(part.gallery_ids)
            for query in part.queries:
                left_out = set(reference_ids_of(query)) if self.leaves_reference_out else set()
                depths += [len(gallery) - len(gallery & left_out)] if gallery else []
                widths.append(len(set(query["subset_ids"]) - left_out))
        return depths, widths


@dataclass(frozen=True)
class BenchmarkPart:
    """Queries over one gallery.

    Args:
        name (`str`): FashionIQ's category, the emoji benchmark's vendor; "all" where there is one part.
        queries (`Sequence[Mapping]`): Rows in the QUERY schema. Further columns may stand there: `other_texts`,
            whose features are averaged with those of `query_text`, `further_reference_ids`, `semantic_aspects`, and
            `group`: queries of one group are resampled together. `complete_query` fills in what is missing.
        gallery_ids (`Sequence[str]`): In gallery order; empty where the files do not say what the gallery is.
    """

    name: str
    queries: Sequence[Mapping[str, Any]]
    gallery_ids: Sequence[str]

    def __post_init__(self) -> None:
        rows = [complete_query(query, number) for number, query in enumerate(self.queries)]
        object.__setattr__(self, "queries", rows)

    @property
    def query_ids(self) -> list[str]:
        """Each query's id."""
        return [query["query_id"] for query in self.queries]

    @property
    def has_targets(self) -> bool:
        """Whether the answers are known."""
        return any(query["target_ids"] for query in self.queries)


def complete_query(query: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Fill in the columns that a query's row lacks: its id is its number, lists are empty.

    `reference_id` may be a list, of several references. `negative_ids` is another name of `hard_negative_ids`.
    """
    given = {name: value for name, value in query.items() if value is not None}
    if "negative_ids" in given:
        given["hard_negative_ids"] = given.pop("negative_ids")
    if isinstance(given.get("reference_id"), list | tuple):
        given["reference_id"], *further = given["reference_id"] or [""]
        given["further_reference_ids"] = further
    lists: dict[str, list[str]] = {"target_ids": [], "subset_ids": [], "hard_negative_ids": []}
    texts = {"query_id": str(number), "reference_id": "", "query_text": "", "rule": "", "split": ""}
    return {**texts, **lists, "wording": 0, **given}


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


@dataclass(frozen=True)
class SourceImage:
    """An image of a dataset, read when it is needed.

    Args:
        source (`ImageSource`): The opened dataset.
        row (`int`): The image's row.
    """

    source: ImageSource
    row: int

    def load(self) -> Any:
        """Load the image, PIL in RGB; ValueError naming it if it is broken."""
        return self.source.load(self.row)


def open_image(image: Any) -> Any:
    """A region or a dataset's image as a PIL image; a path or a record as it is, since the processor takes it."""
    return image.load() if isinstance(image, ImageRegion | SourceImage) else image


def path_of(image: Any) -> Path | None:
    """The file that an image lies in; None for a record, or an image in memory."""
    if isinstance(image, ImageRegion):
        return image.path
    return Path(image) if isinstance(image, str | Path) else None


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
        missing_ids (`Sequence[str]`): Images left out since they are not there, or cannot be read.
        num_dropped_queries (`int`): Queries left out with them.
        stored_features (`Path`, *optional*): The image store of a gallery that holds the images.
    """

    benchmark: Benchmark
    split: str
    parts: Sequence[BenchmarkPart]
    images: Mapping[str, Any] = field(default_factory=dict)
    missing_ids: Sequence[str] = ()
    num_dropped_queries: int = 0
    stored_features: Path | None = None

    @property
    def has_targets(self) -> bool:
        """Whether the answers of all parts are known."""
        return all(part.has_targets for part in self.parts)

    def fingerprint(self) -> str:
        """16 hex digits of a SHA-256 of queries and gallery ids: equal where the same is asked of the same gallery."""
        rows = [[part.name, part.queries, list(part.gallery_ids)] for part in self.parts]
        return _digest(*rows)

    def part_fingerprints(self) -> dict[str, dict[str, str | None]]:
        """Part -> fingerprints of its queries, and of its gallery if that is known; the order does not matter."""
        return {
            part.name: {
                "queries": _digest(sorted((_asked(query) for query in part.queries), key=lambda one: one["query_id"])),
                "gallery": _digest(sorted(part.gallery_ids)) if part.gallery_ids else None,
            }
            for part in self.parts
        }


def _asked(query: Mapping[str, Any]) -> dict[str, Any]:
    """A query without what only says how it is resampled."""
    return {name: value for name, value in query.items() if name not in ("group", "rule", "wording", "split")}


def _digest(*values: Any) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value, sort_keys=True).encode())
    return digest.hexdigest()[:16]
