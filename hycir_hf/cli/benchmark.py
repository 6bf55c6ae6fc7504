"""`hycir benchmark`: your own benchmark. Subcommand: make."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from cyclopts.types import PositiveInt

import hycir_hf

from ..files import write_text
from ..settings import ParameterError, read_config
from ..syncir.config import SynCirConfig
from .models import default_device
from .options import Common, Device, OutputFile, Report, flags_of

if TYPE_CHECKING:
    Flags = dict[str, Any]
else:
    Flags = flags_of(SynCirConfig)

app = App(
    name="benchmark", help_epilogue="Example:\n  hycir benchmark make gallery --n 200 --output queries.csv --llm NAME"
)


@app.command(
    help_epilogue="""\
Examples:
  hycir benchmark make gallery --n 200 --output queries.csv \\
      --html queries.html --llm NAME --base-url http://127.0.0.1:8000/v1
  hycir benchmark make gallery --output queries.csv --triplets triplets"""
)
def make(
    gallery: str,
    /,
    *,
    output: Annotated[str, Parameter(alias="-o")],
    n: Annotated[PositiveInt, Parameter(name="--n")] = 200,
    triplets: str | None = None,
    html: OutputFile = None,
    config: Annotated[Path | None, Parameter(alias="-c")] = None,
    settings: Flags | None = None,
    device: Device = None,
    common: Common | None = None,
) -> Report:
    """Draft your own benchmark from SynCir's triplets: a table for you to correct in a spreadsheet.

    Correct the query texts, add further targets to target_ids (with | between them), and delete bad rows.

    Args:
        gallery: Folder that `hycir index` made. Its images are searched.
        output: CSV file for the queries. An existing file is never replaced.
        n: Number of queries.
        triplets: Folder of finished triplets, or a table of them. By default SynCir makes about twice as many as
            queries from the gallery's images, in a folder named after the CSV file.
        html: Write a page that shows each query with its images to this file.
        config: YAML file of SynCir's settings. A flag replaces the file's value.
    """
    if Path(output).exists():
        raise ParameterError(f"{output} exists, and may hold your corrections. Give another file.", "output")
    if Path(output).suffix.lower() != ".csv":
        raise ParameterError(f"{output} must end in .csv.", "output")
    given = {**(read_config(config) if config else {}), **(settings or {})}
    if triplets and given:
        raise ParameterError("SynCir's settings change nothing if triplets are given. Leave them out.", "triplets")
    facts, evaluation = hycir_hf.Gallery.load(gallery), hycir_hf.evaluation
    folder = Path(triplets or f"{Path(output).with_suffix('')}-triplets")
    images = hycir_hf.retrieval.open_gallery_images(facts, gallery)
    if triplets is None and facts.source is not None:
        source = hycir_hf.images.sources.source_from_record(facts.source, Path(gallery))
        chosen = SynCirConfig.from_yaml(None, **{"store_images": "reference", "max_pairs": 2 * n, **given})
        hycir_hf.syncir.SynCirRun(source, folder, chosen, device=device or default_device()).run()
    table = folder / "triplets.parquet" if folder.is_dir() else folder
    if triplets is None and not table.exists():
        raise ValueError(f"SynCir kept no triplet. {folder / 'report.html'} says why.")
    rows = evaluation.read_rows(table)
    queries = evaluation.draft_queries([dict(row) for _, row in rows], facts.ids, n, given.get("seed", 0))
    evaluation.write_table(queries, output)
    lines = [f"{len(queries)} queries: {output}. Correct it before you trust its figures."]
    if len(queries) < n:
        lines.append(f"There are no more triplets of this gallery: {n} queries were asked for.")
    if html is not None:
        write_text(html, _render(queries, images, Path(output).name))
        lines.append(f"Page: {html}")
    return Report({"queries": len(queries), "output": output, "triplets": str(folder), "html": html}, lines)


def _render(queries: list[dict[str, Any]], images: Any, title: str) -> str:
    """A page with each query's images, to look at while its row is corrected."""
    from ..reports.pages import PageQuery, PageResult, render_search_page

    shown = [
        PageQuery(
            [images.load(id_) for id_ in query["reference_id"]],
            query["query_text"],
            [PageResult(id_, query.get("similarity"), images.load(id_), True) for id_ in query["target_ids"]],
            f"{query['query_id']}, row {row}",
            ", ".join(query["reference_id"]),
        )
        for row, query in enumerate(queries, start=2)
    ]
    intro = "A draft to be corrected in a spreadsheet: each query with its reference and its target."
    footer = "A score is the similarity by which SynCir kept the triplet."
    return render_search_page(shown, title, intro, footer=footer)
