"""What a person reads of a SynCir data set: its card and its report page."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from html import escape
from typing import Any

import numpy as np

from ..reports.pages import PageTable, picture_uri, render_page, render_table
from .filter import EQUAL_CAPTIONS, FilterResult, Reason

_SHOWN = 20  # random triplets on the report, kept and dropped each
_BINS = 50
_NAMES_OF_COUNTS = {
    "images": "images found",
    "unreadable_images": "unreadable, left out",
    "groups": "subgroups of similar images",
    "pairs_with_repeats": "pairs of the subgroups",
    "pairs": "pairs without repeats",
    "pairs_drawn": "of those drawn at random",
    "equal_captions": "dropped: equal captions",
    "questions": "different questions to the LLM",
    "answered": "questions answered",
    "prompt_tokens": "tokens of the questions",
    "completion_tokens": "tokens of the answers",
    "triplets": "triplets with a query text",
    "kept": "triplets kept",
}


def sample_rows(count: int, size: int, seed: int) -> list[int]:
    """Draw rows at random, in their order."""
    return sorted(np.random.default_rng(seed).permutation(count)[:size].tolist())


def histogram(result: FilterResult, score: str = "similarity") -> tuple[np.ndarray, np.ndarray]:
    """Count kept and dropped triplets together in bins of a score: counts `(B,)` and edges `(B + 1,)`."""
    values = [value for part in (result.kept, result.dropped) for value in part[score] if value is not None]
    low = min(0.0, *values) if values else 0.0
    return np.histogram(values, bins=_BINS, range=(low, 1.0))


def draw_histogram(result: FilterResult, score: str = "similarity", width: int = 50) -> list[str]:
    """Draw a score's histogram in text, a line for each tenth that has triplets."""
    counts, edges = histogram(result, score)
    tenths: Counter[float] = Counter()
    for left, count in zip(edges[:-1], counts, strict=True):
        tenths[round(float(np.floor(left * 10 + 1e-9)) / 10, 1)] += int(count)
    most = max(tenths.values(), default=0)
    return [
        f"{tenth:5.1f} {'#' * -(-width * count // most)} {count:,}" for tenth, count in sorted(tenths.items()) if count
    ]


def share_kept(recipe: dict[str, Any]) -> float:
    """Share of the triplets with a query text that the filter kept."""
    return recipe["counts"]["kept"] / max(1, recipe["counts"]["triplets"])


def count_rows(recipe: dict[str, Any]) -> list[list[str]]:
    """The counts of each stage as rows of a table."""
    counts = recipe["counts"]
    rows = [[name, f"{counts[key]:,}"] for key, name in _NAMES_OF_COUNTS.items() if key in counts]
    later = {kind: count for kind, count in counts["dropped"].items() if kind != EQUAL_CAPTIONS}
    return [*rows[:-1], *([f"dropped: {Reason(kind)}", f"{count:,}"] for kind, count in later.items()), rows[-1]]


def render_card(
    result: FilterResult, recipe: dict[str, Any], examples: Sequence[int], assets: Collection[str] = ()
) -> str:
    """Write the data set's README.md: configs, how it was made, counts, thresholds, examples with pictures.

    Args:
        result (`FilterResult`): The triplets.
        recipe (`dict`): How they were made.
        examples (`Sequence[int]`): Rows of the kept triplets to show.
        assets (`Collection[str]`): Names of the example pictures that are there.
    """
    settings, kept = recipe["settings"], result.kept
    thresholds = "\n".join(f"| `{name}` | {value:g} |" for name, value in recipe["thresholds"].items())
    counts = "\n".join(f"| {name} | {count} |" for name, count in count_rows(recipe))
    shown = "\n".join(
        f"| {_example(f'{number}-reference.png', kept['reference_caption'][row], assets)} "
        f"| {_cell(kept['query_text'][row])} "
        f"| {_example(f'{number}-target.png', kept['target_caption'][row], assets)} "
        f"| {kept['similarity'][row]:.3f} |"
        for number, row in enumerate(examples)
    )
    is_embedded = settings["store_images"] == "embed"
    stored = "each image once" if is_embedded else "each image's id once"
    pictures = (
        "The pictures are stored once, in `images`; triplets name them by `image_id`."
        if is_embedded
        else f"The pictures themselves are not in here: `image_id` names them in `{recipe['source']}`."
    )
    note = f"\n{settings['note']}\n" if settings["note"] else ""
    licences = settings.get("images_license") or f"they keep those of their source, `{recipe['source']}`"
    versions = ", ".join(f"{name} {version}" for name, version in recipe["versions"].items())
    parts = (("triplets", kept), ("dropped", result.dropped))  # a part without rows has no file
    names = [*(name for name, part in parts if part["triplet_id"]), "images"]
    # `datasets` finds its cache by these lines alone: they must differ where the data do.
    state = "data " + hashlib.sha256(json.dumps([recipe["key"], recipe["thresholds"]]).encode()).hexdigest()[:12]
    configs = "\n".join(
        f"- config_name: {name}\n  description: {state}\n  data_files:\n  - {{split: train, path: "
        f"{'images/part-*' if name == 'images' else name}.parquet}}"
        for name in names
    ).replace("description", "default: true\n  description", 1)
    return f"""---
configs:
{configs}
license: other
tags: [composed-image-retrieval, synthetic]
size_categories: [{_size_category(len(kept["triplet_id"]))}]
---

# Synthetic triplets for composed image retrieval

{len(kept["triplet_id"]):,} triplets (reference image, query text, target image), made from unlabeled images by SynCir
([HyCIR](https://arxiv.org/abs/2407.05795)): pairs of similar images, a caption of each, an instruction from one caption
to the other by an LLM, and a filter in language space. {pictures}

```python
from datasets import load_dataset

triplets = load_dataset("PATH", "triplets", split="train")
images = load_dataset("PATH", "images", split="train")
dropped = load_dataset("PATH", "dropped", split="train")  # with reason and scores
```

| config | rows | what |
|---|---|---|
| `triplets` | {len(kept["triplet_id"]):,} | ids of both images, query text, both captions, scores, the LLM's answer |
| `images` | {_num_images(recipe):,} | {stored}, with its caption |
| `dropped` | {len(result.dropped["triplet_id"]):,} | what the filter left out, with the reason |

## Licences

Pictures: {licences}. Captions are from {recipe["captions_by"]}, query texts from the LLM `{recipe["generator"]}`; the
terms of both hold for what they wrote.

## How it was made

| | |
|---|---|
| images | `{recipe["source"]}` |
| pair extraction | `{settings["image_encoder"]}`, similarity below {settings["max_similarity"]:g}, gap above \
{settings["min_similarity_gap"]:g}, {settings["group_size"]} images a subgroup |
| captions | {recipe["captions_by"]} |
| query texts | LLM `{recipe["generator"]}`, prompt `{settings["prompt"]}` |
| filter | `{settings["sentence_encoder"]}` |
| seed | {settings["seed"]} |
| versions | {versions} |

`recipe.json` holds all settings. The filter kept {100 * share_kept(recipe):.1f}% of the triplets that had a query text.

| score | lowest value kept |
|---|---|
{thresholds}

`hycir syncir refilter PATH --threshold T` moves the threshold without computing anything anew.

| stage | count |
|---|---|
{counts}
{note}
## Examples

| reference | query text | target | similarity |
|---|---|---|---|
{shown}
"""


def _num_images(recipe: dict[str, Any]) -> int:
    return recipe["counts"]["images"] - recipe["counts"].get("unreadable_images", 0)


def render_report(result: FilterResult, recipe: dict[str, Any], load_picture: Callable[[str], Any]) -> str:
    """Write the report page: counts, histogram, random kept and dropped triplets with their pictures."""
    seed = recipe["settings"]["seed"]
    sections = [render_table(PageTable("Counts, stage by stage", ("", "count"), count_rows(recipe)))]
    for name, threshold in recipe["thresholds"].items():
        sections.append(_histogram_section(result, name, threshold))
    for title, part in (("kept", result.kept), ("dropped", result.dropped)):
        rows = sample_rows(len(part["triplet_id"]), _SHOWN, seed)
        cards = "\n".join(_triplet(part, row, load_picture) for row in rows) or '<p class="note">There is none.</p>'
        sections.append(f"<section><h2>{len(rows)} {title} triplets, drawn at random</h2>\n{cards}\n</section>")
    note = f" {recipe['settings']['note']}" if recipe["settings"]["note"] else ""
    intro = (
        f"Images: {recipe['source']}. Query texts by {recipe['generator']}. The filter kept "
        f"{100 * share_kept(recipe):.1f}% of the triplets that had a query text.{note}"
    )
    footer = "Similarity is cos(sem(reference caption) + sem(query text), sem(target caption)). Made with HyCIR."
    return render_page("SynCir: synthetic triplets", intro, sections, footer, _STYLE)


def _histogram_section(result: FilterResult, name: str, threshold: float) -> str:
    counts, edges = histogram(result, name)
    width, height, low, high = 800, 200, edges[0], edges[-1]
    place = lambda value: (value - low) / (high - low) * width  # noqa: E731
    bar = width / len(counts)
    heights = height * counts / max(1, counts.max())
    bars = "".join(
        f'<rect class="{"in" if (left + right) / 2 >= threshold else "out"}" x="{place(left) + 0.5:.1f}" '
        f'y="{height - tall:.1f}" width="{bar - 1:.1f}" height="{tall:.1f}">'
        f"<title>{left:.2f} to {right:.2f}: {count:,}</title></rect>"
        for left, right, count, tall in zip(edges[:-1], edges[1:], counts, heights, strict=True)
    )
    ticks = "".join(
        f'<text x="{min(max(place(value), 12), width - 12):.1f}" y="{height + 18}" text-anchor="middle">'
        f"{round(float(value), 1) + 0.0:.1f}</text>"
        for value in np.arange(np.ceil(low * 10) / 10, 1.01, 0.1)
    )
    line = f'<line x1="{place(threshold):.1f}" x2="{place(threshold):.1f}" y1="0" y2="{height}"/>'
    label = f"Histogram of {name}; the line is the threshold {threshold:g}."
    return (
        f'<section class="figures"><h2>{escape(name)} of {int(counts.sum()):,} triplets, threshold {threshold:g}</h2>'
        f'<svg class="histogram" viewBox="0 0 {width} {height + 24}" role="img" aria-label="{escape(label)}">'
        f"{bars}{line}{ticks}</svg></section>"
    )


def _triplet(part: dict[str, list[Any]], row: int, load_picture: Callable[[str], Any]) -> str:
    similarity = part["similarity"][row]
    is_dropped = "reason" in part
    notes = [str(Reason(part["reason"][row], part["detail"][row])) if is_dropped else f"similarity {similarity:.3f}"]
    if is_dropped and not part["query_text"][row] and part["answer"][row]:
        notes.append(f"the LLM wrote: {part['answer'][row][:200]}")
    text = part["query_text"][row]
    said = escape(text) if text else "<em>no query text</em>"
    return (
        f'<div class="triplet">{_side(part, "reference", row, load_picture)}'
        f'<div class="change"><h3>{said}</h3><p class="id">{escape("; ".join(notes))}</p></div>'
        f"{_side(part, 'target', row, load_picture)}</div>"
    )


def _side(part: dict[str, list[Any]], side: str, row: int, load_picture: Callable[[str], Any]) -> str:
    picture, caption = load_picture(part[f"{side}_id"][row]), part[f"{side}_caption"][row]
    shown = (
        '<div class="missing">picture not at hand</div>'
        if picture is None
        else f'<img src="{picture_uri(picture)}" alt="{escape(caption, quote=True)}" loading="lazy">'
    )
    return f'<figure>{shown}<figcaption><span class="id">{escape(caption)}</span></figcaption></figure>'


def _example(name: str, caption: str, assets: Collection[str]) -> str:
    picture = f'<img src="assets/{name}" width="96"> ' if name in assets else ""
    return picture + _cell(caption)


def _cell(text: str) -> str:
    """Text inside a Markdown table."""
    return escape(" ".join(text.split()), quote=False).replace("|", "\\|")


def _size_category(count: int) -> str:
    sizes = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return next((name for limit, name in sizes if count < limit), "1M<n<10M")


_STYLE = """
.triplet{display:grid;grid-template-columns:9rem 1fr 9rem;gap:1.25rem;align-items:center;padding:.75rem 0;
border-top:1px solid var(--line)}
.triplet figure{height:auto}.triplet .id{display:block}
h3{font-size:1.1rem;line-height:1.35;margin:0 0 .25rem;overflow-wrap:anywhere}
h3 em{color:var(--soft);font-weight:400}.change{text-align:center}
.histogram{width:100%;height:auto;margin-top:.75rem}.histogram .in{fill:var(--accent)}.histogram .out{fill:var(--line)}
.histogram line{stroke:var(--ink);stroke-width:1.5;stroke-dasharray:4 3}.histogram text{fill:var(--soft);font-size:13px}
@media (max-width:34rem){.triplet{grid-template-columns:1fr 1fr}.change{grid-column:1/3;grid-row:1}}
"""
