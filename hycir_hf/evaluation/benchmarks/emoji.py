"""The emoji benchmark of this repository (examples/emoji/data).

Folder: DIR/queries/SPLIT.parquet, DIR/images/*.parquet.
"""

from pathlib import Path

import pyarrow.parquet as pq

from .annotations import Parts, check_part, find_annotations
from .types import Benchmark, BenchmarkPart, SubmissionFile

EMOJI_VENDORS = {
    "training_vendor": ("noto",),
    "heldout_vendor": ("twemoji",),
    "mixed": ("noto", "openmoji", "fluent-3d", "twemoji"),
}
"""Part of the emoji benchmark -> the vendors whose images are its gallery."""
_SECOND_VENDOR = "openmoji"  # draws the second reference of the parts with two
_TWO_REFERENCES = "_two_references"

EMOJI = Benchmark(
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


def read(directory: Path, split: str, benchmark: Benchmark, with_images: bool) -> Parts:
    """Read the emoji benchmark, with a part of two references for each part whose vendors allow it."""
    path = find_annotations(directory / "queries", f"{split}.parquet")
    rows = pq.read_table(path).to_pylist()
    files = sorted((directory / "images").glob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"There are no Parquet files in {directory / 'images'}. Check the path.")
    columns = ["image_id", "vendor", "name", *(["image"] if with_images else [])]
    drawn = {row["image_id"]: row for file in files for row in pq.read_table(file, columns=columns).to_pylist()}
    by_name = {row["name"]: id_ for id_, row in drawn.items() if row["vendor"] == _SECOND_VENDOR}
    parts = []
    for name, vendors in EMOJI_VENDORS.items():
        queries = [row for row in rows if row["part"] == name]
        gallery_ids = [id_ for id_, row in drawn.items() if row["vendor"] in vendors]
        part = BenchmarkPart(name, queries, gallery_ids)
        check_part(part, path, directory / "images")
        parts.append(part)
        if _SECOND_VENDOR not in vendors:
            with_second = [
                query | {"query_id": query["query_id"] + "+", "further_reference_ids": [second]}
                for query in queries
                if (second := by_name.get(drawn[query["reference_id"]]["name"])) is not None
            ]
            parts.append(BenchmarkPart(name + _TWO_REFERENCES, with_second, gallery_ids))
    if not with_images:
        return parts, {}
    return parts, {id_: {"bytes": row["image"]["bytes"], "name": row["name"]} for id_, row in drawn.items()}
