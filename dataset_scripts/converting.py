"""What the converters share: from an official folder to Parquet files with a card that names the configs."""

import argparse
import io
import json
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Sequence, Value

from hycir_hf.evaluation import BENCHMARKS, AnnotationsMissingError, BenchmarkData, ImageRegion, read_benchmark
from hycir_hf.schemas import GALLERY, QUERY

if __name__.startswith("datasets_modules"):  # where `datasets` 3 puts a loading script
    raise ImportError("converting.py is no loading script of `datasets`. Run a converter: python cirr.py --help")

_FURTHER = ("other_texts", "semantic_aspects")
QUERIES = Features({**QUERY, **dict.fromkeys(_FURTHER, Sequence(Value("string"))), "part": Value("string")})
PICTURES = Features({**GALLERY, "part": Value("string")})


def query_rows(data: BenchmarkData) -> list[dict[str, Any]]:
    """List all parts' queries."""
    none: dict[str, list] = {name: [] for name in _FURTHER}
    return [{**none, **query, "part": part.name} for part in data.parts for query in part.queries]


def gallery_rows(data: BenchmarkData, embed: bool) -> list[dict[str, Any]]:
    """List all parts' gallery images, by path or, with `embed`, with their bytes."""
    return [picture_row(data, id_, part.name, embed) for part in data.parts for id_ in part.gallery_ids]


def reference_rows(data: BenchmarkData, embed: bool) -> list[dict[str, Any]]:
    """List the references that no gallery holds: COCO's regions, ImageNet's photographs."""
    rows = {}
    for part in data.parts:
        outside = {query["reference_id"] for query in part.queries} - set(part.gallery_ids)
        rows |= {id_: picture_row(data, id_, "", embed) for id_ in sorted(outside)}
    return list(rows.values())


def picture_row(data: BenchmarkData, id_: str, part_name: str, embed: bool) -> dict[str, Any]:
    """One image in the GALLERY schema; a region of an image is cut out and embedded."""
    picture = data.images[id_]
    if isinstance(picture, ImageRegion):
        buffer = io.BytesIO()
        picture.load().save(buffer, "PNG")
        image = {"bytes": buffer.getvalue(), "path": None}
    else:
        path = Path(picture).resolve()
        image = {"bytes": path.read_bytes() if embed else None, "path": str(path)}
    return {"image_id": id_, "image": image, "name": "", "vendor": "", "concept": "", "part": part_name}


def card_features(config: str) -> dict[str, Any]:
    """Describe a config's columns for the card. Without it, `datasets` 3 stumbles over the files' own type List."""
    columns = (QUERIES if config == "queries" else PICTURES)._to_yaml_list()
    return {
        "config_name": config,
        "features": [{"sequence" if key == "list" else key: column[key] for key in column} for column in columns],
    }


def convert(name: str, directory: Path, output: Path, allow_missing: bool = False, embed: bool = False) -> None:
    """Convert every split of a benchmark whose annotations are there.

    Args:
        name: A key of `BENCHMARKS`.
        directory: The official folder.
        output: Folder of the dataset; written over.
        allow_missing: Leave out images that are not there.
        embed: Copy the images into the files.
    """
    splits_of: dict[str, list[str]] = {}
    missing: AnnotationsMissingError | None = None
    for split in BENCHMARKS[name].splits:
        try:
            data = read_benchmark(name, directory, split, allow_missing=allow_missing)
        except AnnotationsMissingError as error:
            missing = error
            print(f"{split}: left out, since its annotations are not there")
            continue
        tables = {"queries": (query_rows(data), QUERIES), "gallery": (gallery_rows(data, embed), PICTURES)}
        if references := reference_rows(data, embed):
            tables["references"] = (references, PICTURES)
        for config, (rows, features) in tables.items():
            (output / config).mkdir(parents=True, exist_ok=True)
            Dataset.from_list(rows, features=features).to_parquet(output / config / f"{split}.parquet")
            splits_of.setdefault(config, []).append(split)
    if not splits_of and missing is not None:
        raise missing
    lines = ["---", f"pretty_name: {BENCHMARKS[name].title}", "tags: [composed-image-retrieval]", "configs:"]
    for config, splits in splits_of.items():
        lines += [f"- config_name: {config}", *(["  default: true"] if config == "queries" else []), "  data_files:"]
        lines += [f"  - {{split: {split}, path: {config}/{split}.parquet}}" for split in splits]
    lines += ["dataset_info:", *(f"- {json.dumps(card_features(config))}" for config in splits_of)]
    (output / "README.md").write_text("\n".join([*lines, "---", "", f"# {BENCHMARKS[name].title}", ""]))


def main(name: str, description: str) -> None:
    """Read the arguments and convert."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR", help="the benchmark's official folder")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the data set")
    parser.add_argument("--allow-missing", action="store_true", help="go on without images that are not there")
    parser.add_argument("--embed", action="store_true", help="copy the pictures into the files")
    variants = [one for one in BENCHMARKS if one.partition("-")[0] == name]
    if len(variants) > 1:
        parser.add_argument("--protocol", choices=variants, default=name, help="gallery and captions")
    args = parser.parse_args()
    try:
        convert(getattr(args, "protocol", name), args.directory, args.output, args.allow_missing, args.embed)
    except (ValueError, OSError) as error:
        raise SystemExit(f"{name}: error: {error}") from error
    print(f"{args.output}: load_dataset({str(args.output)!r}, 'queries'), 'gallery' ...")
