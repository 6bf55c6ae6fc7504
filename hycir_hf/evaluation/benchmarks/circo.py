"""CIRCO (Baldrati et al., ICCV 2023): several targets a query, among 123,403 images of COCO.

Folder: DIR/annotations/SPLIT.json, DIR/COCO2017_unlabeled/annotations/image_info_unlabeled2017.json,
DIR/COCO2017_unlabeled/unlabeled2017/*.jpg. Protocol: the reference stays; mAP@K is divided by min(targets, K). As its
server does, it also reports R@K of the one target that the text was written for, and mAP@10 by semantic aspect.
"""

from pathlib import Path
from typing import Any

from .annotations import Parts, bad_entry, check_part, entries, find_annotations, query_row, read_annotations
from .types import Benchmark, BenchmarkPart, SubmissionFile

CIRCO = Benchmark(
    name="circo",
    title="CIRCO",
    metric="mAP",
    ranks=(5, 10, 25, 50),
    splits=("val", "test"),
    first_target_ranks=(5, 10, 25, 50),
    aspect_rank=10,
    submissions=(SubmissionFile("circo_{split}.json", 50, has_integer_ids=True),),
)


def read(directory: Path, split: str, benchmark: Benchmark, with_images: bool) -> Parts:
    """Read CIRCO; ids are COCO's, as texts."""
    path = find_annotations(directory / "annotations", f"{split}.json")
    keys = {"id": int, "reference_img_id": int, "relative_caption": str}
    queries = []
    for number, entry in entries(path, keys | ({"gt_img_ids": list, "target_img_id": int} if split == "val" else {})):
        targets = entry.get("gt_img_ids", [])
        if split == "val" and (entry["target_img_id"] not in targets or len(set(targets)) != len(targets)):
            raise bad_entry(path, str(number), "target_img_id among gt_img_ids, each once", repr(targets)[:80])
        targets = sorted(targets, key=lambda id_: id_ != entry.get("target_img_id"))  # that one first
        caption = entry["relative_caption"]
        row = query_row(entry["id"], str(entry["reference_img_id"]), caption, map(str, targets), (), split)
        queries.append(row | {"semantic_aspects": entry.get("semantic_aspects", [])})
    coco = directory / "COCO2017_unlabeled"
    info_path = coco / "annotations" / "image_info_unlabeled2017.json"
    images: dict[str, Any] = {}
    if info_path.is_file():
        images = read_annotations(info_path, dict).get("images")
        if not isinstance(images, list):
            raise bad_entry(info_path, "'images'", "a list", repr(images)[:80])
        for number, image in enumerate(images):
            if not isinstance(image, dict) or not {"id", "file_name"} <= image.keys():
                raise bad_entry(info_path, f"{number} of 'images'", "an object with id and file_name", repr(image)[:80])
        images = {str(image["id"]): coco / "unlabeled2017" / image["file_name"] for image in images}
    elif with_images:
        found = sorted(path for path in (coco / "unlabeled2017").glob("*.jpg") if path.stem.isdecimal())
        if not found:
            raise FileNotFoundError(
                f"There are no images of COCO's unlabeled2017 in {coco / 'unlabeled2017'}, and no {info_path}. "
                "Download both from cocodataset.org."
            )
        images = {str(int(image.stem)): image for image in found}
    part = BenchmarkPart("all", queries, list(images))
    check_part(part, path, info_path if info_path.is_file() else coco / "unlabeled2017")
    return [part], images if with_images else {}
