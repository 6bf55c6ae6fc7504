"""HybridTrainer: `setup -> main -> fit -> validate`, in plain sight, on Accelerate.

One step: each process takes its share of the global batch; the mapper runs on the *global* batch in every process (it
is small, and so dropout does not depend on how many share it); each process writes its own rows' pseudo tokens into
their prompts and runs the frozen text encoder; the losses take negatives from every process, with gradient.
"""

import contextlib
import gc
import importlib
import importlib.util
import inspect
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
from transformers.modeling_layers import GradientCheckpointingLayer

from ..losses import backward_in_chunks, hybrid_loss
from ..modeling_hycir import HyCIRModel
from ..processing_hycir import HyCIRProcessor
from .arguments import NOT_IN_RESUME, HybridTrainingArguments
from .checkpoints import CheckpointFolder, aside
from .combiner import CombinerHead
from .data import Batch, Share, TrainingBatches, read_phrases
from .objectives import CombinerTerm, PhrasesTerm, ProjectionTerm, Task, Term, TripletTerm, ZeroShotTerm
from .prompts import PromptEncoder
from .report import TrainingState, read_result, save_model, write_report
from .streams import open_streams

try:
    from accelerate import Accelerator
    from accelerate.utils import LoggerType
except ImportError as error:
    raise ImportError(
        "Expected accelerate for training, but it is not installed. Run `pip install hycir_hf[train]`."
    ) from error

logger = logging.getLogger(__name__)

Validation = Callable[..., dict[str, float]]


class HybridTrainer:
    """Train a mapper (or a combiner) on a frozen encoder (paper: Hybrid training).

    `train()` does all of it. Killed at any step, the same settings go on from the newest checkpoint, to the same
    weights.

    Args:
        arguments (`HybridTrainingArguments`): The settings.
        validate (function, *optional*): Called with model and processor (and the combiner, if that is trained) every
            `validation_steps`, in the main process; returns figures by name. By default `arguments.validation`.
        accelerator (`Accelerator`, *optional*): By default one of the asked-for precision and trackers.

    Raises:
        ImportError: If a tracker, or what draws the curves, is not installed.
        ValueError: If there is no such validation, or a metric but no validation.
    """

    def __init__(
        self,
        arguments: HybridTrainingArguments,
        validate: Validation | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        _check_installed(arguments)
        self.arguments, self.state = arguments, TrainingState()
        self.output_dir = Path(arguments.output_dir)
        self.accelerator = accelerator or Accelerator(
            mixed_precision=arguments.mixed_precision,
            log_with=arguments.report_to or None,
            project_dir=str(self.output_dir),
        )
        self.validation = validate or _find_validation(arguments)
        if arguments.metric is not None and self.validation is None:
            raise ValueError(
                f"Expected a validation that gives the metric {arguments.metric!r}, but found none. Set validation to "
                "MODULE:FUNCTION, or leave metric out."
            )
        self.checkpoints = CheckpointFolder(self.output_dir / "checkpoints", arguments.save_total_limit)

    def train(self) -> TrainingState:
        """Train to the end and save; a training that is already done is left as it is.

        Returns:
            `TrainingState`: With the log of losses and validations.

        Raises:
            ValueError: If the data does not fit, or `output_dir` holds a training with other settings.
            FloatingPointError: If the loss is not finite.
            OSError: If something cannot be saved.
        """
        result = read_result(self.output_dir / "model")
        if result is not None:
            self._check_settings(result[1])
            logger.info("The training in %s is already done.", self.output_dir)
            return result[0]
        self.setup()
        self.main()
        return self.state

    def setup(self) -> None:
        """Build model, streams, terms and optimizer; go back to the newest checkpoint."""
        arguments, accelerator = self.arguments, self.accelerator
        self.share = Share(accelerator.process_index, accelerator.num_processes)
        self.checkpoints.create()
        torch.manual_seed(arguments.seed)  # the fresh mapper's weights, the same in every process
        self.model, self.processor = load_model(arguments)
        self.model.to(accelerator.device)
        is_combiner = "combiner" in arguments.terms
        self.trained: nn.Module = CombinerHead(self.model.config.feature_size) if is_combiner else self.model.mapper
        self.trained.to(accelerator.device)
        streams = list(dict.fromkeys(_TERMS[name].stream for name in arguments.terms))
        self.streams = open_streams(
            streams, arguments, self.model, self.processor, self.share, accelerator.wait_for_everyone
        )
        self.terms = build_terms(arguments, self.model, self.processor)
        self.num_steps = arguments.steps or (arguments.epochs or 1) * self.streams[streams[0]].order.steps_per_epoch
        self.prompt_encoder = PromptEncoder(self.model, arguments.chunk_size, arguments.reuse_prefix)
        if arguments.compile:
            compile_layers(self.model)
        self.wrapped, self.optimizer = accelerator.prepare(self.trained, build_optimizer(arguments, self.trained))
        self._resume()
        if arguments.report_to:
            accelerator.init_trackers("hycir", config={name: str(v) for name, v in arguments.to_dict().items()})

    def main(self) -> None:
        """Fit; then save the model's folder with curves, card and state."""
        self.fit()
        if self.arguments.load_best_at_end and self.state.best_step is not None:
            self.trained.load_state_dict(self.checkpoints.load(self.state.best_step)["trained"])
        if self.accelerator.is_main_process:
            with aside(self.output_dir / "model") as folder:
                self._save_trained(folder)
                write_report(folder, self.arguments, self.state, self._settings())
        self.accelerator.wait_for_everyone()
        self.release()

    def release(self) -> None:
        """Let go of trackers and of the other processes; the model stays.

        First of DDP's reducer: where it is what last holds a gloo process group, freeing it can wait for ever.
        """
        self.wrapped = self.trained
        self.accelerator.free_memory()
        gc.collect()  # the wrapper is in cycles, and free_memory collects before it lets go
        self.accelerator.end_training()

    def fit(self) -> None:
        """Take the steps that are left."""
        arguments, state = self.arguments, self.state
        batches = TrainingBatches(self.streams, state.step, self.num_steps, state.streams)
        self.model.train()
        self.trained.train()
        meter = _Meter(self._samples_per_step(), state.step)
        with self._progress_bar() as bar:
            for batch in batches.loader(arguments.num_workers):
                if self._is_to_stop_early():
                    break
                figures = self.take_step(batch)
                bar.update()
                if self._is_due(arguments.log_steps):
                    self._log({**figures, "samples_per_second": meter.read(state.step)}, bar)
                if self.validation is not None and self._is_due(arguments.validation_steps):
                    self.validate(bar)
                if self._is_due(arguments.save_steps):
                    self._save_checkpoint()

    def validate(self, bar: tqdm | None = None) -> dict[str, float]:
        """Call the validation, log its figures, and keep the best step's checkpoint."""
        figures: list[Any] = [None]
        if self.accelerator.is_main_process and self.validation is not None:
            self.model.eval()
            self.trained.eval()
            further = [] if self.trained is self.model.mapper else [self.trained]
            with torch.no_grad():
                found = self.validation(self.model, self.processor, *further)
            figures = [{name: float(value) for name, value in found.items()}]
        if self.share.count > 1:
            dist.broadcast_object_list(figures, src=0)
        self.model.train()
        self.trained.train()
        self._log({f"validation/{name}": value for name, value in figures[0].items()}, bar)
        self._note_metric(figures[0])
        return figures[0]

    def take_step(self, batch: Batch) -> dict[str, float]:
        """Take one optimizer step.

        Args:
            batch (`Batch`): This process's share of the step's global batch.

        Returns:
            `dict[str, float]`: "loss" and each term over all processes, and "learning_rate".

        Raises:
            FloatingPointError: If the loss is not finite; the batch is saved for inspection, and no step taken.
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
        state.step, state.streams = batch.step + 1, batch.state
        return {**values, "learning_rate": learning_rate}

    def backward(self, batch: Batch) -> dict[str, float]:
        """Compute the loss and leave its gradient in the trained part's parameters.

        Args:
            batch (`Batch`): As in `take_step`.

        Returns:
            `dict[str, float]`: Means over all processes of "loss", each term and "num_broken", the pictures not read.
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
        """Run the trained part once, on all processes' rows of all tasks; give back this process's rows of each."""
        gathered = [[self._gather(one) for one in task.inputs] for task in tasks]
        inputs = [torch.cat(column) for column in zip(*gathered, strict=True)]
        outputs = self.wrapped(*inputs).float().split([len(columns[0]) for columns in gathered])
        return [self.share.of(output) for output in outputs]

    def _backward_to_leaves(self, batch: Batch, tasks: dict[str, Task], leaves: list[Tensor]) -> dict[str, float]:
        """Run the text encoder on all prompts, and the loss's gradient back to the leaves (pseudo tokens)."""
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
            num_broken = torch.tensor(float(batch.num_broken), device=features.device)
            means.update(self._means({**values, "num_broken": num_broken}))
            self._check_finite(batch, {name: means[name] for name in values})
            return values["loss"]

        if self.arguments.chunk_size is None:
            self.accelerator.backward(loss_of(torch.cat([chunk() for chunk in chunks])))
        else:
            backward_in_chunks(chunks, loss_of, self.accelerator.backward)
        return means

    def _gather(self, rows: Tensor) -> Tensor:
        """All processes' rows, without gradient."""
        return self.accelerator.gather(rows) if self.share.count > 1 else rows

    def _means(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Means over all processes."""
        stacked = torch.stack([value.detach().float() for value in values.values()])
        if self.share.count > 1:
            stacked = self.accelerator.reduce(stacked, reduction="mean")
        return dict(zip(values, stacked.tolist(), strict=True))

    def _check_finite(self, batch: Batch, found: dict[str, float]) -> None:
        if all(math.isfinite(value) for value in found.values()):
            return
        shown = ", ".join(f"{name} {value:g}" for name, value in found.items())
        raise FloatingPointError(
            f"Expected a finite loss at step {batch.step}, but found {shown}. Its batch (ids, texts, features) "
            f"{self._save_for_inspection(batch)}, or lower the learning rate."
        )

    def _save_for_inspection(self, batch: Batch) -> str:
        """Save a batch whose loss is not finite; returns where it is, or why it could not be saved."""
        place = self.output_dir / f"batch_of_step_{batch.step}_process_{self.share.index}.pt"
        buffer = io.BytesIO()
        try:
            torch.save(batch, buffer)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(buffer.getvalue())
        except OSError as error:  # the loss is the news: a full disk must not hide it
            with contextlib.suppress(OSError):
                place.unlink(missing_ok=True)
            return f"could not be saved in {place} ({error}): make room there to see it"
        return f"is saved in {place}: look for broken features there (torch.load(..., weights_only=False))"

    def _samples_per_step(self) -> int:
        sizes = {"unlabeled": "unlabeled_batch_size", "triplets": "triplet_batch_size", "texts": "text_batch_size"}
        return sum(getattr(self.arguments, sizes[name]) for name in self.streams)

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
                f"Expected the metric {name!r} among the validation's figures, but found {list(figures)}. Set metric "
                "to one of those."
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
        saved = self.checkpoints.load(steps[-1])
        self._check_settings(saved["settings"])
        self.trained.load_state_dict(saved["trained"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if saved["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        self.state = TrainingState(**saved["state"])
        logger.info("Going on from step %d.", self.state.step)

    def _settings(self) -> dict[str, Any]:
        """The settings that a resumption must share."""
        return {name: value for name, value in self.arguments.to_dict().items() if name not in NOT_IN_RESUME}

    def _check_settings(self, found: dict[str, Any]) -> None:
        wanted = self._settings()
        other = [
            f"{name} {found.get(name)!r}, now {wanted[name]!r}" for name in wanted if found.get(name) != wanted[name]
        ]
        if other:
            raise ValueError(
                f"Expected the settings of the training that {self.output_dir} holds, but they differ: "
                f"{'; '.join(other)}. Use another output_dir, or remove this one."
            )


class _Meter:
    """Samples a second since it was last read."""

    def __init__(self, samples_per_step: int, step: int) -> None:
        self.samples_per_step, self.step, self.time = samples_per_step, step, time.monotonic()

    def read(self, step: int) -> float:
        """Samples a second until this step."""
        now = time.monotonic()
        rate = (step - self.step) * self.samples_per_step / max(now - self.time, 1e-9)
        self.step, self.time = step, now
        return round(rate, 1)


def load_model(arguments: HybridTrainingArguments) -> tuple[Any, Any]:
    """Load the model to train on, or put a fresh mapper on an encoder; and its processor.

    Raises:
        ValueError: If there is nothing there.
    """
    path = str(arguments.model or arguments.encoder)
    if not Path(path).exists() and (path.startswith((".", "/")) or path.count("/") > 1):
        raise ValueError(f"Expected a model in {path}, but found nothing there. Give its folder or its Hub id.")
    if arguments.model is not None:
        model = HyCIRModel.from_pretrained(path).float()
        beside = Path(path) / str(model.config.encoder_name_or_path)
        if model.config.encoder_name_or_path and beside.is_dir():
            model.config.encoder_name_or_path = str(beside)
        return model, HyCIRProcessor.from_pretrained(path)
    mapper = {name: getattr(arguments, name) for name in ("mapper_hidden_size", "mapper_num_layers", "mapper_dropout")}
    model = HyCIRModel.from_encoder(path, arguments.num_pseudo_tokens, prompt=arguments.prompt, **mapper)
    return model, HyCIRProcessor.from_encoder(path, arguments.num_pseudo_tokens, prompt=arguments.prompt)


_TERMS: dict[str, Any] = {
    "zs": ZeroShotTerm,
    "triplet": TripletTerm,
    "phrases": PhrasesTerm,
    "projection": ProjectionTerm,
    "combiner": CombinerTerm,
}
"""A term's name in `objective` -> its class; a new one is one class in `objectives` and one line here."""


def build_terms(arguments: HybridTrainingArguments, model: Any, processor: Any) -> dict[str, Term]:
    """Build the objective's loss terms by name."""
    terms: dict[str, Term] = {}
    for name in arguments.terms:
        further = [read_phrases(str(arguments.phrases)), arguments.top_k_concepts] if name == "phrases" else []
        terms[name] = _TERMS[name](model, processor, *further)
    return terms


def build_optimizer(arguments: HybridTrainingArguments, trained: nn.Module) -> torch.optim.Optimizer:
    """Build Adam (paper) or AdamW (Pic2Word), whose weight decay leaves biases alone."""
    parameters = list(trained.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": arguments.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    kind = torch.optim.AdamW if arguments.optimizer == "adamw" else torch.optim.Adam
    betas = (arguments.adam_beta1, arguments.adam_beta2)
    return kind(groups, lr=arguments.learning_rate, betas=betas, eps=arguments.adam_epsilon)


def schedule_factor(step: int, num_steps: int, warmup_steps: int, schedule: str) -> float:
    """The factor on the learning rate at a step, as Pic2Word has it: linear warm-up, then the schedule down to 0.

    Args:
        step (`int`): From 0.
        num_steps (`int`): Of the whole training.
        warmup_steps (`int`): Steps until the factor is 1.
        schedule (`str`): "constant", "cosine" or "linear".
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)  # in [0, 1)
    return {"constant": 1.0, "cosine": (1 + math.cos(math.pi * progress)) / 2, "linear": 1 - progress}[schedule]


def compile_layers(model: Any) -> None:
    """Compile the text encoder's layers in place, each by itself, for prompts of any length."""
    for module in model._adapter.text_model(model.encoder).modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile(dynamic=True)


def _chunk(encoder: PromptEncoder, task: Task, leaf: Tensor, rows: Tensor) -> Callable[[], Tensor]:
    """How a group of a task's features `(R, D)` is computed from the leaf of its pseudo tokens."""
    prompts = task.prompts
    if prompts is None:
        return lambda: leaf[rows.to(leaf.device)]
    return lambda: encoder.encode(prompts, leaf, rows, task.normalize)


def _check_installed(arguments: HybridTrainingArguments) -> None:
    """Refuse at the beginning what would be missing at the end; accelerate leaves out a missing tracker silently."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(
            "Expected matplotlib for the training's curves, but it is not installed. Run `pip install hycir_hf[train]`."
        )
    own = [kind.value for kind in LoggerType if kind is not LoggerType.ALL]
    for name in arguments.report_to:
        modules = (name, "tensorboardX") if name == "tensorboard" else (name,)
        if name in own and not any(importlib.util.find_spec(module) for module in modules):
            raise ImportError(
                f"Expected the tracker {name!r}, as report_to says, but it is not installed. Run `pip install {name}`, "
                "or leave it out."
            )


def _find_validation(arguments: HybridTrainingArguments) -> Validation | None:
    """The function that the settings name, with its options."""
    if arguments.validation is None:
        return None
    module_name, _, name = arguments.validation.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), name)
        inspect.signature(function).bind(None, None, **arguments.validation_options)
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(
            f"Expected a function of model and processor at {arguments.validation!r} that takes "
            f"{arguments.validation_options}, but: {error}. Name one as MODULE:FUNCTION."
        ) from error
    return lambda *inputs: function(*inputs, **arguments.validation_options)
