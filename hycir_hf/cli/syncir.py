"""`hycir syncir`: triplets from unlabeled images. Subcommands: preview, run, estimate, refilter."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter
from cyclopts.types import PositiveInt

import hycir_hf

from ..names import shown
from ..settings import ParameterError
from ..syncir.config import SynCirConfig
from .models import default_device
from .options import Columns, Common, Device, OutputFolder, Report, flags_of, list_settings

if TYPE_CHECKING:
    from ..syncir import SynCirRun

    Flags = dict[str, Any]
else:
    Flags = flags_of(SynCirConfig)

_SHOWN_CHARACTERS = 500  # of a raw answer

ConfigFile = Annotated[Path | None, Parameter(alias="-c")]

app = App(
    name="syncir",
    help_epilogue=f"""\
Examples:
  hycir syncir preview photos --llm gpt-4o-mini --n 20
  hycir syncir estimate photos --output triplets --llm gpt-4o-mini \\
      --prices 0.15 0.6
  hycir syncir run photos --output triplets --llm gpt-4o-mini
  hycir syncir refilter triplets --threshold 0.8

Settings of run and estimate. Each one is a flag (--max-pairs 1000) and a key of
the --config file (max_pairs: 1000).

{list_settings(SynCirConfig)}""",
)


@app.command(
    help_epilogue="""\
Examples:
  hycir syncir run photos --output triplets --llm gpt-4o-mini
  hycir syncir run photos --output triplets --llm NAME --prompt few_shot \\
      --base-url http://127.0.0.1:8000/v1
  hycir syncir run photos --output triplets --until captions \\
      --num-shards 8 --shard-index 0""",
    sort_key=1,
)
def run(
    images: str,
    /,
    *,
    output: OutputFolder,
    config: ConfigFile = None,
    until: Literal["features", "pairs", "captions", "query_texts"] | None = None,
    num_shards: PositiveInt = 1,
    shard_index: int = 0,
    columns: Columns | None = None,
    settings: Flags | None = None,
    device: Device = None,
    common: Common | None = None,
) -> Report:
    """Make training triplets from unlabeled images: find image pairs, caption, ask an LLM, filter.

    Every LLM answer is saved before it is used, so you never pay for it twice.

    Args:
        images: Folder of images, or a dataset as PATH[:CONFIG].
        output: Folder of the triplet dataset.
        config: YAML file of settings. A flag replaces the file's value.
        until: Stop after this stage.
        num_shards: Number of jobs that share the stage that --until names.
        shard_index: Which of these jobs this is, from 0.
    """
    launched = _open_run(images, output, config, columns, settings, device)
    recipe = hycir_hf.syncir.run_launched(launched, until, num_shards, shard_index)
    if recipe is not None:
        return _report(output, recipe)
    lines = [f"Done until {until}, shard {shard_index} of {num_shards}. Run it without --until to finish."]
    values = {"output": output, "until": until, "shard": shard_index, "num_shards": num_shards}
    return Report(values, lines if until else [])


@app.command(
    help_epilogue="""\
Example:
  hycir syncir estimate photos --output triplets --llm gpt-4o-mini \\
      --prices 0.15 0.6""",
    sort_key=2,
)
def estimate(
    images: str,
    /,
    *,
    output: OutputFolder,
    prices: tuple[float, float] | None = None,
    config: ConfigFile = None,
    columns: Columns | None = None,
    settings: Flags | None = None,
    device: Device = None,
    common: Common | None = None,
) -> Report:
    """Count the LLM's calls and tokens, and what they cost. Nothing is paid.

    The stages before the LLM run, and `hycir syncir run` uses their results.

    Args:
        images: Folder of images, or a dataset as PATH[:CONFIG].
        output: Folder of the triplet dataset.
        prices: Price of a million tokens that the LLM reads (IN) and writes (OUT).
        config: YAML file of settings. A flag replaces the file's value.
    """
    found = _open_run(images, output, config, columns, settings, device).estimate()
    calls, cost = found.questions - found.answered, found.cost(*prices) if prices else None
    values = {
        "calls": calls,
        "answered": found.answered,
        "prompt_tokens": found.prompt_tokens,
        "completion_tokens": found.completion_tokens,
        "cost": cost,
    }
    lines = [
        f"{calls:,} calls to make, {found.answered:,} already answered",
        f"about {found.prompt_tokens:,} tokens in, {found.completion_tokens:,} out (images not counted)",
        "Pass --prices IN OUT for the cost." if cost is None else f"about {cost:,.2f} at these prices",
    ]
    return Report(values, lines)


@app.command(
    help_epilogue="""\
Examples:
  hycir syncir preview photos --llm gpt-4o-mini --n 20
  hycir syncir preview photos --output triplets --llm NAME \\
      --base-url http://127.0.0.1:8000/v1""",
    sort_key=0,
)
def preview(
    images: str,
    /,
    *,
    n: PositiveInt = 20,
    max_images: PositiveInt = 500,
    output: Annotated[str | None, Parameter(alias="-o")] = None,
    config: ConfigFile = None,
    columns: Columns | None = None,
    settings: Flags | None = None,
    device: Device = None,
    common: Common | None = None,
) -> Report:
    """Show a few triplets: captions, the LLM's raw answers, what is read from them, and why rows are dropped.

    Only these questions are asked and paid for.

    Args:
        images: Folder of images, or a dataset as PATH[:CONFIG].
        n: Number of image pairs, drawn at random.
        max_images: The pairs are looked for among the first so many images.
        output: Folder of a later `hycir syncir run`, which does not ask these questions again.
        config: YAML file of settings. A flag replaces the file's value.
    """
    chosen = SynCirConfig.from_yaml(config, **(settings or {}))
    rows = hycir_hf.syncir.preview_triplets(
        _open_source(images, columns),
        chosen,
        n=n,
        max_images=max_images,
        output=output,
        device=device or default_device(),
    )
    kept = sum(row["dropped"] is None for row in rows)
    return Report({"kept": kept, "rows": rows}, [*_preview_lines(rows), f"{kept} of {len(rows)} triplets are kept."])


@app.command(
    help_epilogue="""\
Example:
  hycir syncir refilter triplets --threshold 0.8""",
    sort_key=3,
)
def refilter(
    triplets: str,
    /,
    *,
    threshold: float | None = None,
    composed_threshold: float | None = None,
    caption_threshold: float | None = None,
    query_threshold: float | None = None,
    common: Common | None = None,
) -> Report:
    """Filter finished triplets again with other thresholds. Nothing is computed or asked again.

    Args:
        triplets: Folder that `hycir syncir run` made.
        threshold: Lowest similarity that is kept, in [-1, 1].
        composed_threshold: Lowest similarity of the composed query with the target image.
        caption_threshold: Lowest similarity of a caption with its own image.
        query_threshold: Lowest gain of the query text's similarity from the reference image to the target image.
    """
    given = {
        "similarity": threshold,
        "composed_similarity": composed_threshold,
        "caption_similarity": caption_threshold,
        "query_gain": query_threshold,
    }
    thresholds = {name: value for name, value in given.items() if value is not None}
    if not thresholds:
        raise ParameterError("Give a threshold.", "threshold")
    return _report(triplets, hycir_hf.syncir.refilter(triplets, thresholds))


def _open_run(
    images: str,
    output: str,
    config: Path | None,
    columns: Columns | None,
    settings: dict[str, Any] | None,
    device: str | None,
) -> "SynCirRun":
    chosen = SynCirConfig.from_yaml(config, **(settings or {}))  # all complaints, before torch is loaded
    source = _open_source(images, columns)
    return hycir_hf.syncir.SynCirRun(source, output, chosen, device=device or default_device())


def _open_source(images: str, columns: Columns | None) -> Any:
    columns = columns or Columns()
    return hycir_hf.images.open_source(images, columns.split, columns.image_column, columns.id_column)


def _preview_lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What led to each triplet; texts of others are escaped."""
    for number, row in enumerate(rows, 1):
        yield shown(f"{number}  {row['reference_id']} -> {row['target_id']}")
        similarity = "" if row["similarity"] is None else f"similarity {row['similarity']:.4f}"
        for name, value in (
            ("reference", row["reference_caption"]),
            ("target", row["target_caption"]),
            ("answer", textwrap.shorten(shown(row["answer"]), _SHOWN_CHARACTERS)),
            ("query text", row["query_text"]),
            ("kept" if row["dropped"] is None else "dropped", row["dropped"] or similarity),
        ):
            yield f"   {name:10}  {shown(value)}"
        yield ""


def _report(output: str, recipe: dict[str, Any]) -> Report:
    rows, share = hycir_hf.syncir.count_rows(recipe), hycir_hf.syncir.share_kept(recipe)
    values = {"output": output, "counts": recipe["counts"], "thresholds": recipe["thresholds"], "share_kept": share}
    width = max(len(name) for name, _ in rows)
    lines = [
        *(f"{name:{width}}  {count:>12}" for name, count in rows),
        "\nsimilarity",
        *recipe["histogram"],
        f"\nThe filter kept {100 * share:.1f}% of the triplets with a query text.",
        f"Report: {Path(output) / 'report.html'}",
    ]
    return Report(values, lines)
