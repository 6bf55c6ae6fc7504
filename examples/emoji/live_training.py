"""Hybrid training, live and small: some of SynCir's triplets and their images, in less than a minute.

    python examples/emoji/live_training.py            # a step of `make demo`

Trains a fresh mapper and saves it in `demo/training`. Prints its recall before and after, on the "val" split of the
emoji benchmark and on a vendor that no training has seen.
"""

import logging
import shutil
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch
from datasets import load_dataset
from retrieval import build_gallery, evaluate_methods, read_pictures, read_queries

from hycir_hf import Gallery, HyCIRModel, HyCIRProcessor
from hycir_hf.training import HybridTrainer, HybridTrainingArguments

HERE = Path(__file__).parent
OUTPUT = HERE.parents[1] / "demo" / "training"
NUM_TRIPLETS = 600
STEPS, UNLABELED, TRIPLETS = 40, 64, 64
PART = "heldout_vendor"


def write_slice(output: Path) -> int:
    """Write some triplets and the images that they name; return the number of images."""
    triplets = load_dataset(str(HERE / "syncir"), "triplets", split="train")
    triplets = (
        triplets.shuffle(seed=0).select(range(NUM_TRIPLETS)).select_columns(["reference_id", "target_id", "query_text"])
    )
    wanted = set(triplets["reference_id"]) | set(triplets["target_id"])
    images = pq.read_table(
        HERE / "data" / "images" / "train.parquet", columns=["image_id", "image"], filters=[("image_id", "in", wanted)]
    )
    output.mkdir(parents=True)
    triplets.to_parquet(output / "triplets.parquet")
    pq.write_table(images, output / "images.parquet")
    return images.num_rows


def settings(data: Path, output: Path) -> HybridTrainingArguments:
    """The paper's objective, for less than a minute."""
    return HybridTrainingArguments(
        encoder=str(HERE / "encoder"),
        objective="hybrid",
        unlabeled=str(data / "images.parquet"),
        unlabeled_features=str(output / "features"),
        triplets=str(data / "triplets.parquet"),
        triplet_images=str(data / "images.parquet"),
        triplet_features=str(output / "features"),
        unlabeled_batch_size=UNLABELED,
        triplet_batch_size=TRIPLETS,
        optimizer="adamw",
        learning_rate=1e-3,
        schedule="cosine",
        warmup_steps=10,
        steps=STEPS,
        log_steps=10,
        output_dir=str(output),
    )


def train_live(gallery: Gallery, features: dict[str, torch.Tensor], queries: list[dict], output: Path = OUTPUT) -> None:
    """Train, and print the losses and the recall before and after.

    Args:
        gallery: The images of the benchmark part.
        features: Id of each reference image -> its feature `(D,)`, not normalised.
        queries: Rows in the QUERY schema.
        output: Folder of the training. An existing one is removed.
    """
    shutil.rmtree(output, ignore_errors=True)
    start = time.monotonic()
    count = write_slice(output / "data")
    arguments = settings(output / "data", output)
    torch.manual_seed(arguments.seed)
    processor = HyCIRProcessor.from_encoder(HERE / "encoder")
    fresh = HyCIRModel.from_encoder(HERE / "encoder").eval()
    state = HybridTrainer(arguments).train()
    trained = HyCIRModel.from_pretrained(output / "model").eval()
    recalls = [evaluate_methods(model, processor, gallery, features, queries)["mapper"] for model in (fresh, trained)]
    print(f"\nHybrid training, live: {NUM_TRIPLETS} of SynCir's triplets, {count:,} images, {STEPS} steps")
    for entry in state.log:
        print(f"  step {entry['step']:3}: L_ZS {entry['zs']:.2f}, L_triplet {entry['triplet']:.2f}")
    before, after = ("  ".join(f"{name} {100 * value:.2f}" for name, value in one.items()) for one in recalls)
    print(f"  mapper before: {before}\n  mapper after:  {after}")
    print(f"  {time.monotonic() - start:.0f} s; the model is in {output / 'model'}")


if __name__ == "__main__":
    logging.getLogger("transformers").setLevel(logging.ERROR)
    part_gallery, part_features = build_gallery(
        HyCIRModel.from_encoder(HERE / "encoder").eval(),
        HyCIRProcessor.from_encoder(HERE / "encoder"),
        read_pictures(PART),
        "encoding Twemoji",
    )
    train_live(part_gallery, part_features, read_queries("val", PART))
