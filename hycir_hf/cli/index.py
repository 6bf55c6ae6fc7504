"""`hycir index`: images into a gallery."""

import sys
from typing import Literal

from cyclopts import App
from cyclopts.types import PositiveInt
from tqdm import tqdm

import hycir_hf

from .models import quiet
from .options import Columns, Common, Device, Model, OutputFolder, Report, shown, some

app = App(
    name="index",
    help_epilogue="""\
If the command is interrupted, run it again to resume. Run it again after you
added, changed or removed images, too.

Examples:
  hycir index photos --model path/to/model --output gallery
  hycir index path/to/data:images --split test --model OWNER/MODEL \\
      --output gallery --index-type hnsw""",
)


@app.default
def index(
    images: str,
    /,
    *,
    model: Model,
    output: OutputFolder,
    batch_size: PositiveInt = 64,
    index_type: Literal["flat", "sq8", "hnsw", "ivf_flat", "ivf_pq"] = "flat",
    columns: Columns | None = None,
    device: Device = None,
    common: Common | None = None,
) -> Report:
    """Encode images into a gallery that can be searched. Only new and changed images are encoded.

    Args:
        images: Folder of images, .tar shards, a .tsv, or a dataset as PATH[:CONFIG]; or a folder that features made.
        model: HyCIR model: folder or Hub id.
        output: Folder of the gallery. An existing gallery is replaced.
        batch_size: Images that are encoded at once.
        index_type: flat is exact, the others are smaller or faster.
    """
    quiet()
    columns = columns or Columns()
    source = hycir_hf.retriever.open_for_index(images, **vars(columns))
    retriever = hycir_hf.ImageRetriever.from_pretrained(model, device)
    report = retriever.index(source, output, index_type=index_type, batch_size=batch_size, on_skip=_print_skip)
    rate = report.num_encoded / max(report.seconds, 1e-9)
    values = {
        "gallery": output,
        "count": len(report.gallery),
        "dim": report.gallery.dim,
        "index_type": index_type,
        "encoded": report.num_encoded,
        "reused": report.num_reused,
        "skipped": [{"image_id": id_, "reason": reason} for id_, reason in report.skipped],
        "images_per_second": round(rate, 1),
    }
    lines = [f"{len(report.gallery)} images in {output}, index type {index_type}"]
    lines.append(f"{report.num_encoded} encoded now ({rate:.1f} images/s), {report.num_reused} encoded before")
    if report.skipped:
        lines.append(f"Skipped as unreadable: {len(report.skipped)} ({some([id_ for id_, _ in report.skipped])})")
    return Report(values, lines)


def _print_skip(image_id: str, reason: str) -> None:
    tqdm.write(f"hycir index: skipped {shown(image_id)}: {shown(reason)}", file=sys.stderr)
