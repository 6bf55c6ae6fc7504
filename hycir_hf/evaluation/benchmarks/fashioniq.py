"""FashionIQ (Wu et al., CVPR 2021): dresses, shirts and tops, in the four protocols that papers use.

Folder: DIR/captions/cap.CATEGORY.val.json, DIR/image_splits/split.CATEGORY.val.json, DIR/images/*.png or *.jpg.
"""

from pathlib import Path
from typing import Any

from .annotations import (
    Parts,
    bad_entry,
    check_part,
    entries,
    find_annotations,
    first_repeated,
    query_row,
    read_annotations,
)
from .types import Benchmark, BenchmarkPart, SubmissionFile

FASHIONIQ_CATEGORIES = ("dress", "shirt", "toptee")


def _fashioniq(name: str, gallery: str, captions: str) -> Benchmark:
    galleries = {"split": "the split's gallery", "union": "val's references and targets as gallery"}
    return Benchmark(
        name=name,
        title=f"FashionIQ ({galleries[gallery]}, captions {captions})",
        metric="R",
        ranks=(10, 50),
        splits=("val",),
        averages_parts=True,
        options={"gallery": gallery, "captions": captions},
        submissions=(SubmissionFile(name + "_{split}.json", 50),),
    )


FASHIONIQ = (
    _fashioniq("fashioniq", gallery="split", captions="averaged"),
    _fashioniq("fashioniq-joined", gallery="split", captions="joined"),
    _fashioniq("fashioniq-union", gallery="union", captions="averaged"),
    _fashioniq("fashioniq-union-joined", gallery="union", captions="joined"),
)


def read(directory: Path, split: str, benchmark: Benchmark, with_images: bool) -> Parts:
    """Read FashionIQ; its two captions become one text, or two whose features are averaged."""
    parts = []
    for category in FASHIONIQ_CATEGORIES:
        path = find_annotations(directory / "captions", f"cap.{category}.{split}.json")
        split_path = find_annotations(directory / "image_splits", f"split.{category}.{split}.json")
        queries = []
        # FashionIQ's file calls the reference "candidate".
        for number, entry in entries(path, {"candidate": str, "target": str, "captions": list}):
            texts = _join_captions(entry["captions"], benchmark.options["captions"])
            if not texts:
                raise bad_entry(path, str(number), "two captions", repr(entry["captions"]))
            query = query_row(f"{category}-{number}", entry["candidate"], texts[0], [entry["target"]], (), split)
            queries.append(query | {"other_texts": texts[1:]})
        gallery_ids = read_annotations(split_path, list)
        twice = first_repeated(gallery_ids)
        if twice is not None:
            raise bad_entry(split_path, repr(twice), "each image once", "it twice")
        part = BenchmarkPart(category, queries, gallery_ids)
        check_part(part, path, split_path)
        if benchmark.options["gallery"] == "union":
            used = {id_ for query in queries for id_ in (query["reference_id"], *query["target_ids"])}
            part = BenchmarkPart(category, queries, [id_ for id_ in gallery_ids if id_ in used])
        parts.append(part)
    if not with_images:
        return parts, {}
    images = directory / "images"
    suffix_of = {path.stem: path for path in images.glob("*") if path.suffix in (".png", ".jpg", ".jpeg")}
    return parts, {id_: suffix_of.get(id_, images / f"{id_}.png") for part in parts for id_ in part.gallery_ids}


def _join_captions(captions: list[Any], way: str) -> list[str]:
    """FashionIQ's two captions as one text, or as two whose features are averaged; empty where they are not two."""
    if len(captions) != 2 or not all(isinstance(caption, str) for caption in captions):
        return []
    if way == "joined":  # Pic2Word: the second caption first
        return [f"{captions[1]} and {captions[0]}"]
    first, second = (caption.strip(".?, ") for caption in captions)  # SEARLE: both orders, features averaged
    return [f"{first} and {second}", f"{second} and {first}"]
