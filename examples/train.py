"""Train a mapper on a frozen encoder, with unlabeled images and SynCir's triplets (hybrid training).

    pip install "hycir_hf[train]"
    python examples/train.py

This takes twenty small steps. The paper's settings are in `examples/configs/`, and `hycir train --config` reads them.
If interrupted, run the same command again to resume. A finished training is left as it is.
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
    triplets=str(EMOJI / "syncir"),  # SynCir's recipe says where their images are
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
