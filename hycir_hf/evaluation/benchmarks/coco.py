"""Pic2Word's object composition on COCO (Saito et al., CVPR 2023).

Folder: DIR/coco/coco_eval.csv, DIR/coco/val2017/*.jpg, DIR/coco/val2017_masked/*.jpg.
"""

import csv
from pathlib import Path
from typing import Any

from .annotations import Parts, bad_entry, check_part, find_annotations, query_row
from .types import Benchmark, BenchmarkPart, ImageRegion, SubmissionFile

COCO = Benchmark(
    name="coco",
    title="COCO object composition",
    metric="R",
    ranks=(1, 5, 10, 50),
    splits=("val",),
    prompt="a photo of {image} and {text}",
    text_prompt="a photo of {text}",
    submissions=(SubmissionFile("coco_{split}.json", 50),),
)


def read(directory: Path, split: str, benchmark: Benchmark, with_images: bool) -> Parts:
    """The reference is one object of an image on white, the text names the others, the target is the whole image."""
    root = directory / "coco"
    path = find_annotations(root, "coco_eval.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    header = ["id", "query_regions", "query_class", "classes"]
    if not rows or rows[0] != header:
        raise bad_entry(path, "0", f"the columns {header}", repr(rows[:1]))
    queries = []
    images: dict[str, Any] = {}
    for number, row in enumerate(rows[1:]):
        # prepare_data.py writes an image that it found no region in without the end of its line: it is no query.
        *needless, name, region, name_of_class, classes = row if len(row) >= len(header) else [""] * len(header)
        sides = region.split(";")
        if not name.endswith(".jpg") or not all(one.endswith(".jpg") for one in needless) or len(sides) != 4:
            raise bad_entry(path, str(number), "FILE.jpg,x1;y1;x2;y2,class,class;class", ",".join(row))
        try:
            left, top, right, bottom = (int(float(side)) for side in sides)
        except ValueError as error:
            raise bad_entry(path, str(number), "a region in numbers", region) from error
        # Paper: Pic2Word's prompt is "a photo of * and {class} and {others}", ending in "and" where there are none.
        text = " and ".join([name_of_class, *classes.split(";")])
        queries.append(query_row(name.removesuffix(".jpg"), f"region/{name}", text, [name], (), split))
        box = (left, top, right - left, bottom - top)
        images[f"region/{name}"] = ImageRegion(root / "val2017_masked" / name, box, pads=False)
        images[name] = root / "val2017" / name
    part = BenchmarkPart("all", queries, [query["target_ids"][0] for query in queries])
    check_part(part, path, path, has_references=False)
    return [part], images if with_images else {}
