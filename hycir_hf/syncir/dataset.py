"""The data set that SynCir writes: images, triplets and what was dropped, as Parquet with a card.

One folder: `images/part-*.parquet` (each image once), `triplets.parquet`, `dropped.parquet` (with reason and scores),
`README.md`, `report.html`, `assets/` (the card's example pictures), and `recipe.json`, which is written last: a folder
with it is whole.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, Value

from ..images import FileSource
from ..images.sources import source_from_record
from ..schemas import TRIPLET, UNLABELED
from .filter import FilterResult, low_score_reason, split_triplets
from .report import draw_histogram, dropped_counts, render_card, render_report, sample_rows

RECIPE, STAGING = "recipe.json", ".work/staging"
GENERATOR_FEATURES = Features(
    {
        "triplet_id": Value("int64"),  # number of the pair it was made from
        "generator": Value("string"),  # the LLM
        "prompt": Value("string"),
        "answer": Value("string"),  # as the LLM wrote it
    }
)
_PART_BYTES = 400_000_000
_ROW_GROUP, _GROUP_BYTES = 256, 64_000_000  # images, or so many bytes of them
_EXAMPLES = 6


def triplet_features(score_names: list[str]) -> Features:
    """The triplets' columns: the TRIPLET schema, the generator's, and further scores."""
    scores = {name: Value("float32") for name in score_names if name not in TRIPLET}
    return Features({**TRIPLET, **scores, **GENERATOR_FEATURES})


def write_dataset(
    output: Path,
    source: FileSource,
    captions: list[str | None],
    result: FilterResult,
    recipe: dict[str, Any],
) -> None:
    """Write the whole folder: aside first, then moved into place, `recipe.json` last.

    Args:
        output (`Path`): The folder; files of an earlier run are replaced.
        source (`FileSource`): The images.
        captions (`list[str | None]`): One for each image; None leaves the image out.
        result (`FilterResult`): The triplets.
        recipe (`dict`): How they were made: settings, thresholds, counts, versions.
    """
    staging = _new_staging(output)
    (staging / "images").mkdir()
    _write_images(staging / "images", source, captions, recipe["settings"]["store_images"] == "embed")
    rows = {id_: row for row, id_ in enumerate(source.ids)}
    _write_texts(staging, result, recipe, lambda id_: source.load(rows[id_]))
    finish_move(output)


def refilter(directory: str | os.PathLike, thresholds: Mapping[str, float]) -> dict[str, Any]:
    """Move the thresholds of a finished data set; nothing is computed anew.

    Args:
        directory (`str` or `Path`): SynCir's folder.
        thresholds (`Mapping[str, float]`): Score column -> lowest value kept, in [-1, 1]; others stay as they are.

    Returns:
        The new recipe, with the counts.

    Raises:
        ValueError: If the folder is no finished SynCir data set, or has no such score.
    """
    directory = Path(directory)
    finish_move(directory)
    recipe = read_recipe(directory)
    unknown = [name for name in thresholds if name not in recipe["thresholds"]]
    if unknown:
        raise ValueError(
            f"Expected scores of {list(recipe['thresholds'])} in {directory}, but found {unknown}. Run SynCir with the "
            "check that gives them."
        )
    recipe["thresholds"] |= thresholds
    columns_of_part = list(triplet_features(list(recipe["thresholds"])))
    kept = _read_table(directory / "triplets.parquet", columns_of_part)
    dropped = _read_table(directory / "dropped.parquet", [*columns_of_part, "reason"])
    scored = tuple(low_score_reason(name) for name in recipe["thresholds"])
    reasons = [None] * len(kept["triplet_id"]) + [
        None if reason.startswith(scored) else reason for reason in dropped.pop("reason")
    ]
    merged = {name: kept[name] + dropped[name] for name in kept}
    order = sorted(range(len(reasons)), key=merged["triplet_id"].__getitem__)
    columns = {name: [values[row] for row in order] for name, values in merged.items()}
    result = split_triplets(columns, [reasons[row] for row in order], recipe["thresholds"])
    recipe["counts"] |= count_results(result)
    recipe["histogram"] = draw_histogram(result)
    _write_texts(_new_staging(directory), result, recipe, _StoredPictures(directory, recipe["source_record"]).load)
    finish_move(directory)
    return recipe


def read_recipe(directory: Path) -> dict[str, Any]:
    """Read how a data set was made; ValueError if the folder holds no finished one."""
    path = directory / RECIPE
    if not path.is_file():
        raise ValueError(
            f"Expected a finished SynCir data set in {directory}, but found no {RECIPE}. Give its folder, or run "
            "`hycir syncir` to the end."
        )
    return json.loads(path.read_text(encoding="utf-8"))


def count_results(result: FilterResult) -> dict[str, Any]:
    """Kept triplets, and dropped ones by reason."""
    return {"kept": len(result.kept["triplet_id"]), "dropped": dropped_counts(result)}


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
    """Rows with their pictures' files, as many at once as memory should hold."""
    group: list[tuple[int, bytes | None]] = []
    size = 0
    for row in rows:
        content = source.read_bytes(row) if embed else None
        group.append((row, content))
        size += len(content or b"")
        if len(group) == _ROW_GROUP or size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _write_texts(staging: Path, result: FilterResult, recipe: dict[str, Any], load_picture: Any) -> None:
    """Write everything but the images."""
    features = triplet_features(list(recipe["thresholds"]))
    _write_table(staging / "triplets.parquet", result.kept, features)
    _write_table(staging / "dropped.parquet", result.dropped, Features({**features, "reason": Value("string")}))
    seed = recipe["settings"]["seed"]
    examples = sample_rows(len(result.kept["triplet_id"]), _EXAMPLES, seed)
    (staging / "assets").mkdir()
    for number, row in enumerate(examples):
        for side in ("reference", "target"):
            picture = _picture_or_none(load_picture, result.kept[f"{side}_id"][row])
            if picture is not None:
                picture.thumbnail((256, 256))
                picture.save(staging / "assets" / f"{number}-{side}.png")
    assets = {path.name for path in (staging / "assets").iterdir()}
    (staging / "README.md").write_text(render_card(result, recipe, examples, assets), encoding="utf-8")
    report = render_report(result, recipe, lambda id_: _picture_or_none(load_picture, id_))
    (staging / "report.html").write_text(report, encoding="utf-8", errors="backslashreplace")
    text = json.dumps(recipe, indent=2, ensure_ascii=False) + "\n"
    (staging / RECIPE).write_text(text, encoding="utf-8")


def _read_table(path: Path, columns: list[str]) -> dict[str, list[Any]]:
    return pq.read_table(path).to_pydict() if path.exists() else {name: [] for name in columns}


def _write_table(path: Path, columns: Mapping[str, list[Any]], features: Features) -> None:
    """Write a table; none without rows, since `datasets` cannot read a Parquet file without row groups."""
    if columns["triplet_id"]:
        pq.write_table(pa.table({name: columns[name] for name in features}, schema=features.arrow_schema), path)


def _picture_or_none(load_picture: Any, id_: str) -> Any:
    try:
        return load_picture(id_).convert("RGB")
    except (ValueError, OSError, KeyError):
        return None


def _new_staging(output: Path) -> Path:
    """An empty folder beside the result; the recipe is written into it last, which makes it ready to be moved."""
    staging = output / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    return staging


def finish_move(output: Path) -> None:
    """Move what is ready into place, part by part; a move that was cut short goes on.

    The old `recipe.json` goes first and the new one comes last: a folder that has it is whole.
    """
    staging = output / STAGING
    if not (staging / RECIPE).is_file():
        return
    counts = json.loads((staging / RECIPE).read_text(encoding="utf-8"))["counts"]
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


class _StoredPictures:
    """The pictures of a data set by id: those that it embeds, or those that its recipe's source holds."""

    def __init__(self, directory: Path, record: dict[str, Any]) -> None:
        self.directory, self.record = directory, record
        self.paths = sorted((directory / "images").glob("part-*.parquet"))
        self._place: dict[str, tuple[Path, int]] | None = None

    def load(self, id_: str) -> Any:
        """The picture of an id."""
        from ..images_hycir import load_image

        if self._place is None:
            self._place = {found: place for path in self.paths for found, place in _ids_of(path)}
        path, group = self._place[id_]
        file = pq.ParquetFile(path)
        if "image" not in file.schema_arrow.names:
            return self._source.load(self._source.ids.index(id_))
        table = file.read_row_group(group, columns=["image_id", "image"])
        return load_image(table["image"][table["image_id"].to_pylist().index(id_)].as_py()["bytes"])

    @cached_property
    def _source(self) -> Any:
        return source_from_record(self.record, self.directory)


def _ids_of(path: Path) -> Iterator[tuple[str, tuple[Path, int]]]:
    file = pq.ParquetFile(path)
    for group in range(file.num_row_groups):
        for id_ in file.read_row_group(group, columns=["image_id"])["image_id"].to_pylist():
            yield id_, (path, group)
