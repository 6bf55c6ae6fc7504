"""GeneCIS (Vaze et al., CVPR 2023): four tasks; each query has a gallery of its own.

Folder: DIR/genecis/TASK.json, DIR/val2017/*.jpg of COCO, DIR/VG_100K_all/*.jpg of Visual Genome 1.2.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .annotations import Parts, bad_entry, check_part, entries, find_annotations, query_row
from .types import Benchmark, BenchmarkPart, ImageRegion, SubmissionFile

GENECIS_TASKS = ("focus_attribute", "change_attribute", "focus_object", "change_object")
GENECIS_DILATION = 0.7

GENECIS = Benchmark(
    name="genecis",
    title="GeneCIS",
    metric="R",
    ranks=(),
    splits=("val",),
    subset_ranks=(1, 2, 3),
    averages_parts=True,
    submissions=(SubmissionFile("genecis_{split}.json", 3, ranks_subset=True),),
)


def read(directory: Path, split: str, benchmark: Benchmark, with_images: bool) -> Parts:
    """Each query has a gallery of its own: the target and ten or so others (the file's key "gallery")."""
    parts = []
    images: dict[str, Any] = {}
    for task in GENECIS_TASKS:
        path = find_annotations(directory / "genecis", f"{task}.json")
        image_of = _genecis_region if task.endswith("attribute") else _genecis_whole
        queries = []
        used: dict[str, Any] = {}
        keys = {"reference": dict, "target": dict, "gallery": list, "condition": str}
        for number, entry in entries(path, keys):
            try:
                shown = [image_of(directory, one) for one in (entry["reference"], entry["target"], *entry["gallery"])]
            except (KeyError, TypeError, ValueError) as error:
                keys_there = repr(entry["reference"])[:80]
                raise bad_entry(path, str(number), "images with id and box", f"{keys_there} ({error!r})") from error
            (reference, _), *others = shown
            candidates = list(dict.fromkeys(id_ for id_, _ in others))
            targets = [others[0][0]]
            queries.append(query_row(f"{task}-{number}", reference, entry["condition"], targets, candidates, split))
            used |= dict(shown)
        part = BenchmarkPart(task, queries, list(used))
        check_part(part, path, path)
        parts.append(part)
        images |= used
    return parts, images if with_images else {}


def _genecis_whole(directory: Path, image: Mapping[str, Any]) -> tuple[str, Path]:
    """Find an image of COCO's val2017."""
    name = f"{int(image['val_image_id']):012d}"
    return f"coco/{name}", directory / "val2017" / f"{name}.jpg"


def _genecis_region(directory: Path, image: Mapping[str, Any]) -> tuple[str, ImageRegion]:
    """Cut an object out of an image of Visual Genome, with some of its surroundings, padded to a square."""
    left, top, width, height = (float(side) for side in image["instance_bbox"])
    path = directory / "VG_100K_all" / f"{int(image['image_id'])}.jpg"
    id_ = f"vg/{path.stem}@{left:g},{top:g},{width:g},{height:g}"
    return id_, ImageRegion(path, (left, top, width, height), GENECIS_DILATION)
