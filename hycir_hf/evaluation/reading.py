"""Reading the benchmarks' official files, in their official folders, as QUERY rows and galleries.

CIRR       DIR/cirr/captions/cap.rc2.SPLIT.json, DIR/cirr/image_splits/split.rc2.SPLIT.json, DIR/dev/*.png
           (or without the folder `cirr/`)
CIRCO      DIR/annotations/SPLIT.json, DIR/COCO2017_unlabeled/annotations/image_info_unlabeled2017.json,
           DIR/COCO2017_unlabeled/unlabeled2017/*.jpg
FashionIQ  DIR/captions/cap.CATEGORY.val.json, DIR/image_splits/split.CATEGORY.val.json, DIR/images/*.png or *.jpg
GeneCIS    DIR/genecis/TASK.json, DIR/val2017/*.jpg of COCO, DIR/VG_100K_all/*.jpg of Visual Genome 1.2
coco       Pic2Word's object composition: DIR/coco/coco_eval.csv, DIR/coco/val2017/*.jpg, DIR/coco/val2017_masked/*.jpg
imagenet   Pic2Word's domain conversion: DIR/imgnet/imgnet_real_query.txt, DIR/imgnet/imgnet_targets.txt, DIR/imgnet/*/*
emoji      examples/emoji/data: queries/SPLIT.parquet, images/*.parquet
"""

import csv
import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .benchmarks import BENCHMARKS, Benchmark, BenchmarkData, BenchmarkPart, reference_ids_of
from .pictures import PictureRegion, path_of

logger = logging.getLogger(__name__)

FASHIONIQ_CATEGORIES = ("dress", "shirt", "toptee")
GENECIS_TASKS = ("focus_attribute", "change_attribute", "focus_object", "change_object")
GENECIS_DILATION = 0.7
IMAGENET_DOMAINS = ("cartoon", "origami", "toy", "sculpture")
EMOJI_VENDORS = {
    "training_vendor": ("noto",),
    "heldout_vendor": ("twemoji",),
    "mixed": ("noto", "openmoji", "fluent-3d", "twemoji"),
}
"""Part of the emoji benchmark -> the vendors whose pictures are its gallery."""
_SECOND_VENDOR = "openmoji"  # draws the second reference of the parts with two
_TWO_REFERENCES = "_two_references"
_NUM_NAMED = 3  # missing images named in one message


class AnnotationsMissingError(FileNotFoundError):
    """A benchmark's folder has no annotations of a split."""


def read_benchmark(
    name: str,
    directory: str | os.PathLike,
    split: str | None = None,
    *,
    part_names: Sequence[str] | None = None,
    allow_missing: bool = False,
    with_pictures: bool = True,
) -> BenchmarkData:
    """Read a benchmark's split from its official files.

    Args:
        name (`str`): A key of `BENCHMARKS`.
        directory (`str` or `Path`): The benchmark's folder; the module's docstring shows each layout.
        split (`str`, *optional*): By default the benchmark's first, "val".
        part_names (`Sequence[str]`, *optional*): Only these parts.
        allow_missing (`bool`): Leave out images that are not there, targets among them, and queries that lose their
            reference or all targets; how many is logged and kept in the data.
        with_pictures (`bool`): Whether the pictures are needed; without, rankings can be scored.

    Returns:
        `BenchmarkData`

    Raises:
        FileNotFoundError: If an annotation file or, unless allowed, images are missing.
        ValueError: If a name is unknown, or a file is cut, of another version, repeats an id, or names a target that
            the gallery lacks; the message has file and entry.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"Expected a benchmark of {list(BENCHMARKS)}, but found {name!r}. Choose one of them.")
    benchmark, directory = BENCHMARKS[name], Path(directory)
    split = split or benchmark.splits[0]
    if split not in benchmark.splits:
        raise ValueError(
            f"Expected a split of {list(benchmark.splits)} for {name}, but found {split!r}. Choose one of them."
        )
    if not directory.is_dir():
        raise FileNotFoundError(f"Expected {name}'s folder at {directory}, but found none. Check the path.")
    parts, pictures = _READERS[name.partition("-")[0]](directory, split, benchmark, with_pictures)
    if part_names:
        unknown = sorted(set(part_names) - {part.name for part in parts})
        if unknown:
            raise ValueError(
                f"Expected parts of {[part.name for part in parts]}, but found {unknown}. Choose among them."
            )
        parts = [part for part in parts if part.name in part_names]
    if not with_pictures:
        return BenchmarkData(benchmark, split, parts)
    return _without_missing(benchmark, split, parts, pictures, allow_missing)


_Read = tuple[list[BenchmarkPart], dict[str, Any]]


def _read_cirr(directory: Path, split: str, benchmark: Benchmark, with_pictures: bool) -> _Read:
    root = directory / "cirr" if (directory / "cirr" / "captions").is_dir() else directory
    split_path = _find(root / "image_splits", f"split.rc2.{split}.json")
    places = _read_json(split_path, dict)
    for id_, place in places.items():
        if not isinstance(place, str):
            raise _bad_entry(split_path, repr(id_), "a relative path", repr(place))
    path = _find(root / "captions", f"cap.rc2.{split}.json")
    keys = {"pairid": int, "reference": str, "caption": str, "img_set": dict}
    queries = []
    for number, entry in _entries(path, keys | ({"target_hard": str} if split == "val" else {})):
        members = entry["img_set"].get("members")
        if not isinstance(members, list):
            raise _bad_entry(path, str(number), "img_set with the list 'members'", repr(entry["img_set"])[:80])
        subset = [member for member in members if member != entry["reference"]]
        targets = [entry["target_hard"]] if "target_hard" in entry else []
        if len(set(members)) != len(members) or not set(targets) <= set(members):
            raise _bad_entry(path, str(number), "each member once, the target among them", repr(members)[:80])
        if len(subset) < max(benchmark.subset_ranks):
            raise _bad_entry(path, str(number), f"{max(benchmark.subset_ranks)} members or more", repr(members)[:80])
        queries.append(_query(entry["pairid"], entry["reference"], entry["caption"], targets, subset, split))
    part = BenchmarkPart("all", queries, list(places))
    _check_part(part, path, split_path)
    images = directory if (directory / "cirr" / "captions").is_dir() else _image_root(directory, places)
    return [part], {id_: images / place for id_, place in places.items()} if with_pictures else {}


def _image_root(directory: Path, places: Mapping[str, str]) -> Path:
    """Where CIRR's folders `dev` and `test1` lie: beside the annotations or one folder up."""
    first = next(iter(places.values()), "")
    is_above = not (directory / first).exists() and (directory.parent / first).exists()
    return directory.parent if is_above else directory


def _read_circo(directory: Path, split: str, benchmark: Benchmark, with_pictures: bool) -> _Read:
    path = _find(directory / "annotations", f"{split}.json")
    keys = {"id": int, "reference_img_id": int, "relative_caption": str}
    queries = []
    for number, entry in _entries(path, keys | ({"gt_img_ids": list, "target_img_id": int} if split == "val" else {})):
        targets = entry.get("gt_img_ids", [])
        if split == "val" and (entry["target_img_id"] not in targets or len(set(targets)) != len(targets)):
            raise _bad_entry(path, str(number), "target_img_id among gt_img_ids, each once", repr(targets)[:80])
        caption = entry["relative_caption"]
        queries.append(_query(entry["id"], str(entry["reference_img_id"]), caption, map(str, targets), (), split))
    coco = directory / "COCO2017_unlabeled"
    info_path = coco / "annotations" / "image_info_unlabeled2017.json"
    pictures: dict[str, Any] = {}
    if info_path.is_file():
        images = _read_json(info_path, dict).get("images")
        if not isinstance(images, list):
            raise _bad_entry(info_path, "'images'", "a list", repr(images)[:80])
        for number, image in enumerate(images):
            if not isinstance(image, dict) or not {"id", "file_name"} <= image.keys():
                raise _bad_entry(
                    info_path, f"{number} of 'images'", "an object with id and file_name", repr(image)[:80]
                )
        pictures = {str(image["id"]): coco / "unlabeled2017" / image["file_name"] for image in images}
    elif with_pictures:
        found = sorted(path for path in (coco / "unlabeled2017").glob("*.jpg") if path.stem.isdecimal())
        if not found:
            raise FileNotFoundError(
                f"Expected COCO's unlabeled2017 images in {coco / 'unlabeled2017'}, but found none, nor {info_path}. "
                "Download both from cocodataset.org."
            )
        pictures = {str(int(picture.stem)): picture for picture in found}
    part = BenchmarkPart("all", queries, list(pictures))
    _check_part(part, path, info_path if info_path.is_file() else coco / "unlabeled2017")
    return [part], pictures if with_pictures else {}


def _read_fashioniq(directory: Path, split: str, benchmark: Benchmark, with_pictures: bool) -> _Read:
    parts = []
    for category in FASHIONIQ_CATEGORIES:
        path = _find(directory / "captions", f"cap.{category}.{split}.json")
        split_path = _find(directory / "image_splits", f"split.{category}.{split}.json")
        queries = []
        # FashionIQ's file calls the reference "candidate".
        for number, entry in _entries(path, {"candidate": str, "target": str, "captions": list}):
            texts = _join_captions(entry["captions"], benchmark.options["captions"])
            if not texts:
                raise _bad_entry(path, str(number), "two captions", repr(entry["captions"]))
            query = _query(f"{category}-{number}", entry["candidate"], texts[0], [entry["target"]], (), split)
            queries.append(query | {"other_texts": texts[1:]})
        gallery_ids = _read_json(split_path, list)
        twice = _first_repeated(gallery_ids)
        if twice is not None:
            raise _bad_entry(split_path, repr(twice), "each image once", "it twice")
        part = BenchmarkPart(category, queries, gallery_ids)
        _check_part(part, path, split_path)
        if benchmark.options["gallery"] == "union":
            used = {id_ for query in queries for id_ in (query["reference_id"], *query["target_ids"])}
            part = BenchmarkPart(category, queries, [id_ for id_ in gallery_ids if id_ in used])
        parts.append(part)
    if not with_pictures:
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


def _read_genecis(directory: Path, split: str, benchmark: Benchmark, with_pictures: bool) -> _Read:
    """Each query has a gallery of its own: the target and ten or so others (the file's key "gallery")."""
    parts = []
    pictures: dict[str, Any] = {}
    for task in GENECIS_TASKS:
        path = _find(directory / "genecis", f"{task}.json")
        picture_of = _genecis_region if task.endswith("attribute") else _genecis_whole
        queries = []
        used: dict[str, Any] = {}
        keys = {"reference": dict, "target": dict, "gallery": list, "condition": str}
        for number, entry in _entries(path, keys):
            try:
                shown = [picture_of(directory, one) for one in (entry["reference"], entry["target"], *entry["gallery"])]
            except (KeyError, TypeError, ValueError) as error:
                keys_there = repr(entry["reference"])[:80]
                raise _bad_entry(path, str(number), "images with id and box", f"{keys_there} ({error!r})") from error
            (reference, _), *others = shown
            candidates = list(dict.fromkeys(id_ for id_, _ in others))
            targets = [others[0][0]]
            queries.append(_query(f"{task}-{number}", reference, entry["condition"], targets, candidates, split))
            used |= dict(shown)
        part = BenchmarkPart(task, queries, list(used))
        _check_part(part, path, path)
        parts.append(part)
        pictures |= used
    return parts, pictures if with_pictures else {}


def _genecis_whole(directory: Path, image: Mapping[str, Any]) -> tuple[str, Path]:
    """A picture of COCO's val2017."""
    name = f"{int(image['val_image_id']):012d}"
    return f"coco/{name}", directory / "val2017" / f"{name}.jpg"


def _genecis_region(directory: Path, image: Mapping[str, Any]) -> tuple[str, PictureRegion]:
    """An object in a picture of Visual Genome: cut out, with some of what is around it, and padded to a square."""
    left, top, width, height = (float(side) for side in image["instance_bbox"])
    path = directory / "VG_100K_all" / f"{int(image['image_id'])}.jpg"
    id_ = f"vg/{path.stem}@{left:g},{top:g},{width:g},{height:g}"
    return id_, PictureRegion(path, (left, top, width, height), GENECIS_DILATION)


def _read_coco(directory: Path, split: str, benchmark: Benchmark, with_pictures: bool) -> _Read:
    """The reference is one object of a picture on white, the text names the others, the target is the whole picture."""
    root = directory / "coco"
    path = _find(root, "coco_eval.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    header = ["id", "query_regions", "query_class", "classes"]
    if not rows or rows[0] != header:
        raise _bad_entry(path, "0", f"the columns {header}", repr(rows[:1]))
    queries = []
    pictures: dict[str, Any] = {}
    for number, row in enumerate(rows[1:]):
        # prepare_data.py writes a picture that it found no region in without the end of its line: it is no query.
        *needless, name, region, name_of_class, classes = row if len(row) >= len(header) else [""] * len(header)
        sides = region.split(";")
        if not name.endswith(".jpg") or not all(one.endswith(".jpg") for one in needless) or len(sides) != 4:
            raise _bad_entry(path, str(number), "FILE.jpg,x1;y1;x2;y2,class,class;class", ",".join(row))
        try:
            left, top, right, bottom = (int(float(side)) for side in sides)
        except ValueError as error:
            raise _bad_entry(path, str(number), "a region in numbers", region) from error
        # Paper: Pic2Word's prompt is "a photo of * and {class} and {others}", ending in "and" where there are none.
        text = " and ".join([name_of_class, *classes.split(";")])
        queries.append(_query(name.removesuffix(".jpg"), f"region/{name}", text, [name], (), split))
        box = (left, top, right - left, bottom - top)
        pictures[f"region/{name}"] = PictureRegion(root / "val2017_masked" / name, box, pads=False)
        pictures[name] = root / "val2017" / name
    part = BenchmarkPart("all", queries, [query["target_ids"][0] for query in queries])
    _check_part(part, path, path, has_references=False)
    return [part], pictures if with_pictures else {}


def _read_imagenet(directory: Path, split: str, benchmark: Benchmark, with_pictures: bool) -> _Read:
    """Each photograph asks for its class in each of four domains; a target's label is class + 1000 x domain."""
    path, target_path = (_find(directory / "imgnet", f"imgnet_{name}.txt") for name in ("real_query", "targets"))
    targets_of: dict[int, list[str]] = defaultdict(list)
    gallery_ids = []
    for id_, label in _labelled_images(target_path):
        targets_of[label].append(id_)
        gallery_ids.append(id_)
    photographs = list(_labelled_images(path))
    parts = []
    for number, domain in enumerate(IMAGENET_DOMAINS):
        queries = [
            _query(f"{domain}-{row}", id_, f"a {domain} of", targets_of.get(label + 1000 * number, ()), (), split)
            for row, (id_, label) in enumerate(photographs)
        ]
        parts.append(BenchmarkPart(domain, queries, gallery_ids))
    ids = dict.fromkeys([*gallery_ids, *(id_ for id_, _ in photographs)])
    return parts, {id_: directory / id_ for id_ in ids} if with_pictures else {}


def _labelled_images(path: Path) -> Iterable[tuple[str, int]]:
    """Lines of a relative path, a blank and a label."""
    seen: set[str] = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        id_, _, label = line.strip().rpartition(" ")
        if not id_ or not label.isdecimal():
            raise _bad_entry(path, str(number), "a path, a blank and a label", repr(line))
        if id_ in seen:
            raise _bad_entry(path, str(number), "each image once", f"{id_!r} again")
        seen.add(id_)
        yield id_, int(label)


def _read_emoji(directory: Path, split: str, benchmark: Benchmark, with_pictures: bool) -> _Read:
    import pyarrow.parquet as pq

    path = _find(directory / "queries", f"{split}.parquet")
    rows = pq.read_table(path).to_pylist()
    files = sorted((directory / "images").glob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"Expected Parquet files in {directory / 'images'}, but found none. Check the path.")
    columns = ["image_id", "vendor", "name", *(["image"] if with_pictures else [])]
    drawn = {row["image_id"]: row for file in files for row in pq.read_table(file, columns=columns).to_pylist()}
    by_name = {row["name"]: id_ for id_, row in drawn.items() if row["vendor"] == _SECOND_VENDOR}
    parts = []
    for name, vendors in EMOJI_VENDORS.items():
        queries = [row for row in rows if row["part"] == name]
        gallery_ids = [id_ for id_, row in drawn.items() if row["vendor"] in vendors]
        part = BenchmarkPart(name, queries, gallery_ids)
        _check_part(part, path, directory / "images")
        parts.append(part)
        if _SECOND_VENDOR not in vendors:
            with_second = [
                query | {"query_id": query["query_id"] + "+", "further_reference_ids": [second]}
                for query in queries
                if (second := by_name.get(drawn[query["reference_id"]]["name"])) is not None
            ]
            parts.append(BenchmarkPart(name + _TWO_REFERENCES, with_second, gallery_ids))
    if not with_pictures:
        return parts, {}
    return parts, {id_: {"bytes": row["image"]["bytes"], "name": row["name"]} for id_, row in drawn.items()}


_READERS: Mapping[str, Callable[[Path, str, Benchmark, bool], _Read]] = {
    "cirr": _read_cirr,
    "circo": _read_circo,
    "fashioniq": _read_fashioniq,
    "genecis": _read_genecis,
    "coco": _read_coco,
    "imagenet": _read_imagenet,
    "emoji": _read_emoji,
}


def _query(
    query_id: Any, reference_id: str, text: str, target_ids: Iterable[str], subset_ids: Iterable[str], split: str
) -> dict[str, Any]:
    """A row in the QUERY schema."""
    return {
        "query_id": str(query_id),
        "reference_id": reference_id,
        "query_text": text,
        "target_ids": list(target_ids),
        "subset_ids": list(subset_ids),
        "hard_negative_ids": [],
        "rule": "",
        "wording": 0,
        "split": split,
    }


def _find(folder: Path, name: str) -> Path:
    if (folder / name).is_file():
        return folder / name
    others = sorted(path.name for path in folder.glob("*.*")) if folder.is_dir() else []
    found = f"found {others[:6]}" if others else "found no such file"
    raise AnnotationsMissingError(
        f"Expected {folder / name}, but {found}. Give the benchmark's folder, with the annotations of this version."
    )


def _read_json(path: Path, kind: type) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=without_repeats)
    except ValueError as error:
        raise ValueError(
            f"Expected whole JSON in {path}, but reading it failed: {error}. It may be cut; download it again."
        ) from error
    if not isinstance(value, kind) or not value:
        names: dict[Any, str] = {list: "a list of entries", dict: "an object"}
        raise ValueError(
            f"Expected {names[kind]} in {path}, but found {type(value).__name__} of {str(value)[:40]!r}. It is of "
            "another version; download the official one."
        )
    return value


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON's object as a dictionary, for `object_pairs_hook`; a key that stands there twice is an error."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} stands there twice")
        found[key] = value
    return found


def _entries(path: Path, keys: Mapping[str, type]) -> Iterable[tuple[int, dict[str, Any]]]:
    """The file's entries with their numbers from 0, each checked for its keys and their types."""
    for number, entry in enumerate(_read_json(path, list)):
        if not isinstance(entry, dict):
            raise _bad_entry(path, str(number), f"an object with the keys {list(keys)}", repr(entry)[:80])
        wrong = [key for key, kind in keys.items() if type(entry.get(key)) is not kind]
        if wrong:
            kinds = {key: keys[key].__name__ for key in wrong}
            raise _bad_entry(path, str(number), f"the keys and types {kinds}", f"the keys {list(entry)}")
        yield number, entry


def _bad_entry(path: Path, entry: str, expected: str, found: str) -> ValueError:
    return ValueError(
        f"Expected {expected} in {path}, entry {entry}, but found {found}. The file is damaged or of another version; "
        "download the official one."
    )


def _check_part(part: BenchmarkPart, path: Path, gallery_path: Path, has_references: bool = True) -> None:
    """Each query once, and its images in the gallery (where the files say what that is)."""
    seen: dict[str, int] = {}
    gallery = set(part.gallery_ids)
    for number, query in enumerate(part.queries):
        if query["query_id"] in seen:
            first = seen[query["query_id"]]
            raise _bad_entry(path, str(number), "each query id once", f"{query['query_id']!r} of entry {first} again")
        seen[query["query_id"]] = number
        if not gallery:
            continue
        references = [(query["reference_id"], "reference")] if has_references else []
        named = [*((id_, "target") for id_ in query["target_ids"]), *((id_, "member") for id_ in query["subset_ids"])]
        for id_, what in [*references, *named]:
            if id_ not in gallery:
                raise ValueError(
                    f"Expected the gallery of {gallery_path} to hold each {what}, but it lacks {id_!r} of {path}, "
                    f"entry {number} (query {query['query_id']!r}). Take both files from the same release."
                )


def _first_repeated(ids: Sequence[Any]) -> Any:
    seen: set[Any] = set()
    for id_ in ids:
        if id_ in seen:
            return id_
        seen.add(id_)
    return None


def _without_missing(
    benchmark: Benchmark, split: str, parts: list[BenchmarkPart], pictures: dict[str, Any], allow_missing: bool
) -> BenchmarkData:
    """Check that the pictures are there; drop those that are not, where that is allowed."""
    used = {id_ for part in parts for id_ in part.gallery_ids}
    used |= {id_ for part in parts for query in part.queries for id_ in reference_ids_of(query)}
    present = {
        id_: picture
        for id_, picture in pictures.items()
        if id_ in used and ((path := path_of(picture)) is None or path.is_file())
    }
    missing = sorted(used - present.keys())
    if not missing:
        return BenchmarkData(benchmark, split, parts, present)
    named = ", ".join(str(path_of(pictures.get(id_)) or id_) for id_ in missing[:_NUM_NAMED])
    if not allow_missing:
        raise FileNotFoundError(
            f"Expected {len(used)} images of {benchmark.title}, but {len(missing)} are missing, such as {named}. "
            "Download them, or go on without them with --allow-missing."
        )
    gone = set(missing)
    fewest = max(benchmark.subset_ranks, default=0)
    kept = [_reduce_part(part, gone, fewest) for part in parts]
    num_dropped = sum(len(before.queries) - len(after.queries) for before, after in zip(parts, kept, strict=True))
    logger.warning(
        "%d of %d images are missing, such as %s: %d queries are left out.", len(missing), len(used), named, num_dropped
    )
    empty = [part.name for part in kept if not part.queries]
    if empty:
        raise FileNotFoundError(
            f"Expected images for {benchmark.title}, but {len(missing)} of {len(used)} are missing, such as {named}, "
            f"and no query is left in {empty}. Download them."
        )
    return BenchmarkData(benchmark, split, kept, present, missing, num_dropped)


def _reduce_part(part: BenchmarkPart, gone: set[str], fewest: int) -> BenchmarkPart:
    """The part without the images that are gone, and without the queries that they were needed for.

    Those lost their reference, all targets, or so much of their subset that fewer than `fewest` are left of it.
    """
    queries = []
    for query in part.queries:
        targets = [id_ for id_ in query["target_ids"] if id_ not in gone]
        subset = [id_ for id_ in query["subset_ids"] if id_ not in gone]
        has_targets = bool(targets) or not query["target_ids"]
        if gone.isdisjoint(reference_ids_of(query)) and has_targets and len(subset) >= fewest:
            negatives = [id_ for id_ in query["hard_negative_ids"] if id_ not in gone]
            queries.append({**query, "target_ids": targets, "subset_ids": subset, "hard_negative_ids": negatives})
    return BenchmarkPart(part.name, queries, [id_ for id_ in part.gallery_ids if id_ not in gone])
