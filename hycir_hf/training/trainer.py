"""HybridTrainer: `setup -> main -> fit -> validate` in plain sight, on Accelerate.

One step, in every process:

1. Take this process's share of the global batch.
2. Run the mapper on the *global* batch: it is small, and so its dropout does not depend on the number of processes.
3. Write the pseudo tokens of this process's rows into their prompts, and run the frozen text encoder on these.
4. Compute the losses, with negatives and gradients from every process.
"""

import gc
import io
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from ..files import atomic_file, atomic_folder
from ..losses import backward_in_chunks, hybrid_loss
from ..names import public_value
from .arguments import DEFAULTS, NOT_IN_RESUME, HybridTrainingArguments
from .checkpoints import CheckpointFolder
from .combiner import CombinerHead
from .data import Batch, Share, TrainingBatches
from .interrupts import StopSignals
from .objectives import Task
from .prompts import PromptEncoder
from .report import TrainingState, read_result, save_model, write_report
from .setup import (
    TERMS,
    Accelerator,
    Validation,
    build_accelerator,
    build_optimizer,
    build_terms,
    check_installed,
    check_launch,
    compile_layers,
    find_validation,
    load_model,
    open_streams,
    schedule_factor,
)

logger = logging.getLogger(__name__)


class HybridTrainer:
    """Train a mapper (or a combiner) on a frozen encoder (paper: Hybrid training): `train()` does everything.

    Ctrl-C or SIGTERM save a checkpoint after the running step. After that or a kill, the same settings resume the
    training from the newest checkpoint and give the same weights.

    Args:
        arguments (`HybridTrainingArguments`): The settings.
        validate (function, *optional*): Called in the main process every `validation_steps` with model and processor
            (and the combiner, if one is trained). It returns figures by name. By default `arguments.validation`.
        accelerator (`Accelerator`, *optional*): By default one with the precision and trackers of the settings.

    Raises:
        ImportError: If matplotlib or a tracker is not installed.
        ValueError: If the validation does not exist, a metric is given without a validation, or the processes that were
            launched together do not see each other.
    """

    def __init__(
        self,
        arguments: HybridTrainingArguments,
        validate: Validation | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        check_installed(arguments)
        self.arguments, self.state = arguments, TrainingState()
        self.output_dir = Path(arguments.output_dir)
        self.accelerator = accelerator or build_accelerator(arguments)
        check_launch(self.accelerator)
        self.validation = validate or find_validation(arguments)
        if arguments.metric is not None and self.validation is None:
            raise ValueError(
                f"metric={arguments.metric!r} needs a validation that returns it. Set validation to MODULE:FUNCTION."
            )
        self.stop_signals, self.is_stopped = StopSignals(), False
        self.checkpoints = CheckpointFolder(self.output_dir / "checkpoints", arguments.save_total_limit)

    def train(self) -> TrainingState:
        """Train to the end and save. A finished training is left as it is.

        Returns:
            `TrainingState`: With the log of losses and validations.

        Raises:
            ValueError: If the data does not fit, or `output_dir` holds a training with other settings.
            FloatingPointError: If the loss is not finite.
            KeyboardInterrupt: After Ctrl-C or SIGTERM, when the checkpoint is saved.
            OSError: If something cannot be saved.
        """
        result = read_result(self.output_dir / "model")
        if result is not None:
            self._check_settings(result[1], public_value(self._settings()))
            logger.info("The training in %s is already done.", self.output_dir)
            return result[0]
        self.setup()
        self.main()
        return self.state

    def setup(self) -> None:
        """Build model, streams, terms and optimizer, and load the newest checkpoint."""
        arguments, accelerator = self.arguments, self.accelerator
        self.share = Share(accelerator.process_index, accelerator.num_processes)
        self.checkpoints.create()
        torch.manual_seed(arguments.seed)  # the fresh mapper's weights are the same in every process
        self.model, self.processor = load_model(arguments)
        self.model.to(accelerator.device)
        is_combiner = "combiner" in arguments.terms
        self.trained: nn.Module = CombinerHead(self.model.config.feature_size) if is_combiner else self.model.mapper
        self.trained.to(accelerator.device)
        names, wait = list(dict.fromkeys(TERMS[name].stream for name in arguments.terms)), accelerator.wait_for_everyone
        self.streams = open_streams(names, arguments, self.model, self.processor, self.share, wait)
        self.terms = build_terms(arguments, self.model, self.processor)
        self.num_steps = arguments.steps or (arguments.epochs or 1) * self.streams[names[0]].order.steps_per_epoch
        self.prompt_encoder = PromptEncoder(self.model, arguments.chunk_size, arguments.reuse_prefix)
        if arguments.compile:
            compile_layers(self.model)
        self.wrapped, self.optimizer = accelerator.prepare(self.trained, build_optimizer(arguments, self.trained))
        prepare: Any = getattr(self.validation, "prepare", None)
        if prepare is not None and accelerator.is_main_process:
            prepare(self.model, self.processor)  # a broken image is found now, not in a thousand steps
        self._resume()
        if arguments.report_to:
            accelerator.init_trackers("hycir", config={name: str(v) for name, v in arguments.to_dict().items()})

    def main(self) -> None:
        """Fit, then save the model's folder with curves, card and state."""
        self.fit()
        if self.arguments.load_best_at_end and self.state.best_step is not None:
            self.trained.load_state_dict(self.checkpoints.load(self.state.best_step)["trained"])
        if self.accelerator.is_main_process:
            with atomic_folder(self.output_dir / "model") as folder:
                self._save_trained(folder)
                write_report(folder, self.arguments, self.state, self._settings())
        self.accelerator.wait_for_everyone()
        self.release()

    def release(self) -> None:
        """Release the trackers and the process group. The model stays.

        DDP's reducer goes first: if it is the last to hold a gloo process group, freeing it can wait for ever.
        """
        self.wrapped = self.trained
        self.accelerator.free_memory()
        gc.collect()  # the wrapper is in reference cycles, and free_memory collects before it releases it
        self.accelerator.end_training()

    def fit(self) -> None:
        """Take the steps that are left."""
        arguments, state = self.arguments, self.state
        batches = TrainingBatches(self.streams, state.step, self.num_steps, state.streams)
        self._set_mode(is_training=True)
        sizes = {"unlabeled": "unlabeled_batch_size", "triplets": "triplet_batch_size", "texts": "text_batch_size"}
        meter = _Meter(sum(getattr(arguments, sizes[name]) for name in self.streams), state.step)
        with self._progress_bar() as bar, self.stop_signals:
            for batch in batches.loader(arguments.num_workers):
                if self._is_to_stop_early():
                    break
                figures = self.take_step(batch)
                bar.update()
                if self._is_due(arguments.log_steps):
                    self._log({**figures, "samples_per_second": meter.read(state.step)}, bar)
                if self.validation is not None and self._is_due(arguments.validation_steps):
                    self.validate(bar)
                if self._is_due(arguments.save_steps) or self.is_stopped:
                    self._save_checkpoint()
                if self.is_stopped and state.step < self.num_steps:
                    logger.warning("Stopped. The same settings resume from the checkpoint of step %d.", state.step)
                    raise KeyboardInterrupt

    def validate(self, bar: tqdm | None = None) -> dict[str, float]:
        """Call the validation, log its figures, and save a checkpoint if its metric is the best so far."""
        figures: list[Any] = [None]
        if self.accelerator.is_main_process and self.validation is not None:
            self._set_mode(is_training=False)
            further = [] if self.trained is self.model.mapper else [self.trained]
            with torch.no_grad():
                found = self.validation(self.model, self.processor, *further)
            figures = [{name: float(value) for name, value in found.items()}]
        if self.share.count > 1:
            dist.broadcast_object_list(figures, src=0)
        self._set_mode(is_training=True)
        self._log({f"validation/{name}": value for name, value in figures[0].items()}, bar)
        self._note_metric(figures[0])
        return figures[0]

    def take_step(self, batch: Batch) -> dict[str, float]:
        """Take one optimizer step.

        Args:
            batch (`Batch`): This process's share of the step's global batch.

        Returns:
            `dict[str, float]`: "loss" and each term, averaged over all processes, and "learning_rate".

        Raises:
            FloatingPointError: If the loss is not finite. The batch is saved for inspection, and no step is taken.
        """
        arguments, state = self.arguments, self.state
        factor = schedule_factor(batch.step, self.num_steps, arguments.warmup_steps, arguments.schedule)
        learning_rate = arguments.learning_rate * factor
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad()
        values = self.backward(batch)
        if arguments.max_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.trained.parameters(), arguments.max_grad_norm)
        self.optimizer.step()
        state.num_broken += round(values.pop("num_broken") * self.share.count)
        self.is_stopped = values.pop("is_stopped") > 0  # in every process, if one of them was asked
        state.step, state.streams = batch.step + 1, batch.state
        return {**values, "learning_rate": learning_rate}

    def backward(self, batch: Batch) -> dict[str, float]:
        """Compute the loss, and leave its gradient in the trained part's parameters.

        Args:
            batch (`Batch`): As in `take_step`.

        Returns:
            `dict[str, float]`: Means over all processes of "loss", each term, "num_broken" (unreadable images) and
            "is_stopped" (whether the process was asked to stop).
        """
        torch.manual_seed(self.arguments.seed * 1_000_003 + batch.step)  # dropout: the same in every process
        with self.accelerator.autocast():
            tasks = {name: term.task(batch) for name, term in self.terms.items()}
            outputs = self._run_trained(list(tasks.values()))
            leaves = [output.detach().requires_grad_() for output in outputs]
            values = self._backward_to_leaves(batch, tasks, leaves)
        torch.autograd.backward(outputs, [leaf.grad for leaf in leaves])
        return values

    def _run_trained(self, tasks: list[Task]) -> list[Tensor]:
        """Run the trained part once on all processes' rows of all tasks. Returns this process's rows of each task."""
        gathered = [[self.accelerator.gather(one) for one in task.inputs] for task in tasks]  # without gradient
        inputs = [torch.cat(column) for column in zip(*gathered, strict=True)]
        outputs = self.wrapped(*inputs).float().split([len(columns[0]) for columns in gathered])
        return [self.share.of(output) for output in outputs]

    def _backward_to_leaves(self, batch: Batch, tasks: dict[str, Task], leaves: list[Tensor]) -> dict[str, float]:
        """Run the text encoder on all prompts, and back-propagate the loss to the leaves (pseudo tokens)."""
        chunks: list[Callable[[], Tensor]] = []
        orders = []
        for task, leaf in zip(tasks.values(), leaves, strict=True):
            groups = [torch.arange(len(leaf))] if task.prompts is None else self.prompt_encoder.groups(task.prompts)
            chunks += [_chunk(self.prompt_encoder, task, leaf, rows) for rows in groups]
            orders.append(torch.argsort(torch.cat(groups)).to(leaf.device))
        values: dict[str, Tensor] = {}
        means: dict[str, float] = {}

        def loss_of(features: Tensor) -> Tensor:
            parts = features.split([len(order) for order in orders])
            for (name, task), order, part in zip(tasks.items(), orders, parts, strict=True):
                values[name] = task.loss(part[order])
            values["loss"] = hybrid_loss(
                values, {name: getattr(self.arguments, f"{name}_weight", 1.0) for name in values}
            )
            counts = {"num_broken": float(batch.num_broken), "is_stopped": float(self.stop_signals.is_asked)}
            further = {name: torch.tensor(value, device=features.device) for name, value in counts.items()}
            means.update(self._means({**values, **further}))
            self._check_finite(batch, {name: means[name] for name in values})
            return values["loss"]

        if self.arguments.chunk_size is None:
            self.accelerator.backward(loss_of(torch.cat([chunk() for chunk in chunks])))
        else:
            backward_in_chunks(chunks, loss_of, self.accelerator.backward)
        return means

    def _means(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Means over all processes."""
        stacked = torch.stack([value.detach().float() for value in values.values()])
        return dict(zip(values, self.accelerator.reduce(stacked, reduction="mean").tolist(), strict=True))

    def _check_finite(self, batch: Batch, found: dict[str, float]) -> None:
        if all(math.isfinite(value) for value in found.values()):
            return
        shown = ", ".join(f"{name} {value:g}" for name, value in found.items())
        raise FloatingPointError(
            f"The loss at step {batch.step} is not finite: {shown}. Lower the learning rate, or look for broken "
            f"features: {self._save_for_inspection(batch)}."
        )

    def _save_for_inspection(self, batch: Batch) -> str:
        """Save a batch whose loss is not finite. Returns where it is, or why it could not be saved."""
        place = self.output_dir / f"batch_of_step_{batch.step}_process_{self.share.index}.pt"
        buffer = io.BytesIO()
        torch.save(batch, buffer)
        try:
            with atomic_file(place) as file:
                file.write(buffer.getvalue())
        except OSError as error:  # the loss is the news: a full disk must not hide it
            return f"the batch could not be saved ({error})"
        return f"the batch is saved in {place} (torch.load with weights_only=False)"

    def _set_mode(self, is_training: bool) -> None:
        self.model.train(is_training)
        self.trained.train(is_training)

    def _is_due(self, every: int) -> bool:
        return self.state.step % every == 0 or self.state.step == self.num_steps

    def _is_to_stop_early(self) -> bool:
        patience = self.arguments.early_stopping_patience
        return patience is not None and self.state.validations_without_better >= patience

    def _progress_bar(self) -> tqdm:
        is_shown = self.arguments.progress and self.accelerator.is_main_process
        return tqdm(total=self.num_steps, initial=self.state.step, desc="Training", unit=" steps", disable=not is_shown)

    def _log(self, entry: dict[str, float], bar: tqdm | None = None) -> None:
        self.state.log.append({"step": self.state.step, **entry})
        if self.arguments.report_to:
            self.accelerator.log(entry, step=self.state.step)
        if bar is not None:
            bar.set_postfix({name.removeprefix("validation/"): f"{value:.4g}" for name, value in entry.items()})

    def _note_metric(self, figures: dict[str, float]) -> None:
        name, state = self.arguments.metric, self.state
        if name is None:
            return
        if name not in figures:
            raise ValueError(
                f"metric is {name!r}, but the validation returns {list(figures)}. Set metric to one of them."
            )
        value, best = figures[name], state.best_metric
        is_best = best is None or (value < best if self.arguments.smaller_is_better else value > best)
        if is_best and not math.isnan(value):
            state.best_metric, state.best_step, state.validations_without_better = value, state.step, 0
            self._save_checkpoint()
        else:
            state.validations_without_better += 1

    def _save_checkpoint(self) -> None:
        if self.accelerator.is_main_process and self.state.step not in self.checkpoints.steps():
            self.checkpoints.save(self.state.step, self._state_dict(), self._save_trained)
            self.checkpoints.prune(keep=self.state.best_step)
        self.accelerator.wait_for_everyone()

    def _save_trained(self, folder: Path) -> None:
        if self.trained is self.model.mapper:
            save_model(self.model, self.processor, folder, self.arguments.save_encoder)
        else:
            self.trained.save_pretrained(folder)

    def _state_dict(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "trained": self.trained.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "state": dict(vars(self.state)),
            "settings": self._settings(),
        }

    def _resume(self) -> None:
        steps = self.checkpoints.steps()
        if not steps:
            return
        saved, scaler = self.checkpoints.load(steps[-1]), self.accelerator.scaler
        self._check_settings(saved["settings"], self._settings())
        self.trained.load_state_dict(saved["trained"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if saved["scaler"] is not None and scaler is not None:
            scaler.load_state_dict(saved["scaler"])
        self.state = TrainingState(**saved["state"])
        logger.info("Resuming from step %d.", self.state.step)

    def _settings(self) -> dict[str, Any]:
        """The settings that must stay the same when a training is resumed."""
        return {name: value for name, value in self.arguments.to_dict().items() if name not in NOT_IN_RESUME}

    def _check_settings(self, found: dict[str, Any], settings: dict[str, Any]) -> None:
        found = {**DEFAULTS, **found}  # a setting that did not exist then had its default's effect
        other = [
            f"{name} was {found[name]!r} and is now {value!r}"
            for name, value in settings.items()
            if found[name] != value
        ]
        if other:
            raise ValueError(
                f"{self.output_dir} holds a training with other settings: {'; '.join(other)}. Choose another "
                "output_dir, or remove this one."
            )


class _Meter:
    """Samples per second since the last reading."""

    def __init__(self, samples_per_step: int, step: int) -> None:
        self.samples_per_step, self.step, self.time = samples_per_step, step, time.monotonic()

    def read(self, step: int) -> float:
        """Return the samples per second until this step."""
        now = time.monotonic()
        rate = (step - self.step) * self.samples_per_step / max(now - self.time, 1e-9)
        self.step, self.time = step, now
        return round(rate, 1)


def _chunk(encoder: PromptEncoder, task: Task, leaf: Tensor, rows: Tensor) -> Callable[[], Tensor]:
    """How the features `(R, D)` of a group of a task's rows are computed from the leaf of its pseudo tokens."""
    prompts = task.prompts
    if prompts is None:
        return lambda: leaf[rows.to(leaf.device)]
    return lambda: encoder.encode(prompts, leaf, rows, task.normalize)
