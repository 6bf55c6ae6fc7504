"""Train a first mapper on the emoji encoder by L_ZS alone (Eq. 1): unlabeled pictures, no triplets.

    python examples/emoji/train_mapper.py

Pictures of the training vendors and concepts only. Each is encoded once; a step then runs the mapper and the frozen
text encoder. Writes `examples/emoji/hycir`: the mapper alone, which finds its encoder beside it.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import torch
from retrieval import MODEL, encode_images
from tqdm import tqdm

from hycir_hf import HyCIRConfig, HyCIRModel, HyCIRProcessor

HERE = Path(__file__).parent
BATCH_SIZE = 512  # Paper: 512 unlabeled images a step
WARM_UP = 50


def train_mapper(
    model: HyCIRModel, processor: HyCIRProcessor, features: torch.Tensor, steps: int, learning_rate: float
) -> Iterator[float]:
    """Train the mapper on features `(N, D)`, not normalised; yield each step's L_ZS."""
    prompt = processor(text=[""])  # "a photo of [$ $ $ $]"
    optimizer = torch.optim.AdamW(model.mapper.parameters(), lr=learning_rate, weight_decay=0.1)
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARM_UP, (1 + math.cos(math.pi * step / steps)) / 2)
    )
    model.train()
    for _ in range(steps):
        batch = features[torch.randperm(len(features))[:BATCH_SIZE]]
        repeated = {name: value.expand(len(batch), -1) for name, value in prompt.items()}
        loss = model(**repeated, image_features=batch).loss  # without targets, the images' own features
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        yield loss.item()
    model.eval()


def main() -> None:
    """Train, then save mapper, processor and log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=Path, default=HERE / "encoder")
    parser.add_argument("--data", type=Path, default=HERE / "data" / "images" / "train.parquet")
    parser.add_argument("--output", type=Path, default=MODEL)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    model = HyCIRModel.from_encoder(args.encoder, num_pseudo_tokens=4)
    processor = HyCIRProcessor.from_encoder(args.encoder, num_pseudo_tokens=4)
    images = [row["bytes"] for row in pq.read_table(args.data, columns=["image"])["image"].to_pylist()]
    features = encode_images(model, processor, images, "training pictures").clone()  # no inference tensor
    args.output.mkdir(parents=True, exist_ok=True)
    with (args.output / "train_log.jsonl").open("w") as log:
        losses = train_mapper(model, processor, features, args.steps, args.learning_rate)
        for step, loss in enumerate(bar := tqdm(losses, total=args.steps, desc="mapper", unit=" steps")):
            if step % 20 == 0 or step == args.steps - 1:
                bar.set_postfix(loss=f"{loss:.3f}")
                log.write(json.dumps({"step": step, "loss": round(loss, 4)}) + "\n")

    model.config.encoder_name_or_path = "../" + args.encoder.name
    for saved in (HyCIRModel, HyCIRConfig, HyCIRProcessor):
        saved._auto_class = None  # the package is here: no copy of its code beside the weights
    model.save_pretrained(args.output, mapper_only=True)
    processor.save_pretrained(args.output)


if __name__ == "__main__":
    main()
