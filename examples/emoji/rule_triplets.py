"""A ceiling for SynCir on the emoji world: triplets that the benchmark's rules make of the training images.

    python examples/emoji/rule_triplets.py            # writes .cache/emoji_rule_triplets.parquet

Right by construction, in the benchmark's own words, and so never the method: they tell how far this encoder and this
mapper come with perfect triplets. Concepts of training only, and images of the training vendors only.
"""

import argparse
import random
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq
from build_benchmark import World
from datasets import Dataset

HERE = Path(__file__).parent
PLACE = HERE.parents[1] / ".cache" / "emoji_rule_triplets.parquet"
MAX_PER_RULE = 4000  # professions and flags would crowd out the rest


def write_rule_triplets(output: Path = PLACE, images: Path = HERE / "data" / "images", seed: int = 0) -> Path:
    """Write the triplets as a Parquet file, where it is not yet."""
    if output.is_file():
        return output
    world, chance = World(images), random.Random(seed)
    ids: dict[str, dict[str, str]] = defaultdict(dict)  # vendor -> name -> image id
    for row in pq.read_table(images / "train.parquet", columns=["image_id", "vendor", "name"]).to_pylist():
        ids[row["vendor"]][row["name"]] = row["image_id"]
    rows = []
    for rule in world.rules:
        found = [
            (by[change.name], by[change.target_name], change)
            for change in world.changes_of["val", rule]  # val's concepts are those of training
            for by in ids.values()
            if change.name in by and change.target_name in by
        ]
        chance.shuffle(found)
        for reference_id, target_id, change in found[:MAX_PER_RULE]:
            text = chance.choice(rule.wordings).format(**change.phrases)
            rows.append({"reference_id": reference_id, "target_id": target_id, "query_text": text})
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_suffix(".tmp")
    Dataset.from_list(rows).to_parquet(unfinished)
    unfinished.rename(output)
    return output


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=PLACE)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(write_rule_triplets(args.output, seed=args.seed))
