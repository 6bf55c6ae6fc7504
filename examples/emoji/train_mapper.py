"""Train the demo's mapper: hybrid training on unlabeled emoji images and SynCir's emoji triplets.

    python examples/emoji/train_mapper.py                  # examples/configs/emoji.yaml, seed 0

Only images of the training vendors and concepts are used, and each is encoded once. Writes `examples/emoji/hycir`: the
mapper alone, which finds its encoder in the folder beside it. If interrupted, run the same command again to resume. A
run that `compare_training.py` has trained is used as it is.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from retrieval import MODEL

from hycir_hf import HyCIRModel, HyCIRProcessor

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "examples" / "paper"))

from ablation_runs import Place, Run, train  # noqa: E402


def main() -> None:
    """Train, then save mapper, processor and log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "examples" / "configs" / "emoji.yaml")
    parser.add_argument("--objective", choices=("zs", "triplet", "hybrid"), default="hybrid")
    parser.add_argument("--steps", type=int, help="in place of the config's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=ROOT / ".cache" / "tables", help="features and models")
    parser.add_argument("--output", type=Path, default=MODEL)
    args = parser.parse_args()

    run = Run(args.objective, triplets="none" if args.objective == "zs" else "filtered", seed=args.seed)
    save(train(Place(args.config, args.work, "emoji", HERE / "data", args.steps), run), args.output)


def save(trained: Path, output: Path) -> None:
    """Save the trained model where the repository keeps it. The encoder is in the folder beside it."""
    model, processor = HyCIRModel.from_pretrained(trained), HyCIRProcessor.from_pretrained(trained)
    model.config.encoder_name_or_path = "../encoder"
    for link in output.glob("*.py"):
        link.unlink()
    model.save_pretrained(output, mapper_only=True)
    processor.save_pretrained(output)
    for copy in output.glob("*.py"):  # links grow no older than the package
        copy.unlink()
        copy.symlink_to(os.path.relpath(ROOT / "hycir_hf" / copy.name, output))
    log = json.loads((trained / "trainer_state.json").read_text(encoding="utf-8"))["state"]["log"]
    terms = ("step", "loss", "zs", "triplet")
    lines = [json.dumps({name: round(entry[name], 4) for name in terms if name in entry}) for entry in log]
    (output / "train_log.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
