"""Hybrid training of a mapper on a frozen encoder: unlabeled pictures and SynCir's triplets.

    pip install "hycir_hf[train]"
    python examples/train.py

Twenty small steps, to see it run: `examples/configs/` has the paper's settings, and `hycir train --config` reads them.
The same command again goes on where it was cut short, and leaves a finished training as it is.
"""

from pathlib import Path

from hycir_hf import HyCIRModel, HyCIRProcessor
from hycir_hf.training import HybridTrainer, HybridTrainingArguments

EMOJI = Path(__file__).parent / "emoji"

arguments = HybridTrainingArguments(
    output_dir="demo/train",
    encoder=str(EMOJI / "encoder"),
    num_pseudo_tokens=4,
    objective="hybrid",  # L_ZS + L_triplet
    unlabeled=str(EMOJI / "data" / "images" / "train.parquet"),
    triplets=str(EMOJI / "syncir"),  # their pictures are found by SynCir's recipe
    steps=20,
    unlabeled_batch_size=32,
    triplet_batch_size=16,
    learning_rate=1e-3,
    save_steps=10,
    log_steps=5,
)
state = HybridTrainer(arguments).train()
for entry in state.log:
    print(f"step {entry['step']}: loss {entry['loss']:.3f}")

folder = Path(arguments.output_dir) / "model"  # with card, curves and settings
model, processor = HyCIRModel.from_pretrained(folder), HyCIRProcessor.from_pretrained(folder)
print(f"{folder}: {model.config.num_pseudo_tokens} pseudo tokens, {model.config.encoder_config.model_type} encoder")
