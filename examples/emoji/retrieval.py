"""The emoji benchmark's queries and galleries, and the ways to answer them: the mapper and its training-free rivals.

    python examples/emoji/retrieval.py                  # val, every part
    python examples/emoji/retrieval.py --split test --part heldout_vendor

Prints R@K in percent for each part as Markdown. A hit is any correct target among the first K of the part's whole
gallery without the reference; `build_benchmark.py` says what the parts are. `hycir evaluate run --benchmark emoji`
adds intervals, subsets, hard negatives, wordings and two reference images.
"""

import argparse
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image

from hycir_hf import Gallery, HyCIRModel, HyCIRProcessor
from hycir_hf.evaluation import EMOJI_VENDORS, BenchmarkPart, encode_images, part_features
from hycir_hf.metrics import find_hits, recall_per_query

HERE = Path(__file__).parent
MODEL = HERE / "hycir"
RANKS = (1, 5, 10, 50)


def read_queries(split: str, part: str, data: Path = HERE / "data") -> list[dict]:
    """Read the queries of a split ("val" or "test") and part, in the QUERY schema."""
    return [row for row in pq.read_table(data / "queries" / f"{split}.parquet").to_pylist() if row["part"] == part]


def read_pictures(part: str, data: Path = HERE / "data") -> dict[str, dict]:
    """Read a part's gallery: image id -> row with `image` (a file's bytes), `name` and the other columns."""
    found = {}
    for path in sorted((data / "images").glob("*.parquet")):
        table = pq.read_table(path, filters=[("vendor", "in", EMOJI_VENDORS[part])])
        found |= {row["image_id"]: {**row, "image": row["image"]["bytes"]} for row in table.to_pylist()}
    return found


def picture_of(row: dict) -> Image.Image:
    """Open a row's image."""
    return Image.open(io.BytesIO(row["image"]))


def evaluate_methods(
    model: HyCIRModel, processor: HyCIRProcessor, gallery: Gallery, features: dict[str, torch.Tensor], queries: list
) -> dict[str, dict[str, float]]:
    """Answer the queries by every method: method -> R@K.

    Args:
        model: Mapper and encoder.
        processor: The model's.
        gallery: The part's images.
        features: Image id -> feature `(D,)`, not normalised, of the references.
        queries: Rows in the QUERY schema.
    """
    left_out = [[query["reference_id"]] for query in queries]
    report = {}
    for name, composed in part_features(model, processor, BenchmarkPart("", queries, gallery.ids), features).items():
        results = gallery.search(composed, k=max(RANKS), exclude_ids=left_out)
        hits = find_hits(results.ids, [query["target_ids"] for query in queries], max(RANKS))
        report[name] = {f"R@{k}": recall_per_query(hits, k).mean() for k in RANKS}
    return report


def build_gallery(
    model: HyCIRModel, processor: HyCIRProcessor, pictures: dict[str, dict], label: str
) -> tuple[Gallery, dict[str, torch.Tensor]]:
    """Encode a part's images into a gallery; also return each one's feature, not normalised."""
    features = encode_images(model, processor, {id_: row["image"] for id_, row in pictures.items()}, label=label)
    fingerprint = model.encoder_fingerprint()
    gallery = Gallery.from_features(F.normalize(features, dim=-1), list(pictures), encoder_fingerprint=fingerprint)
    return gallery, dict(zip(pictures, features, strict=True))


def table_rows(report: dict[str, dict[str, float]]) -> list[list[str]]:
    """Write a report's figures in percent, one row a method."""
    return [[name, *(f"{100 * value:.2f}" for value in recalls.values())] for name, recalls in report.items()]


def main() -> None:
    """Evaluate and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--part", choices=list(EMOJI_VENDORS), nargs="*", default=list(EMOJI_VENDORS))
    parser.add_argument("--json", type=Path, help="also write the figures, as fractions")
    args = parser.parse_args()

    model, processor = HyCIRModel.from_pretrained(args.model).eval(), HyCIRProcessor.from_pretrained(args.model)
    reports = {}
    for part in args.part:
        queries = read_queries(args.split, part)
        gallery, features = build_gallery(model, processor, read_pictures(part), part)
        reports[part] = evaluate_methods(model, processor, gallery, features, queries)
        print(f"\n{args.split}, {part}: {len(queries)} queries, {len(gallery)} pictures\n")
        print("| | " + " | ".join(f"R@{k}" for k in RANKS) + " |\n" + "|---" * (len(RANKS) + 1) + "|")
        print("\n".join(f"| {' | '.join(row)} |" for row in table_rows(reports[part])))
    if args.json:
        args.json.write_text(json.dumps({"split": args.split, "parts": reports}, indent=2) + "\n")


if __name__ == "__main__":
    main()
