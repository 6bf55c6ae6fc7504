"""The emoji benchmark's queries and galleries, and the ways to answer them: the mapper and its training-free rivals.

    python examples/emoji/retrieval.py                  # val, every part
    python examples/emoji/retrieval.py --split test --part heldout_vendor

Prints R@K in percent for each part as Markdown. A hit is any correct target among the first K of the part's whole
gallery, the reference left out; `build_benchmark.py` says what the parts are.
"""

import argparse
import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from build_benchmark import GALLERY_VENDORS
from PIL import Image
from tqdm import tqdm

from hycir_hf import Gallery, HyCIRModel, HyCIRProcessor, RetrievalResults

HERE = Path(__file__).parent
MODEL = HERE / "hycir"
RANKS = (1, 5, 10, 50)
SLERP_WEIGHT = 0.6  # of the text: of .2, .3 ... .7 the best R@10 on val, training vendor; .5 equals image + text


def read_queries(split: str, part: str, data: Path = HERE / "data") -> list[dict]:
    """Read the queries of a split ("val" or "test") and part, in the QUERY schema."""
    return [row for row in pq.read_table(data / "queries" / f"{split}.parquet").to_pylist() if row["part"] == part]


def read_pictures(part: str, data: Path = HERE / "data") -> dict[str, dict]:
    """Read a part's gallery: image id -> row with `image` (a file's bytes), `name` and the other columns."""
    found = {}
    for path in sorted((data / "images").glob("*.parquet")):
        table = pq.read_table(path, filters=[("vendor", "in", GALLERY_VENDORS[part])])
        found |= {row["image_id"]: {**row, "image": row["image"]["bytes"]} for row in table.to_pylist()}
    return found


def picture_of(row: dict) -> Image.Image:
    """Open a row's picture."""
    return Image.open(io.BytesIO(row["image"]))


@torch.inference_mode()
def encode_images(model: HyCIRModel, processor: HyCIRProcessor, images: list, label: str = "pictures") -> torch.Tensor:
    """Encode images: `(N, D)`, not normalised, as the mapper takes them."""
    features = []
    for start in tqdm(range(0, len(images), 128), desc=label, unit=" batches"):
        inputs = processor(images=images[start : start + 128])
        features.append(model.get_image_features(**inputs, normalize=False))
    return torch.cat(features)


@torch.inference_mode()
def encode_texts(model: HyCIRModel, processor: HyCIRProcessor, texts: list[str]) -> torch.Tensor:
    """Encode plain texts: `(Q, D)`, unit norm."""
    parts = [texts[start : start + 256] for start in range(0, len(texts), 256)]
    return torch.cat([model.get_text_features(**processor(text=part, compose=False)) for part in parts])


@torch.inference_mode()
def compose(model: HyCIRModel, processor: HyCIRProcessor, references: torch.Tensor, texts: list[str]) -> torch.Tensor:
    """Compose reference features `(Q, D)`, not normalised, with query texts by the mapper: `(Q, D)`, unit norm."""
    composed = []
    for start in range(0, len(texts), 256):
        inputs = processor(text=texts[start : start + 256])
        composed.append(model.get_composed_features(**inputs, image_features=references[start : start + 256]))
    return torch.cat(composed)


def slerp(images: torch.Tensor, texts: torch.Tensor, weight: float) -> torch.Tensor:
    """Interpolate between unit vectors on the sphere; `weight` 0 is the image, 1 the text (Jang et al., 2024)."""
    angle = torch.acos((images * texts).sum(-1, keepdim=True).clamp(-1 + 1e-6, 1 - 1e-6))
    return (torch.sin((1 - weight) * angle) * images + torch.sin(weight * angle) * texts) / torch.sin(angle)


RIVALS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "image only": lambda images, texts: images,
    "text only": lambda images, texts: texts,
    "image + text": lambda images, texts: F.normalize(images + texts, dim=-1),
    "slerp": lambda images, texts: slerp(images, texts, SLERP_WEIGHT),
}
"""Name -> how the references' and the texts' unit features, `(Q, D)` each, become query features without training."""


@torch.inference_mode()
def query_features(
    model: HyCIRModel, processor: HyCIRProcessor, references: torch.Tensor, texts: list[str]
) -> dict[str, torch.Tensor]:
    """Compose queries by every method: name -> `(Q, D)`, unit norm; `references` `(Q, D)` are not normalised."""
    unit, encoded = F.normalize(references, dim=-1), encode_texts(model, processor, texts)
    found = {name: rival(unit, encoded) for name, rival in RIVALS.items()}
    return found | {"mapper": compose(model, processor, references, texts)}


def recall_at_k(results: RetrievalResults, queries: list[dict], k: int) -> float:
    """Count the share of queries with any correct target among the first K (the hit rate; CIRR's R@K)."""
    hits = [not set(query["target_ids"]).isdisjoint(ids[:k]) for query, ids in zip(queries, results.ids, strict=True)]
    return sum(hits) / len(hits)


def evaluate_methods(
    model: HyCIRModel, processor: HyCIRProcessor, gallery: Gallery, features: dict[str, torch.Tensor], queries: list
) -> dict[str, dict[str, float]]:
    """Answer the queries by every method: method -> R@K.

    Args:
        model: Mapper and encoder.
        processor: The model's.
        gallery: The part's pictures.
        features: Image id -> feature `(D,)`, not normalised, of the references.
        queries: Rows in the QUERY schema.
    """
    references = torch.stack([features[query["reference_id"]] for query in queries])  # (Q, D)
    texts = [query["query_text"] for query in queries]
    left_out = [[query["reference_id"]] for query in queries]
    report = {}
    for name, composed in query_features(model, processor, references, texts).items():
        results = gallery.search(composed, k=max(RANKS), exclude_ids=left_out)
        report[name] = {f"R@{k}": recall_at_k(results, queries, k) for k in RANKS}
    return report


def build_gallery(
    model: HyCIRModel, processor: HyCIRProcessor, pictures: dict[str, dict], label: str
) -> tuple[Gallery, dict[str, torch.Tensor]]:
    """Encode a part's pictures into a gallery; also return each one's feature, not normalised."""
    features = encode_images(model, processor, [row["image"] for row in pictures.values()], label)
    fingerprint = model.encoder_fingerprint()
    gallery = Gallery.from_features(F.normalize(features, dim=-1), list(pictures), encoder_fingerprint=fingerprint)
    return gallery, dict(zip(pictures, features, strict=True))


def table_rows(report: dict[str, dict[str, float]]) -> list[list[str]]:
    """Write a report's figures in percent, one row a method."""
    return [[name, *(f"{100 * value:.1f}" for value in recalls.values())] for name, recalls in report.items()]


def main() -> None:
    """Evaluate and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--part", choices=list(GALLERY_VENDORS), nargs="*", default=list(GALLERY_VENDORS))
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
