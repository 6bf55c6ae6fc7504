"""What a training run leaves in the model's folder: card, curves, settings and state."""

import dataclasses
import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from ..files import read_record, write_json, write_text
from ..names import is_hub_id, public_path, public_value
from ..reports.cards import TAGS
from ..reports.render import render
from .arguments import HybridTrainingArguments

STATE_NAME = "trainer_state.json"


@dataclass
class TrainingState:
    """How far a training run is; `trainer_state.json` and every checkpoint hold it.

    Args:
        step (`int`): Steps done.
        log (`list[dict]`): Entries of "step" and figures: losses, learning rate, samples per second,
            "validation/...".
        best_metric (`float`, *optional*): The metric of the best validation.
        best_step (`int`, *optional*): Its step.
        validations_without_better (`int`): Number of validations since then.
        num_broken (`int`): Images that could not be read, over all processes.
        streams (`dict`): Positions of the streams that are read in order.
    """

    step: int = 0
    log: list[dict[str, float]] = field(default_factory=list)
    best_metric: float | None = None
    best_step: int | None = None
    validations_without_better: int = 0
    num_broken: int = 0
    streams: dict[str, Any] = field(default_factory=dict)


def read_result(folder: Path) -> tuple[TrainingState, dict[str, Any]] | None:
    """Read state and settings from the model folder of a finished training run, or return None."""
    path = folder / STATE_NAME
    if not path.is_file():
        return None
    found = read_record(path, {"state": dict, "settings": dict}, remedy="Train again into another folder.")
    return TrainingState(**found["state"]), found["settings"]


def write_report(folder: Path, arguments: HybridTrainingArguments, state: TrainingState, settings: dict) -> None:
    """Write curves, card, resolved settings and state into the model's folder.

    Args:
        folder (`Path`): The model's.
        arguments (`HybridTrainingArguments`): Every setting as it was used. `hycir train --config
            training_config.yaml` repeats the run, once
            output_dir and the data's folders are given: absolute paths are cut to what others may read.
        state (`TrainingState`): The state at the end.
        settings (`dict`): The settings that a resumed run must share.
    """
    shown = public_value({name: value for name, value in arguments.to_dict().items() if name != "output_dir"})
    write_text(folder / "training_config.yaml", yaml.safe_dump(shown, sort_keys=False))
    write_json(folder / STATE_NAME, {"state": dataclasses.asdict(state), "settings": public_value(settings)})
    draw_curves(state.log, folder / "curves.png")
    write_text(folder / "README.md", _card(arguments, state))


def draw_curves(log: list[dict[str, float]], path: Path) -> None:
    """Draw losses, validation figures and learning rate over the steps, as a PNG."""
    from matplotlib.figure import Figure

    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for entry in log:
        for name, value in entry.items():
            if name not in ("step", "samples_per_second"):
                curves[name].append((entry["step"], value))
    panels = {"loss": [], "validation": [], "learning rate": []}  # type: dict[str, list[str]]
    for name in curves:
        panel = "validation" if name.startswith("validation/") else "loss"
        panels["learning rate" if name == "learning_rate" else panel].append(name)
    shown = {title: names for title, names in panels.items() if names}
    figure = Figure(figsize=(8, 3 * max(1, len(shown))), layout="constrained")
    for axes, (title, names) in zip(
        figure.subplots(max(1, len(shown)), squeeze=False)[:, 0], shown.items(), strict=False
    ):
        for name in names:
            axes.plot(*zip(*curves[name], strict=True), label=name.removeprefix("validation/"))
        axes.set(title=title, xlabel="step")
        axes.legend()
    figure.savefig(path, dpi=120)


def save_model(model: Any, processor: Any, folder: Path, save_encoder: bool) -> None:
    """Save model and processor; without `save_encoder`, only the mapper and the encoder's name.

    A local encoder is named by its path relative to the folder, so that both can be moved together.
    """
    named = model.config.encoder_name_or_path
    if named and Path(named).is_dir():
        model.config.encoder_name_or_path = os.path.relpath(Path(named).resolve(), folder.resolve())
    try:
        model.save_pretrained(folder, mapper_only=bool(named) and not save_encoder)
    finally:
        model.config.encoder_name_or_path = named
    processor.save_pretrained(folder)


def _card(arguments: HybridTrainingArguments, state: TrainingState) -> str:
    """The model card: what was trained on what, the last figures, how to use it."""
    sources = [name for name in ("unlabeled", "unlabeled_features", "triplets", "texts") if getattr(arguments, name)]
    settings = {
        "encoder (frozen)": public_path(arguments.encoder or str(arguments.model)),
        "objective": arguments.objective,
        **{name.replace("_", " "): Path(str(getattr(arguments, name))).name for name in sources},
        "steps": state.step,
        "optimizer": f"{arguments.optimizer}, learning rate {arguments.learning_rate:g}, {arguments.schedule}",
        "seed": arguments.seed,
    }
    if arguments.further_triplets:
        shares = [f"{Path(one['path']).name} ({one['share']:.0%} of a step)" for one in arguments.further_triplets]
        settings["further triplets"] = ", ".join(shares)
    base_model = arguments.encoder if is_hub_id(arguments.encoder) else None
    return render(
        "training_card.md",
        metadata=ModelCardData(library_name="hycir_hf", base_model=base_model, tags=TAGS).to_yaml(),
        is_combiner="combiner" in arguments.terms,
        settings=settings,
        model=public_path(f"{arguments.output_dir}/model"),
        losses=_last_figures(state.log, is_validation=False),
        validation=_last_figures(state.log, is_validation=True),
    )


def _last_figures(log: list[dict[str, float]], is_validation: bool) -> dict[str, float]:
    """The last value of each loss, or of each validation figure."""
    left_out, prefix = ("step", "samples_per_second", "learning_rate"), "validation/"
    found = {name: value for entry in log for name, value in entry.items() if name not in left_out}
    return {
        name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix) == is_validation
    }
