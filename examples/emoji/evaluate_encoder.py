"""Text -> image retrieval of the emoji encoder over each vendor's whole gallery.

    python examples/emoji/evaluate_encoder.py [--encoder examples/emoji/encoder]

Every image's name is a query; a hit is an image of that emoji among the first K of all the vendor's images. Seen
and held-out concepts are counted apart. Prints a Markdown table; `--json FILE` writes the figures.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from train_encoder import HELD_OUT_VENDOR_SPLIT, IMAGE_MEAN, IMAGE_STD, encode_pictures, encode_texts, read_split
from transformers import CLIPModel, CLIPTokenizer

HERE = Path(__file__).parent


@torch.inference_mode()
def encode(model: CLIPModel, tokenizer: CLIPTokenizer, rows: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode images and names: two `(N, D)` tensors of unit vectors."""
    mean, std = torch.tensor(IMAGE_MEAN).view(1, 3, 1, 1), torch.tensor(IMAGE_STD).view(1, 3, 1, 1)
    images, texts = [], []
    for start in range(0, len(rows["name"]), 256):
        pictures = (rows["pictures"][start : start + 256].float() / 255 - mean) / std
        pooled = encode_pictures(model, pictures, None, None)
        images.append(F.normalize(model.visual_projection(pooled), dim=-1))
        names = [name.lower() for name in rows["name"][start : start + 256]]
        texts.append(F.normalize(model.text_projection(encode_texts(model, tokenizer, names)), dim=-1))
    return torch.cat(images), torch.cat(texts)


def recall_by_vendor(
    images: torch.Tensor, texts: torch.Tensor, rows: dict, held_out: set[str]
) -> dict[str, dict[str, dict]]:
    """R@1, R@5 and R@10 per vendor, for seen and for held-out concepts."""
    vendors = np.array(rows["vendor"])
    is_held_out = np.array([concept in held_out for concept in rows["concept"]])
    report = {}
    for vendor in sorted(set(vendors)):
        index = np.flatnonzero(vendors == vendor)
        scores = texts[index] @ images[index].T
        rank = (scores > scores.diagonal().unsqueeze(1)).sum(1).numpy()  # images before the right one
        report[vendor] = {
            part: {**{f"R@{k}": float((rank[mask] < k).mean()) for k in (1, 5, 10)}, "queries": int(mask.sum())}
            for part, mask in (("seen", ~is_held_out[index]), ("held out", is_held_out[index]))
        }
    return report


def main() -> None:
    """Encode everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=Path, default=HERE / "encoder")
    parser.add_argument("--data", type=Path, default=HERE / "data" / "images")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    model = CLIPModel.from_pretrained(args.encoder, dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(args.encoder)
    splits = [read_split(args.data, split) for split in ("train", "heldout_concepts", HELD_OUT_VENDOR_SPLIT)]
    rows = {column: [value for split in splits for value in split[column]] for column in ("name", "vendor", "concept")}
    rows["pictures"] = torch.cat([split["pictures"] for split in splits])
    report = recall_by_vendor(*encode(model, tokenizer, rows), rows, set(splits[1]["concept"]))
    print("| vendor | concepts | queries | R@1 | R@5 | R@10 |\n|---|---|---|---|---|---|")
    for vendor, parts in report.items():
        for part, figures in parts.items():
            print(
                f"| {vendor} | {part} | {figures['queries']} | "
                + " | ".join(f"{figures[f'R@{k}']:.3f}" for k in (1, 5, 10))
                + " |"
            )
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
