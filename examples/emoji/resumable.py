"""A training loop that a stop cannot harm: what a step does depends only on its number, and checkpoints are whole."""

import argparse
import json
import math
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

HERE = Path(__file__).parent
CHECKPOINT_EVERY = 100
LOG_EVERY = 20


def training_parser(description: str, name: str, steps: int, learning_rate: float) -> argparse.ArgumentParser:
    """Make the parser of the options that every training has; `name` is the output folder's."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE / "data" / "images")
    parser.add_argument("--work", type=Path, default=HERE.parents[1] / ".cache" / f"emoji_{name}")
    parser.add_argument("--output", type=Path, default=HERE / name)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--learning-rate", type=float, default=learning_rate)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="autocast to bfloat16")
    return parser


class ResumableTraining:
    """AdamW with warm-up and a cosine; a subclass gives the loss.

    Args:
        work: Folder of the checkpoint and of `log.jsonl`; a checkpoint there is gone on from.
        modules: What is trained, by name.
        steps: How many in all.
        learning_rate: Its highest value.
        warm_up: Steps until then.
        seed: Of every step's generator.
    """

    label = "training"

    def __init__(
        self, work: Path, modules: dict[str, nn.Module], steps: int, learning_rate: float, warm_up: int, seed: int
    ) -> None:
        self.work, self.modules, self.seed = work, modules, seed
        self.steps, self.learning_rate, self.warm_up = steps, learning_rate, warm_up
        self.parameters = [parameter for module in modules.values() for parameter in module.parameters()]
        groups = [
            {"params": [p for p in self.parameters if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in self.parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))
        self.step = 0
        self.checkpoint = work / "checkpoint.pt"
        if self.checkpoint.exists():
            self._load()

    def loss_terms(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Return this step's loss terms; their sum is the loss. All chance comes from `generator`."""
        raise NotImplementedError

    def run(self) -> None:
        """Train to the last step."""
        for module in self.modules.values():
            module.train()
        steps = range(self.step, self.steps)
        bar = tqdm(steps, initial=self.step, total=self.steps, desc=self.label, unit=" steps")
        with (self.work / "log.jsonl").open("a") as log:
            for step in bar:
                terms = self._take_step(step)
                if step % LOG_EVERY == 0:
                    record = {name: round(term.item(), 4) for name, term in terms.items()}
                    bar.set_postfix(record)
                    log.write(json.dumps({"step": step, **record}) + "\n")
                    log.flush()
                self.step = step + 1
                if self.step % CHECKPOINT_EVERY == 0 or self.step == self.steps:
                    self._save()

    def _take_step(self, step: int) -> dict[str, torch.Tensor]:
        progress = max(0.0, (step - self.warm_up) / max(1, self.steps - self.warm_up))
        rate = self.learning_rate * min((step + 1) / self.warm_up, 0.02 + 0.49 * (1 + math.cos(math.pi * progress)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        terms = self.loss_terms(torch.Generator().manual_seed(self.seed * 1_000_003 + step))
        self.optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return terms

    def _load(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(state[name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def _save(self) -> None:
        state = {name: module.state_dict() for name, module in self.modules.items()}
        aside = self.checkpoint.with_suffix(".tmp")
        torch.save({**state, "optimizer": self.optimizer.state_dict(), "step": self.step}, aside)
        aside.replace(self.checkpoint)
