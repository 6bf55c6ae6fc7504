"""CIRR (Liu et al., ICCV 2021): composed queries on photographs of everyday scenes, with subsets of six.

Folder: DIR/cirr/captions/cap.rc2.SPLIT.json, DIR/cirr/image_splits/split.rc2.SPLIT.json, DIR/dev/*.png and
DIR/test1/*.png, or the same without the folder `cirr/`. Protocol: the reference is left out of each ranking.
"""

from collections.abc import Mapping
from pathlib import Path

from .annotations import Parts, bad_entry, check_part, entries, find_annotations, query_row, read_annotations
from .types import Benchmark, BenchmarkPart, SubmissionFile

CIRR = Benchmark(
    name="cirr",
    title="CIRR",
    metric="R",
    ranks=(1, 5, 10, 50),
    splits=("val", "test1"),
    leaves_reference_out=True,
    subset_ranks=(1, 2, 3),
    averages_ranks=True,
    # cirr.cecs.anu.edu.au: the 50 best of each query, the 3 best of its subset, 5 MB a file.
    submissions=(
        SubmissionFile("cirr_{split}_recall.json", 50, {"version": "rc2", "metric": "recall"}, max_bytes=5_000_000),
        SubmissionFile(
            "cirr_{split}_recall_subset.json",
            3,
            {"version": "rc2", "metric": "recall_subset"},
            ranks_subset=True,
            max_bytes=5_000_000,
        ),
    ),
)


def read(directory: Path, split: str, benchmark: Benchmark, with_images: bool) -> Parts:
    """Read CIRR; the subset of a query is its `img_set` without the reference."""
    root = directory / "cirr" if (directory / "cirr" / "captions").is_dir() else directory
    split_path = find_annotations(root / "image_splits", f"split.rc2.{split}.json")
    places = read_annotations(split_path, dict)
    for id_, place in places.items():
        if not isinstance(place, str):
            raise bad_entry(split_path, repr(id_), "a relative path", repr(place))
    path = find_annotations(root / "captions", f"cap.rc2.{split}.json")
    keys = {"pairid": int, "reference": str, "caption": str, "img_set": dict}
    queries = []
    for number, entry in entries(path, keys | ({"target_hard": str} if split == "val" else {})):
        members = entry["img_set"].get("members")
        if not isinstance(members, list):
            raise bad_entry(path, str(number), "img_set with the list 'members'", repr(entry["img_set"])[:80])
        subset = [member for member in members if member != entry["reference"]]
        targets = [entry["target_hard"]] if "target_hard" in entry else []
        if len(set(members)) != len(members) or not set(targets) <= set(members):
            raise bad_entry(path, str(number), "each member once, the target among them", repr(members)[:80])
        if len(subset) < max(benchmark.subset_ranks):
            raise bad_entry(path, str(number), f"{max(benchmark.subset_ranks)} members or more", repr(members)[:80])
        queries.append(query_row(entry["pairid"], entry["reference"], entry["caption"], targets, subset, split))
    part = BenchmarkPart("all", queries, list(places))
    check_part(part, path, split_path)
    images = directory if (directory / "cirr" / "captions").is_dir() else _image_root(directory, places)
    return [part], {id_: images / place for id_, place in places.items()} if with_images else {}


def _image_root(directory: Path, places: Mapping[str, str]) -> Path:
    """Where CIRR's folders `dev` and `test1` lie: beside the annotations or one folder up."""
    first = next(iter(places.values()), "")
    is_above = not (directory / first).exists() and (directory.parent / first).exists()
    return directory.parent if is_above else directory
