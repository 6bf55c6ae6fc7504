"""What a training leaves behind: the model's folder with its card, curves, settings and state."""

import dataclasses
import json
import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from .arguments import HybridTrainingArguments

STATE_NAME = "trainer_state.json"


@dataclass
class TrainingState:
    """Where a training stands; `trainer_state.json` and every checkpoint hold it.

    Args:
        step (`int`): Steps done.
        log (`list[dict]`): Entries of "step" and figures: losses, learning rate, samples a second, "validation/...".
        best_metric (`float`, *optional*): The best validation's metric.
        best_step (`int`, *optional*): Its step.
        validations_without_better (`int`): Validations since then.
        num_broken (`int`): Pictures that could not be read, over all processes.
        streams (`dict`): Where streams read in order stand.
    """

    step: int = 0
    log: list[dict[str, float]] = field(default_factory=list)
    best_metric: float | None = None
    best_step: int | None = None
    validations_without_better: int = 0
    num_broken: int = 0
    streams: dict[str, Any] = field(default_factory=dict)


def read_result(folder: Path) -> tuple[TrainingState, dict[str, Any]] | None:
    """State and settings of a finished training's model folder, or `None`."""
    path = folder / STATE_NAME
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    return TrainingState(**found["state"]), found["settings"]


def write_report(folder: Path, arguments: HybridTrainingArguments, state: TrainingState, settings: dict) -> None:
    """Write curves, card, resolved settings and state into the model's folder.

    Args:
        folder (`Path`): The model's.
        arguments (`HybridTrainingArguments`): Every setting as it was used; `training_config.yaml` trains it again.
        state (`TrainingState`): The training's.
        settings (`dict`): Those of the settings that a resumption must share.
    """
    import yaml

    (folder / "training_config.yaml").write_text(yaml.safe_dump(arguments.to_dict(), sort_keys=False), encoding="utf-8")
    record = {"state": dataclasses.asdict(state), "settings": settings}
    (folder / STATE_NAME).write_text(json.dumps(record, indent=2), encoding="utf-8")
    draw_curves(state.log, folder / "curves.png")
    _card(arguments, state).save(folder / "README.md")


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
    """Save model and processor; the mapper alone, naming its encoder, unless `save_encoder`.

    A local encoder is named relative to the folder, so that both can be moved together.
    """
    named = model.config.encoder_name_or_path
    if named and Path(named).is_dir():
        model.config.encoder_name_or_path = os.path.relpath(Path(named).resolve(), folder.resolve())
    try:
        model.save_pretrained(folder, mapper_only=bool(named) and not save_encoder)
    finally:
        model.config.encoder_name_or_path = named
    processor.save_pretrained(folder)


def _card(arguments: HybridTrainingArguments, state: TrainingState) -> ModelCard:
    """The model card: what was trained on what, how it came out, how to use it."""
    data = ModelCardData(
        library_name="hycir_hf",
        base_model=arguments.encoder if arguments.encoder and not Path(arguments.encoder).exists() else None,
        tags=["composed-image-retrieval", "hycir"],
    )
    is_combiner = "combiner" in arguments.terms
    use = (
        "from hycir_hf.training import CombinerHead\n\ncombiner = CombinerHead.from_pretrained(folder)"
        if is_combiner
        else "from hycir_hf import HyCIRModel, HyCIRProcessor\n\nmodel = HyCIRModel.from_pretrained(folder)\n"
        "processor = HyCIRProcessor.from_pretrained(folder)"
    )
    sources = [name for name in ("unlabeled", "unlabeled_features", "triplets", "texts") if getattr(arguments, name)]
    rows = [
        ("encoder (frozen)", arguments.encoder or arguments.model),
        ("objective", arguments.objective),
        *((name.replace("_", " "), Path(str(getattr(arguments, name))).name) for name in sources),
        ("steps", state.step),
        ("optimizer", f"{arguments.optimizer}, learning rate {arguments.learning_rate:g}, {arguments.schedule}"),
        ("seed", arguments.seed),
    ]
    figures = _last_figures(state.log, "validation/")
    losses = _last_figures(state.log, "")
    lines = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {'Combiner' if is_combiner else 'Mapper'} for composed image retrieval\n",
        "Trained by hycir_hf ([HyCIR](https://arxiv.org/abs/2407.05795)): a reference image and a text find the "
        f"picture that is meant.\n\n```python\n{use}\n```\n",
        "## Training\n\n| | |\n|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
        "\nAll settings: `training_config.yaml`. Log: `trainer_state.json`.\n\n![curves](curves.png)\n",
        "## Results\n",
        "| figure | last value |\n|---|---|",
        *(f"| {name.removeprefix('validation/')} | {value:.4g} |" for name, value in {**losses, **figures}.items()),
    ]
    return ModelCard("\n".join(lines) + "\n")


def _last_figures(log: list[dict[str, float]], prefix: str) -> dict[str, float]:
    """The last value of each loss (no prefix) or validation figure."""
    found: dict[str, float] = {}
    left_out = ("step", "samples_per_second", "learning_rate")
    for entry in log:
        is_validation = any(name.startswith("validation/") for name in entry)
        if is_validation == bool(prefix):
            found |= {name: value for name, value in entry.items() if name not in left_out}
    return found
