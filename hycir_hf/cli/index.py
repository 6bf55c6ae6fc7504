"""`hycir index`: images into a gallery."""

import sys
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.types import PositiveInt
from tqdm import tqdm

import hycir_hf

from ..files import write_text
from .main import DONE, INCOMPLETE
from .models import quiet
from .options import Columns, Common, Device, Model, OutputFile, OutputFolder, Report, Switch, shown, some

if TYPE_CHECKING:
    from ..retrieval import IndexReport

_SHOWN_REASONS = 20

app = App(
    name="index",
    help_epilogue="""\
If the command is interrupted, run it again to resume. Run it again after you
added, changed or removed images, too.

Files of more than 250 megapixels are skipped. Set the environment variable
HYCIR_MAX_MEGAPIXELS for another limit.

Examples:
  hycir index photos --model path/to/model --output gallery --strict
  hycir index 'shards/{00000..00331}.tar' --model OWNER/MODEL --output gallery
  hycir index path/to/data:images --split test --model OWNER/MODEL \\
      --output gallery --index-type hnsw""",
)


@app.default
def index(
    images: Annotated[list[str], Parameter(negative=())],
    /,
    *,
    model: Model,
    output: OutputFolder,
    batch_size: PositiveInt = 64,
    index_type: Literal["flat", "sq8", "hnsw", "ivf_flat", "ivf_pq"] = "flat",
    skipped: OutputFile = None,
    strict: Switch = False,
    columns: Columns | None = None,
    device: Device = None,
    common: Common | None = None,
) -> Report:
    """Encode images into a gallery that can be searched. Only new and changed images are encoded.

    Args:
        images: Folder of images, .tar shards (several, or a pattern), a .tsv, or a dataset as PATH[:CONFIG]; or a
            folder that features made.
        model: HyCIR model: folder or Hub id.
        output: Folder of the gallery. An existing gallery is replaced.
        batch_size: Images that are encoded at once.
        index_type: flat is exact, the others are smaller or faster.
        skipped: Write the images that were skipped, with the reasons, to this file (tab-separated).
        strict: Exit with status 3 if an image was skipped.
    """
    quiet()
    columns = columns or Columns()
    source = hycir_hf.retriever.open_for_index(images, **vars(columns))
    retriever = hycir_hf.ImageRetriever.from_pretrained(model, device)
    report = retriever.index(source, output, index_type=index_type, batch_size=batch_size, on_skip=print_skip)
    return index_report(output, report, index_type, skipped, strict)


def index_report(gallery: str, report: "IndexReport", index_type: str, skipped: str | None, strict: bool) -> Report:
    """Report what became of the images, and write the skipped ones to a file."""
    rate = report.num_encoded / max(report.seconds, 1e-9)
    counts = {name: len(getattr(report, name)) for name in ("added", "changed", "removed")} | {"kept": report.kept}
    values = {
        "gallery": gallery,
        "count": len(report.gallery),
        "dim": report.gallery.dim,
        "index_type": index_type,
        **counts,
        "encoded": report.num_encoded,
        "reused": report.num_reused,
        "skipped": [{"image_id": id_, "reason": reason} for id_, reason in report.skipped],
        "images_per_second": round(rate, 1),
    }
    lines = [
        f"{len(report.gallery)} images in {gallery}, index type {index_type}",
        ", ".join(f"{count} {name}" for name, count in counts.items()) + f", {len(report.skipped)} skipped",
        f"{report.num_encoded} encoded now ({rate:.1f} images/s), {report.num_reused} encoded before",
        *_skipped_lines(report.skipped),
    ]
    if skipped:
        write_text(skipped, "".join(f"{shown(id_)}\t{shown(reason)}\n" for id_, reason in report.skipped))
        lines.append(f"List of the skipped images: {skipped}")
    return Report(values, lines, INCOMPLETE if strict and report.skipped else DONE)


def _skipped_lines(skipped: list[tuple[str, str]]) -> list[str]:
    """Skipped images, those with the same reason in one line; the first reasons only."""
    by_reason: dict[str, list[str]] = {}
    for id_, reason in skipped:
        by_reason.setdefault(reason, []).append(id_)
    lines = [f"  skipped {len(ids)}: {some(ids)}: {shown(reason)}" for reason, ids in by_reason.items()]
    more = (
        [f"  and {len(lines) - _SHOWN_REASONS} more; --skipped FILE lists all"] if len(lines) > _SHOWN_REASONS else []
    )
    return lines[:_SHOWN_REASONS] + more


def print_skip(image_id: str, reason: str) -> None:
    """Name a skipped image while the others are encoded."""
    tqdm.write(f"hycir index: skipped {shown(image_id)}: {shown(reason)}", file=sys.stderr)
