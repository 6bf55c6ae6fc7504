"""Prints fifty kept triplets to read, with the emoji's true names instead of the captions.

    python examples/emoji/read_syncir.py [--seed 0]

It also prints how often a caption is exactly the true name.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

HERE = Path(__file__).parent
COUNT = 50


def main() -> None:
    """Print the triplets, and the share of captions that are the true name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triplets", type=Path, default=HERE / "syncir" / "triplets.parquet")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    table = pq.read_table(HERE / "data" / "images" / "train.parquet", columns=["image_id", "name"]).to_pydict()
    names = {image_id: name.lower() for image_id, name in zip(table["image_id"], table["name"], strict=True)}
    triplets = pq.read_table(args.triplets).to_pylist()
    for row in sorted(np.random.default_rng(args.seed).permutation(len(triplets))[:COUNT]):
        triplet = triplets[row]
        print(f"{names[triplet['reference_id']]} | {triplet['query_text']} | {names[triplet['target_id']]}")
    sides = ("reference", "target")
    right = np.mean([names[t[f"{side}_id"]] == t[f"{side}_caption"] for t in triplets for side in sides])
    print(f"\n{len(triplets)} triplets; captions that are the true name: {100 * right:.1f}%")


if __name__ == "__main__":
    main()
