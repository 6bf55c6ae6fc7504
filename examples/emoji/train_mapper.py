"""Train a first mapper on the emoji encoder by L_ZS alone (Eq. 1): unlabeled pictures, no triplets.

    python examples/emoji/train_mapper.py

Pictures of the training vendors and concepts only; each is encoded once, into a feature cache. Writes
`examples/emoji/hycir`: the mapper alone, which finds its encoder beside it. Cut short, the same command goes on.
"""

import argparse
import json
from pathlib import Path

from retrieval import MODEL

from hycir_hf import HyCIRConfig, HyCIRModel, HyCIRProcessor
from hycir_hf.training import HybridTrainer, HybridTrainingArguments

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".cache"


def main() -> None:
    """Train, then save mapper, processor and log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=Path, default=HERE / "encoder")
    parser.add_argument("--data", type=Path, default=HERE / "data" / "images" / "train.parquet")
    parser.add_argument("--work", type=Path, default=CACHE / "emoji_mapper", help="features and checkpoints")
    parser.add_argument("--output", type=Path, default=MODEL)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    arguments = HybridTrainingArguments(
        encoder=str(args.encoder),
        objective="zs",
        unlabeled=str(args.data),
        unlabeled_features=str(args.work / "features"),
        output_dir=str(args.work / f"steps_{args.steps}_rate_{args.learning_rate}_seed_{args.seed}"),
        steps=args.steps,
        optimizer="adamw",
        learning_rate=args.learning_rate,
        weight_decay=0.1,
        schedule="cosine",
        warmup_steps=min(50, args.steps // 4),
        seed=args.seed,
        save_steps=50,
    )
    state = HybridTrainer(arguments).train()
    save(Path(arguments.output_dir) / "model", args.output, args.encoder, state.log)


def save(trained: Path, output: Path, encoder: Path, log: list[dict]) -> None:
    """Save the trained model where the repository keeps it, with the way to its encoder beside it."""
    model, processor = HyCIRModel.from_pretrained(trained), HyCIRProcessor.from_pretrained(trained)
    model.config.encoder_name_or_path = "../" + encoder.name
    for saved in (HyCIRModel, HyCIRConfig, HyCIRProcessor):
        saved._auto_class = None  # the package is here: no copy of its code beside the weights
    model.save_pretrained(output, mapper_only=True)
    processor.save_pretrained(output)
    lines = [json.dumps({"step": entry["step"], "loss": round(entry["loss"], 4)}) for entry in log]
    (output / "train_log.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
