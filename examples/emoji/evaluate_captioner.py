"""Caption the held-out vendor's images and compare the captions with the emoji's names.

    python examples/emoji/evaluate_captioner.py [--captioner examples/emoji/captioner]

Similarity is the cosine of MiniLM's features of the greedy caption and of the lower-cased name; a caption is exact when
it is that name. Seen and held-out concepts are counted apart. Prints ten random examples and a Markdown table;
`--json FILE` writes the figures.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from teachers import text_teacher_features
from tqdm import tqdm
from train_encoder import HELD_OUT_VENDOR_SPLIT, read_split
from transformers import BlipForConditionalGeneration, BlipProcessor

HERE = Path(__file__).parent
MAX_TOKENS = 24  # the longest name has 14


@torch.inference_mode()
def caption_pictures(
    model: BlipForConditionalGeneration, processor: BlipProcessor, pictures: torch.Tensor, batch_size: int = 128
) -> list[str]:
    """Caption images greedily.

    Args:
        model: The captioner.
        processor: Its processor.
        pictures: `(N, 3, 64, 64)` uint8.
        batch_size: Images at a time.
    """
    captions = []
    for start in tqdm(range(0, len(pictures), batch_size), desc="captions", unit=" batches"):
        inputs = processor(images=list(pictures[start : start + batch_size]), return_tensors="pt")
        tokens = model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=MAX_TOKENS)
        captions += processor.batch_decode(tokens, skip_special_tokens=True)
    return captions


def compare_captions(captions: list[str], names: list[str], is_held_out: np.ndarray) -> dict[str, dict]:
    """Mean MiniLM similarity in [-1, 1] and share of exact captions, for seen and held-out concepts and for all."""
    similarity = (text_teacher_features(captions, 64) * text_teacher_features(names, 64)).sum(1)
    is_exact = np.array([caption == name for caption, name in zip(captions, names, strict=True)])
    parts = (("seen", ~is_held_out), ("held out", is_held_out), ("all", np.ones_like(is_held_out)))
    return {
        part: {
            "pictures": int(mask.sum()),
            "similarity": float(similarity[mask].mean()),
            "exact": float(is_exact[mask].mean()),
        }
        for part, mask in parts
    }


def main() -> None:
    """Caption everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captioner", type=Path, default=HERE / "captioner")
    parser.add_argument("--data", type=Path, default=HERE / "data" / "images")
    parser.add_argument("--seed", type=int, default=0, help="of the ten examples")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    model = BlipForConditionalGeneration.from_pretrained(args.captioner, dtype=torch.float32).eval()
    processor = BlipProcessor.from_pretrained(args.captioner)
    rows = read_split(args.data, HELD_OUT_VENDOR_SPLIT)
    names = [name.lower() for name in rows["name"]]
    concepts = pq.read_table(args.data / "heldout_concepts.parquet", columns=["concept"])["concept"].to_pylist()
    is_held_out = np.isin(rows["concept"], sorted(set(concepts)))
    captions = caption_pictures(model, processor, rows["pictures"])
    report = compare_captions(captions, names, is_held_out)

    print("| name | caption | concept |\n|---|---|---|")
    for row in np.random.default_rng(args.seed).permutation(len(names))[:10]:
        print(f"| {names[row]} | {captions[row]} | {'held out' if is_held_out[row] else 'seen'} |")
    print("\n| concepts | pictures | MiniLM similarity | exact |\n|---|---|---|---|")
    for part, figures in report.items():
        print(f"| {part} | {figures['pictures']} | {figures['similarity']:.3f} | {figures['exact']:.3f} |")
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
