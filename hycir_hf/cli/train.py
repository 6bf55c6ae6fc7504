"""`hycir train`: a mapper, or a combiner, on a frozen encoder."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

import hycir_hf

from ..training.arguments import HybridTrainingArguments
from .models import quiet
from .options import Common, Report, flags_of

if TYPE_CHECKING:
    Flags = dict[str, Any]
else:
    Flags = flags_of(HybridTrainingArguments)

app = App(
    name="train",
    help_epilogue="""\
Each setting is a flag (--max-grad-norm 1) and a key of the --config file
(max_grad_norm: 1). If the command is interrupted, run it again to resume.

Examples:
  hycir train --config examples/configs/clip_vit_l14_paper.yaml
  hycir train --config examples/configs/emoji.yaml --steps 1000 \\
      --output-dir output/try
  accelerate launch -m hycir_hf.cli train \\
      --config examples/configs/clip_vit_l14_paper.yaml --mixed-precision bf16""",
)


@app.default
def train(
    *,
    config: Annotated[Path | None, Parameter(alias="-c")] = None,
    settings: Flags | None = None,
    common: Common | None = None,
) -> Report | None:
    """Train a mapper with HyCIR's hybrid objective, or another one.

    Args:
        config: YAML file of settings. A flag replaces the file's value.
    """
    arguments = HybridTrainingArguments.from_yaml(config, **(settings or {}))  # all complaints, before torch is loaded
    logging.basicConfig(format="%(message)s")
    logging.getLogger("hycir_hf").setLevel(logging.INFO)
    quiet()
    trainer = hycir_hf.training.HybridTrainer(arguments)
    state = trainer.train()
    if not trainer.accelerator.is_main_process:
        return None
    model, last = f"{arguments.output_dir}/model", state.log[-1] if state.log else {}
    lines = [f"{model}: {state.step} steps, loss {last.get('loss', float('nan')):.4f}"]
    if state.best_step is not None:
        lines.append(f"Best {arguments.metric}: {state.best_metric:.4f} at step {state.best_step}")
    return Report({"model": model, "steps": state.step, "best_step": state.best_step, "last": last}, lines)
