"""`hycir index`: images into a gallery."""

import sys
from pathlib import Path
from typing import Literal

from cyclopts import App
from cyclopts.types import PositiveInt
from tqdm import tqdm

import hycir_hf

from .models import load_model
from .options import Columns, Common, Device, Model, OutputFolder, Report, shown

app = App(
    name="index",
    help_epilogue="""\
If the command is interrupted, run it again to resume.

Examples:
  hycir index photos --model path/to/model --output gallery
  hycir index path/to/data:images --split test --model OWNER/MODEL \\
      --output gallery --kind hnsw""",
)


@app.default
def index(
    images: str,
    /,
    *,
    model: Model,
    output: OutputFolder,
    batch_size: PositiveInt = 64,
    kind: Literal["flat", "sq8", "hnsw", "ivf_flat", "ivf_pq"] = "flat",
    columns: Columns | None = None,
    device: Device = None,
    common: Common | None = None,
) -> Report:
    """Encode images into a gallery that can be searched.

    Args:
        images: Folder of images, or a dataset as PATH[:CONFIG].
        model: HyCIR model: folder or Hub id.
        output: Folder of the gallery. An existing gallery is replaced.
        batch_size: Images that are encoded at once.
        kind: Index type. flat is exact, the others are smaller or faster.
    """
    columns = columns or Columns()
    source = hycir_hf.images.open_source(images, columns.split, columns.image_column, columns.id_column)
    report = hycir_hf.retrieval.index_images(
        *load_model(model, device),
        source,
        output,
        batch_size=batch_size,
        kind=kind,
        model_path=str(Path(model).resolve()) if Path(model).exists() else model,
        on_skip=_print_skip,
    )
    rate = report.num_encoded / max(report.seconds, 1e-9)
    values = {
        "gallery": output,
        "count": len(report.gallery),
        "dim": report.gallery.dim,
        "kind": kind,
        "encoded": report.num_encoded,
        "resumed": report.num_resumed,
        "skipped": [{"image_id": id_, "reason": reason} for id_, reason in report.skipped],
        "images_per_second": round(rate, 1),
    }
    lines = [f"{len(report.gallery)} images in {output} ({rate:.1f} images/s, index type {kind})"]
    if report.num_resumed:
        lines.append(f"{report.num_resumed} of them were encoded by an earlier run")
    if report.skipped:
        lines.append(f"Skipped as unreadable: {len(report.skipped)}")
    return Report(values, lines)


def _print_skip(image_id: str, reason: str) -> None:
    tqdm.write(f"hycir index: skipped {shown(image_id)}: {shown(reason)}", file=sys.stderr)
