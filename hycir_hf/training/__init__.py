"""Hybrid training (paper: Hybrid training), on Accelerate.

arguments.py    HybridTrainingArguments: YAML and flags
trainer.py      HybridTrainer: setup -> main -> fit -> validate
setup.py        from settings to model, streams, loss terms and optimizer
data/           triplets, texts, and the batch of each step
objectives.py   the loss terms: zs, triplet, phrases, projection, combiner
prompts.py      the text side of a step
combiner.py     CombinerHead, the supervised alternative to the mapper
checkpoints.py  checkpoints, each complete or absent
report.py       curves, trainer_state.json, model card

An unlabeled image comes to its loss through `trainer -> setup -> data.batches -> prompts -> objectives -> losses`.
"""

import importlib
from typing import TYPE_CHECKING, Any

_MODULE_OF_NAME = {
    "CombinerHead": "combiner",
    "HybridTrainer": "trainer",
    "HybridTrainingArguments": "arguments",
}

__all__ = ["CombinerHead", "HybridTrainer", "HybridTrainingArguments"]

if TYPE_CHECKING:
    from .arguments import HybridTrainingArguments
    from .combiner import CombinerHead
    from .trainer import HybridTrainer


def __getattr__(name: str) -> Any:
    """Import a name's module when it is first used: the settings alone need no torch."""
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF_NAME[name]}", __name__), name)
