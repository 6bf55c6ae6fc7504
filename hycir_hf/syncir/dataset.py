"""The dataset that SynCir writes: images, triplets and dropped triplets, as Parquet files with a card.

One folder: `images/part-*.parquet` (each image once), `triplets.parquet`, `dropped.parquet` (with reasons and scores),
`README.md`, `report.html`, `assets/` (the card's example images), and `recipe.json`. The recipe is moved into place
last: a folder that has it is complete.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, Value

from ..files import atomic_folder, read_json
from ..formats import TRIPLETS
from ..images import FileSource
from ..images.sources import source_from_record
from ..images_hycir import load_image
from ..schemas import DROPPED, GENERATED, TRIPLET, UNLABELED
from .filter import FilterResult, Reason, low_score, split_triplets
from .report import draw_histogram, render_card, render_report, sample_rows

RECIPE, STAGING = "recipe.json", ".work/staging"
_PART_BYTES = 400_000_000  # bytes of an images file
_ROW_GROUP, _GROUP_BYTES = 256, 64_000_000  # images in a row group, and their bytes: whichever comes first
_EXAMPLES = 6

LoadImage = Callable[[str], PIL.Image.Image]
"""Image id -> image; raises if it cannot be read."""


def triplet_features(score_names: list[str]) -> Features:
    """The triplets' columns: the TRIPLET schema, further scores, and the GENERATED schema."""
    scores = {name: Value("float32") for name in score_names if name not in TRIPLET}
    return Features({**TRIPLET, **scores, **GENERATED})


def write_dataset(
    output: Path,
    source: FileSource,
    captions: list[str | None],
    result: FilterResult,
    recipe: dict[str, Any],
) -> None:
    """Write the folder: complete beside its place first, then moved, `recipe.json` last.

    Args:
        output (`Path`): The folder; files of an earlier run are replaced.
        source (`FileSource`): The images.
        captions (`list[str | None]`): One for each image; an image whose caption is None is left out.
        result (`FilterResult`): The triplets.
        recipe (`dict`): How they were made: settings, thresholds, counts, versions.
    """
    rows = {id_: row for row, id_ in enumerate(source.ids)}
    with atomic_folder(output / STAGING) as staging:
        (staging / "images").mkdir()
        _write_images(staging / "images", source, captions, recipe["settings"]["store_images"] == "embed")
        _write_texts(staging, result, recipe, lambda id_: source.load(rows[id_]))
    finish_move(output)


def refilter(directory: str | os.PathLike, thresholds: Mapping[str, float]) -> dict[str, Any]:
    """Change the thresholds of a finished dataset. The stored scores are used; nothing is computed again.

    Args:
        directory (`str` or `Path`): SynCir's folder.
        thresholds (`Mapping[str, float]`): Score column -> lowest value kept, in [-1, 1]; others stay as they are.

    Returns:
        `dict`: The new recipe, with the counts.

    Raises:
        FileNotFoundError: If the folder holds no finished SynCir dataset.
        ValueError: If nothing would be left, the dataset has no such score, or an older version of the package wrote
            it.
    """
    directory = Path(directory)
    finish_move(directory)
    recipe = TRIPLETS.read(directory / RECIPE)
    unknown = [name for name in thresholds if name not in recipe["thresholds"]]
    if unknown:
        raise ValueError(
            f"{directory} has no scores {unknown}, only {list(recipe['thresholds'])}. Run SynCir with the check that "
            "gives them."
        )
    recipe["thresholds"] |= thresholds
    names = list(triplet_features(list(recipe["thresholds"])))
    kept = _read_table(directory / "triplets.parquet", names)
    dropped = _read_table(directory / "dropped.parquet", [*names, *DROPPED])
    scored = {low_score(name) for name in recipe["thresholds"]}
    given = zip(*(dropped.pop(name) for name in DROPPED), strict=True)
    reasons = [None] * len(kept["triplet_id"]) + [None if kind in scored else Reason(kind, d) for kind, d in given]
    merged = {name: kept[name] + dropped[name] for name in kept}
    order = sorted(range(len(reasons)), key=merged["triplet_id"].__getitem__)
    columns = {name: [values[row] for row in order] for name, values in merged.items()}
    result = split_triplets(columns, [reasons[row] for row in order], recipe["thresholds"])
    nothing_kept = result.why_nothing_is_kept(recipe["thresholds"])
    if nothing_kept is not None:
        raise ValueError(f"{nothing_kept} Choose a lower threshold. {directory} is as it was.")
    recipe["counts"] |= result.counts()
    recipe["histogram"] = draw_histogram(result)
    with atomic_folder(directory / STAGING) as staging:
        _write_texts(staging, result, recipe, _StoredImages(directory, recipe["source_record"]).load)
    finish_move(directory)
    return recipe


def _write_images(folder: Path, source: FileSource, captions: list[str | None], embed: bool) -> None:
    features = UNLABELED if embed else Features({k: v for k, v in UNLABELED.items() if not isinstance(v, Image)})
    rows = [row for row, caption in enumerate(captions) if caption is not None]
    part, written, writer = 0, 0, None
    for group in _row_groups(source, rows, embed):
        columns: dict[str, list[Any]] = {
            "image_id": [source.ids[row] for row, _ in group],
            "caption": [captions[row] for row, _ in group],
            "image": [{"bytes": content, "path": None} for _, content in group],
        }
        table = pa.table({name: columns[name] for name in features}, schema=features.arrow_schema)
        if writer is None:
            writer = pq.ParquetWriter(folder / f"part-{part:05d}.parquet", features.arrow_schema)
        writer.write_table(table)
        written += table.nbytes
        if written >= _PART_BYTES:
            writer.close()
            part, written, writer = part + 1, 0, None
    if writer is not None:
        writer.close()


def _row_groups(source: FileSource, rows: list[int], embed: bool) -> Iterator[list[tuple[int, bytes | None]]]:
    """Rows with the files of their images, as many at once as memory should hold."""
    group: list[tuple[int, bytes | None]] = []
    size = 0
    for row in rows:
        content = _read_bytes(source, row) if embed else None
        group.append((row, content))
        size += len(content or b"")
        if len(group) == _ROW_GROUP or size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _read_bytes(source: FileSource, row: int) -> bytes:
    try:
        return source.read_bytes(row)
    except OSError as error:  # not an error of writing the folder
        raise ValueError(
            f"The image {source.ids[row]} can no longer be read: {error}. Restore it and run the same command again."
        ) from error


def _write_texts(staging: Path, result: FilterResult, recipe: dict[str, Any], load: LoadImage) -> None:
    """Write everything but the images."""
    features = triplet_features(list(recipe["thresholds"]))
    _write_table(staging / "triplets.parquet", result.kept, features)
    _write_table(staging / "dropped.parquet", result.dropped, Features({**features, **DROPPED}))
    examples = sample_rows(len(result.kept["triplet_id"]), _EXAMPLES, recipe["settings"]["seed"])
    assets = staging / "assets"
    assets.mkdir()
    for number, row in enumerate(examples):
        for side in ("reference", "target"):
            image = _image_or_none(load, result.kept[f"{side}_id"][row])
            if image is not None:
                image.thumbnail((256, 256))
                image.save(assets / f"{number}-{side}.png")
    pages = {
        "README.md": render_card(result, recipe, examples, {path.name for path in assets.iterdir()}),
        "report.html": render_report(result, recipe, lambda id_: _image_or_none(load, id_)),
        RECIPE: json.dumps(recipe, indent=2, ensure_ascii=False) + "\n",
    }
    for name, text in pages.items():
        (staging / name).write_text(text, encoding="utf-8", errors="backslashreplace")


def _read_table(path: Path, columns: list[str]) -> dict[str, list[Any]]:
    return pq.read_table(path).to_pydict() if path.exists() else {name: [] for name in columns}


def _write_table(path: Path, columns: Mapping[str, list[Any]], features: Features) -> None:
    """Write a table; none without rows, since `datasets` cannot read a Parquet file without row groups."""
    if columns["triplet_id"]:
        pq.write_table(pa.table({name: columns[name] for name in features}, schema=features.arrow_schema), path)


def _image_or_none(load: LoadImage, id_: str) -> PIL.Image.Image | None:
    try:
        return load(id_).convert("RGB")
    except (ValueError, OSError, KeyError):
        return None


def finish_move(output: Path) -> None:
    """Move a complete staging folder into place, part by part. If it was interrupted, the same call resumes.

    The old `recipe.json` is removed first and the new one is moved last: a folder that has one is complete.
    """
    staging = output / STAGING
    if not (staging / RECIPE).is_file():
        return
    counts = read_json(staging / RECIPE, remedy=TRIPLETS.remedy)["counts"]
    (output / RECIPE).unlink(missing_ok=True)
    for name, count in (("triplets.parquet", counts["kept"]), ("dropped.parquet", sum(counts["dropped"].values()))):
        if not count:  # a part without rows has no file
            _remove(output / name)
    for path in sorted(staging.iterdir(), key=lambda path: path.name == RECIPE):
        _remove(output / path.name)
        path.replace(output / path.name)
    staging.rmdir()


def _remove(place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


class _StoredImages:
    """The images of a dataset by id: those that it embeds, or those in the source that its recipe names."""

    def __init__(self, directory: Path, record: dict[str, Any]) -> None:
        self.directory, self.record = directory, record
        self.paths = sorted((directory / "images").glob("part-*.parquet"))

    def load(self, id_: str) -> PIL.Image.Image:
        """Load one image."""
        path, group = self._places[id_]
        file = pq.ParquetFile(path)
        if "image" not in file.schema_arrow.names:
            return self._source.load(self._source.ids.index(id_))
        table = file.read_row_group(group, columns=["image_id", "image"])
        return load_image(table["image"][table["image_id"].to_pylist().index(id_)].as_py()["bytes"])

    @cached_property
    def _places(self) -> dict[str, tuple[Path, int]]:
        """Image id -> file and row group."""
        return {
            id_: (path, group)
            for path in self.paths
            for file in [pq.ParquetFile(path)]
            for group in range(file.num_row_groups)
            for id_ in file.read_row_group(group, columns=["image_id"])["image_id"].to_pylist()
        }

    @cached_property
    def _source(self) -> FileSource:
        return source_from_record(self.record, self.directory)
