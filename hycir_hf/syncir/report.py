"""The facts that the card and the report page of a SynCir dataset show; `reports/` turns them into text."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..reports.pages import Histogram, PageTable, PageTriplet, render_triplets_page
from ..reports.render import render
from .filter import EQUAL_CAPTIONS, FilterResult, Reason

_SHOWN = 20  # kept triplets on the report page, and as many dropped ones
_BINS = 50
_NAMES_OF_COUNTS = {
    "images": "images found",
    "unreadable_images": "unreadable images, skipped",
    "groups": "groups of similar images",
    "pairs_with_repeats": "image pairs of the groups",
    "pairs": "image pairs without duplicates",
    "pairs_drawn": "image pairs drawn at random from them",
    "equal_captions": "dropped: equal captions",
    "questions": "different questions to the LLM",
    "answered": "questions answered",
    "prompt_tokens": "tokens in the questions",
    "completion_tokens": "tokens in the answers",
    "triplets": "triplets with a query text",
    "kept": "triplets kept",
}


def sample_rows(count: int, size: int, seed: int) -> list[int]:
    """Draw rows at random; they keep their order."""
    return sorted(np.random.default_rng(seed).permutation(count)[:size].tolist())


def histogram(result: FilterResult, score: str = "similarity") -> tuple[np.ndarray, np.ndarray]:
    """Count kept and dropped triplets together in bins of a score: counts `(B,)` and edges `(B + 1,)`."""
    values = [value for part in (result.kept, result.dropped) for value in part[score] if value is not None]
    low = min(0.0, *values) if values else 0.0
    return np.histogram(values, bins=_BINS, range=(low, 1.0))


def draw_histogram(result: FilterResult, score: str = "similarity", width: int = 50) -> list[str]:
    """Draw a score's histogram as text: one line for each tenth of the score that has triplets."""
    counts, edges = histogram(result, score)
    tenths: Counter[float] = Counter()
    for left, count in zip(edges[:-1], counts, strict=True):
        tenths[round(float(np.floor(left * 10 + 1e-9)) / 10, 1)] += int(count)
    most = max(tenths.values(), default=0)
    return [
        f"{tenth:5.1f} {'#' * -(-width * count // most)} {count:,}" for tenth, count in sorted(tenths.items()) if count
    ]


def share_kept(recipe: Mapping[str, Any]) -> float:
    """Return the share of the triplets with a query text that the filter kept, in [0, 1]."""
    return recipe["counts"]["kept"] / max(1, recipe["counts"]["triplets"])


def count_rows(recipe: Mapping[str, Any]) -> list[list[str]]:
    """The counts of each stage as rows of a table."""
    counts = recipe["counts"]
    rows = [[name, f"{counts[key]:,}"] for key, name in _NAMES_OF_COUNTS.items() if key in counts]
    later = {kind: count for kind, count in counts["dropped"].items() if kind != EQUAL_CAPTIONS}
    return [*rows[:-1], *([f"dropped: {Reason(kind)}", f"{count:,}"] for kind, count in later.items()), rows[-1]]


def render_card(
    result: FilterResult, recipe: Mapping[str, Any], examples: Sequence[int], assets: Collection[str] = ()
) -> str:
    """Render the dataset's README.md: configs, how it was made, counts, thresholds, examples with images.

    Args:
        result (`FilterResult`): The triplets.
        recipe (`Mapping`): How they were made.
        examples (`Sequence[int]`): Rows of the kept triplets to show.
        assets (`Collection[str]`): Names of the example images that exist.
    """
    kept = result.kept
    sizes = {"triplets": len(kept["triplet_id"]), "dropped": len(result.dropped["triplet_id"])}
    # `datasets` finds its cache by the card's configs alone: they must differ where the data do.
    state = hashlib.sha256(json.dumps([recipe["key"], recipe["thresholds"]]).encode()).hexdigest()[:12]
    return render(
        "triplets_card.md",
        recipe=recipe,
        configs=[*(name for name, size in sizes.items() if size), "images"],  # a part without rows has no file
        state=state,
        size_category=_size_category(sizes["triplets"]),
        num_kept=sizes["triplets"],
        num_dropped=sizes["dropped"],
        num_images=recipe["counts"]["images"] - recipe["counts"].get("unreadable_images", 0),
        share_kept=share_kept(recipe),
        counts=count_rows(recipe),
        examples=[{name: values[row] for name, values in kept.items()} for row in examples],
        assets=assets,
    )


def render_report(
    result: FilterResult, recipe: Mapping[str, Any], load_image: Callable[[str], Image.Image | None]
) -> str:
    """Render the report page: counts, histograms, random kept and dropped triplets with their images.

    Args:
        result (`FilterResult`): The triplets.
        recipe (`Mapping`): How they were made.
        load_image (`Callable`): Image id -> image, or None where it cannot be read.
    """
    histograms = []
    for name, threshold in recipe["thresholds"].items():
        counts, edges = histogram(result, name)
        histograms.append(Histogram(name, threshold, counts.tolist(), edges.tolist()))
    samples = {
        name: [
            _page_triplet(part, row, load_image)
            for row in sample_rows(len(part["triplet_id"]), _SHOWN, recipe["settings"]["seed"])
        ]
        for name, part in (("kept", result.kept), ("dropped", result.dropped))
    }
    counts_table = PageTable("Counts of each stage", ("", "count"), count_rows(recipe))
    return render_triplets_page(recipe, share_kept(recipe), counts_table, histograms, samples)


def _page_triplet(part: Mapping[str, list[Any]], row: int, load_image: Callable[[str], Any]) -> PageTriplet:
    values = {name: column[row] for name, column in part.items()}
    if "reason" not in values:
        notes = [f"similarity {values['similarity']:.3f}"]
    else:
        notes = [str(Reason(values["reason"], values["detail"]))]
        if not values["query_text"] and values["answer"]:
            notes.append(f"The LLM wrote: {values['answer'][:200]}")
    return PageTriplet(
        load_image(values["reference_id"]),
        values["reference_caption"],
        values["query_text"],
        load_image(values["target_id"]),
        values["target_caption"],
        notes,
    )


def _size_category(count: int) -> str:
    sizes = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return next((name for limit, name in sizes if count < limit), "1M<n<10M")
