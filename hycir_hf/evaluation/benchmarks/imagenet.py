"""Pic2Word's domain conversion on ImageNet and ImageNet-R (Saito et al., CVPR 2023).

Folder: DIR/imgnet/imgnet_real_query.txt, DIR/imgnet/imgnet_targets.txt, DIR/imgnet/*/*.
"""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from .annotations import Parts, bad_entry, find_annotations, query_row
from .types import Benchmark, BenchmarkPart, SubmissionFile

IMAGENET_DOMAINS = ("cartoon", "origami", "toy", "sculpture")

IMAGENET = Benchmark(
    name="imagenet",
    title="ImageNet domain conversion",
    metric="share",
    ranks=(10, 50),
    splits=("val",),
    averages_parts=True,
    prompt="{text} {image}",
    submissions=(SubmissionFile("imagenet_{split}.json", 50),),
)


def read(directory: Path, split: str, benchmark: Benchmark, with_images: bool) -> Parts:
    """Each photograph asks for its class in each of four domains; a target's label is class + 1000 x domain."""
    path, target_path = (
        find_annotations(directory / "imgnet", f"imgnet_{name}.txt") for name in ("real_query", "targets")
    )
    targets_of: dict[int, list[str]] = defaultdict(list)
    gallery_ids = []
    for id_, label in _labelled_images(target_path):
        targets_of[label].append(id_)
        gallery_ids.append(id_)
    photographs = list(_labelled_images(path))
    parts = []
    for number, domain in enumerate(IMAGENET_DOMAINS):
        queries = [
            query_row(f"{domain}-{row}", id_, f"a {domain} of", targets_of.get(label + 1000 * number, ()), (), split)
            for row, (id_, label) in enumerate(photographs)
        ]
        parts.append(BenchmarkPart(domain, queries, gallery_ids))
    ids = dict.fromkeys([*gallery_ids, *(id_ for id_, _ in photographs)])
    return parts, {id_: directory / id_ for id_ in ids} if with_images else {}


def _labelled_images(path: Path) -> Iterable[tuple[str, int]]:
    """Lines of a relative path, a blank and a label."""
    seen: set[str] = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        id_, _, label = line.strip().rpartition(" ")
        if not id_ or not label.isdecimal():
            raise bad_entry(path, str(number), "a path, a blank and a label", repr(line))
        if id_ in seen:
            raise bad_entry(path, str(number), "each image once", f"{id_!r} again")
        seen.add(id_)
        yield id_, int(label)
