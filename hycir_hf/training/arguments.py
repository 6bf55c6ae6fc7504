"""The training's settings: one dataclass, read from a YAML file with flags over it; all complaints come at once.

This module is light (no torch), so that `hycir train --help` is quick.
"""

import argparse
import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TERMS = ("zs", "triplet", "phrases", "projection", "combiner")
"""The loss terms; an objective is one of them or several joined by "+"."""

_ALIASES = {"hybrid": "zs+triplet"}
_CHOICES = {
    "optimizer": ("adam", "adamw"),
    "schedule": ("constant", "cosine", "linear"),
    "mixed_precision": ("no", "bf16", "fp16"),
    "triplet_kind": ("auto", "syncir", "table", "lasco", "cirr", "fashioniq"),
    "features_dtype": ("float16", "float32"),
}
_AT_LEAST = {
    "num_pseudo_tokens": 1, "mapper_hidden_size": 1, "mapper_num_layers": 0, "unlabeled_batch_size": 1,
    "triplet_batch_size": 1, "text_batch_size": 1, "chunk_size": 1, "steps": 1, "epochs": 1, "learning_rate": 0,
    "weight_decay": 0, "warmup_steps": 0, "max_grad_norm": 0, "seed": 0, "save_steps": 1, "save_total_limit": 1,
    "validation_steps": 1, "early_stopping_patience": 1, "log_steps": 1, "num_workers": 0, "zs_weight": 0,
    "triplet_weight": 0, "phrases_weight": 0, "projection_weight": 0, "num_views": 1, "top_k_concepts": 1,
    "stream_buffer_size": 1, "encode_batch_size": 1,
}  # fmt: skip

_EITHER = (("steps", "epochs"), ("encoder", "model"))
"""Pairs of which exactly one is given; a flag makes the file's other one give way."""

_FRESH_MAPPER = ("num_pseudo_tokens", "mapper_hidden_size", "mapper_num_layers", "mapper_dropout", "prompt")
"""Settings of a fresh mapper: a `model` brings its own."""

NOT_IN_RESUME = (
    *("output_dir", "save_steps", "save_total_limit", "log_steps", "report_to", "progress", "num_workers"),
    *("early_stopping_patience", "validation", "validation_options", "validation_steps", "metric", "smaller_is_better"),
    *("encode_batch_size", "load_best_at_end", "save_encoder"),
)
"""Settings that may change between a training and its resumption: they do not change its weights."""


def _setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class HybridTrainingArguments:
    """Settings of a training; the defaults are the paper's (hybrid, Adam, lr 1e-4, 512 + 256 a step).

    Batch sizes are global: the same whatever the number of processes. Each field's meaning is its `help`, which
    `hycir train --help` shows. `output_dir`, `encoder` or `model`, and the objective's data must be given.

    Raises:
        ValueError: With every complaint about the values at once.
    """

    output_dir: str = _setting("", "folder of checkpoints, curves and the trained model")
    encoder: str | None = _setting(None, "frozen encoder to put a fresh mapper on: folder or Hub id")
    model: str | None = _setting(None, "HyCIR model to train on, instead of a fresh mapper")
    num_pseudo_tokens: int = _setting(4, "K, pseudo tokens of an image (paper: 4)")
    mapper_hidden_size: int = _setting(512, "width of the mapper")
    mapper_num_layers: int = _setting(2, "blocks of the mapper")
    mapper_dropout: float = _setting(0.1, "dropout of the mapper, in [0, 1)")
    prompt: str = _setting("a photo of {image}, {text}", "template with {image} and {text}")

    objective: str = _setting(
        "hybrid", "zs, triplet, hybrid, or terms joined by + of zs triplet phrases projection; combiner"
    )
    zs_weight: float = _setting(1.0, "factor on L_ZS")
    triplet_weight: float = _setting(1.0, "factor on L_triplet")
    phrases_weight: float = _setting(0.5, "factor on SEARLE's phrase loss")
    projection_weight: float = _setting(1.0, "factor on LinCIR's projection loss")

    unlabeled: str | None = _setting(
        None, "unlabeled images: folder, PATH[:CONFIG], .tar shards (one, a glob or their folder) or .tsv"
    )
    unlabeled_split: str | None = _setting(None, "split of a data set")
    unlabeled_image_column: str | None = _setting(None, "image column of a data set")
    unlabeled_id_column: str | None = _setting(None, "id column of a data set")
    unlabeled_tsv_folder: str | None = _setting(None, "where a .tsv's pictures lie")
    unlabeled_streaming: bool = _setting(False, "read the data set or the .tar shards in order instead of by row")
    stream_buffer_size: int = _setting(1000, "images of a stream that are shuffled together")
    unlabeled_features: str | None = _setting(None, "feature cache of the unlabeled images; made if it is not there")
    triplets: str | None = _setting(
        None, "triplets: SynCir's folder, a .parquet, .csv or .jsonl file, LaSCo's JSON, CIRR's or FashionIQ's folder"
    )
    triplet_kind: str = _setting("auto", "auto, syncir, table, lasco, cirr or fashioniq")
    triplet_split: str | None = _setting(None, "split of SynCir's data set")
    triplet_images: str | None = _setting(None, "the triplets' pictures, where they do not lie with them")
    triplet_features: str | None = _setting(None, "feature cache of the triplets' images; made if it is not there")
    num_views: int = _setting(1, "augmented views of each unlabeled image in unlabeled_features")
    features_dtype: str = _setting("float16", "float16 or float32, in a cache that is made")
    encode_batch_size: int = _setting(64, "images encoded at once, from pixels")
    phrases: str | None = _setting(None, "SEARLE's phrases: JSON, concept to list of phrases")
    top_k_concepts: int = _setting(15, "an image's most similar concepts, of which one is drawn")
    texts: str | None = _setting(None, "LinCIR's texts: .txt, .json or PATH[:CONFIG]")
    text_column: str | None = _setting(None, "text column of a data set")

    unlabeled_batch_size: int = _setting(512, "unlabeled images a step, over all processes")
    triplet_batch_size: int = _setting(256, "triplets a step, over all processes")
    text_batch_size: int = _setting(512, "texts a step, over all processes")
    chunk_size: int | None = _setting(None, "prompts held in memory at once; the gradients stay the same")
    steps: int | None = _setting(None, "optimizer steps")
    epochs: int | None = _setting(None, "instead of steps: passes over the objective's first source")
    optimizer: str = _setting("adam", "adam or adamw")
    learning_rate: float = _setting(1e-4, "highest learning rate")
    weight_decay: float = _setting(0.0, "weight decay; biases have none")
    adam_beta1: float = _setting(0.9, "Adam's first beta")
    adam_beta2: float = _setting(0.999, "Adam's second beta")
    adam_epsilon: float = _setting(1e-8, "Adam's epsilon")
    schedule: str = _setting("constant", "constant, cosine or linear, after the warm-up")
    warmup_steps: int = _setting(0, "steps until the highest learning rate")
    max_grad_norm: float | None = _setting(None, "clip the gradient to this norm")
    mixed_precision: str = _setting("no", "no, bf16 or fp16")
    compile: bool = _setting(False, "torch.compile the text encoder's layers")
    reuse_prefix: bool = _setting(True, "compute the prompts' common beginning once, where the encoder is causal")
    seed: int = _setting(0, "of mapper, order and dropout")
    num_workers: int = _setting(0, "processes that read pictures")

    save_steps: int = _setting(1000, "steps between checkpoints")
    save_total_limit: int | None = _setting(2, "newest checkpoints kept; the best one is kept besides")
    save_encoder: bool = _setting(False, "save the encoder too; otherwise the model names where it is")
    validation: str | None = _setting(None, "MODULE:FUNCTION, called with model and processor, returns name to figure")
    validation_options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "further arguments of that function (JSON)"}
    )
    validation_steps: int = _setting(1000, "steps between validations")
    metric: str | None = _setting(None, "figure of the validation that says which checkpoint is best")
    smaller_is_better: bool = _setting(False, "whether the best metric is the smallest")
    early_stopping_patience: int | None = _setting(None, "validations without a better metric before the end")
    load_best_at_end: bool = _setting(False, "save the best checkpoint's weights as the trained model")
    log_steps: int = _setting(10, "steps between entries of the log")
    report_to: list[str] = field(
        default_factory=list, metadata={"help": "trackers, such as tensorboard wandb trackio (or joined by commas)"}
    )
    progress: bool = _setting(True, "show a progress bar")

    def __post_init__(self) -> None:
        complaints = [*self._type_complaints()]
        if not complaints:
            complaints = [*self._value_complaints(), *self._data_complaints()]
        if complaints:
            raise ValueError(f"Training settings: {'; '.join(complaints)}. Correct them in the config or by flags.")

    @property
    def terms(self) -> tuple[str, ...]:
        """The objective's loss terms."""
        return tuple(_ALIASES.get(self.objective, self.objective).split("+"))

    def to_dict(self) -> dict[str, Any]:
        """All settings by name."""
        return dataclasses.asdict(self)

    def _type_complaints(self) -> list[str]:
        found = []
        for entry in dataclasses.fields(self):
            kind, is_optional = _kind_of(entry)
            try:
                setattr(self, entry.name, _converted(getattr(self, entry.name), kind, is_optional))
            except (AttributeError, TypeError, ValueError):
                expected = f"a {kind.__name__}" + (" or null" if is_optional else "")
                found.append(f"{entry.name} must be {expected}, but it is {getattr(self, entry.name)!r}")
        return found

    def _value_complaints(self) -> list[str]:
        found = []
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                found.append(f"{name} must be one of {list(choices)}, but it is {getattr(self, name)!r}")
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= least:  # also NaN
                found.append(f"{name} must be at least {least}, but it is {value}")
        for name in ("adam_beta1", "adam_beta2", "mapper_dropout"):
            if not 0 <= getattr(self, name) < 1:
                found.append(f"{name} must be in [0, 1), but it is {getattr(self, name)}")
        if not self.output_dir:
            found.append("output_dir is missing")
        for one, other in reversed(_EITHER):
            if (getattr(self, one) is None) == (getattr(self, other) is None):
                found.append(f"give either {one} or {other}, and not both")
        defaults = {entry.name: entry.default for entry in dataclasses.fields(self)}
        own = [name for name in _FRESH_MAPPER if getattr(self, name) != defaults[name]]
        if self.model is not None and own:
            found.append(f"{', '.join(own)} would change nothing, since the model brings its own: leave it out")
        if self.validation is not None and ":" not in self.validation:
            found.append(f"validation must be MODULE:FUNCTION, but it is {self.validation!r}")
        for name in ("early_stopping_patience", "load_best_at_end"):
            if getattr(self, name) and self.metric is None:
                found.append(f"{name} needs a metric of the validation")
        return found

    def _data_complaints(self) -> list[str]:
        unknown = [term for term in self.terms if term not in TERMS]
        if unknown:
            return [f"objective must be hybrid or of {list(TERMS)} joined by '+', but it has {unknown}"]
        found = []
        if len(set(self.terms)) < len(self.terms):
            found.append(f"objective names a term twice: {self.objective!r}")
        if "combiner" in self.terms and len(self.terms) > 1:
            found.append("the combiner is trained alone: objective: combiner")
        needs = (
            (("zs", "phrases"), ("unlabeled", "unlabeled_features"), "unlabeled images"),
            (("phrases",), ("phrases",), "phrases"),
            (("triplet", "combiner"), ("triplets",), "triplets"),
            (("projection",), ("texts",), "texts"),
        )
        for terms, names, what in needs:
            if any(term in self.terms for term in terms) and not any(getattr(self, name) for name in names):
                found.append(f"objective {self.objective!r} needs {what}: set {' or '.join(names)}")
        if self.unlabeled_streaming and self.epochs is not None and self.terms[0] in ("zs", "phrases"):
            found.append("a stream has no known length: give steps instead of epochs")
        if self.num_views > 1 and not self.unlabeled_features:
            found.append("num_views needs unlabeled_features: only a feature cache holds views")
        if self.unlabeled_streaming and not self.unlabeled:
            found.append("unlabeled_streaming needs unlabeled")
        return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--config` and a flag for each setting; what is not given stays out of the namespace."""
    parser.add_argument("--config", metavar="YAML", help="file of settings; flags go over it")
    for entry in dataclasses.fields(HybridTrainingArguments):
        kind, _ = _kind_of(entry)
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help_of(entry), "dest": entry.name}
        names = [f"--{entry.name.replace('_', '-')}", f"--{entry.name}"]
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
            names = names[:1]
        elif kind is list:
            options["nargs"] = "*"
        elif kind is dict:
            options |= {"type": json.loads, "metavar": "JSON"}
        if kind is not bool:
            options.setdefault("metavar", {int: "N", float: "X"}.get(kind, "S"))
        parser.add_argument(*dict.fromkeys(names), **options)


def arguments_from(namespace: argparse.Namespace) -> HybridTrainingArguments:
    """Build the settings from `--config` and the flags over it; of steps and epochs, encoder and model, a flag's wins.

    Raises:
        ValueError: With every complaint at once; an unknown key of the file is answered with the nearest known one.
    """
    known = {entry.name for entry in dataclasses.fields(HybridTrainingArguments)}
    values = read_config(namespace.config) if getattr(namespace, "config", None) else {}
    unknown = [f"{name!r}{_nearest(name, known)}" for name in values if name not in known]
    if unknown:
        raise ValueError(
            f"Training settings: {namespace.config} has the unknown settings {', '.join(unknown)}. `hycir train "
            "--help` lists the known ones."
        )
    flags = {name: value for name, value in vars(namespace).items() if name in known}
    return HybridTrainingArguments(**_giving_way(values, flags) | flags)


def parse_arguments(argv: Sequence[str] | None = None, prog: str | None = None) -> HybridTrainingArguments:
    """Parse a command line into settings."""
    parser = argparse.ArgumentParser(prog=prog, description="Train a mapper (HyCIR: hybrid training).")
    add_arguments(parser)
    return arguments_from(parser.parse_args(argv))


def read_config(path: str) -> dict[str, Any]:
    """Read a YAML file of settings.

    Raises:
        ValueError: If it is not there, or not a mapping.
    """
    try:
        import yaml
    except ImportError as error:
        raise ImportError(
            "Expected PyYAML to read the config. Install it with `pip install hycir_hf[train]`."
        ) from error
    if not Path(path).is_file():
        raise ValueError(f"Expected a config at {path}, but found no such file. Check the path.")
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"Expected YAML in {path}, but found: {error}. Repair the file.") from error
    if not isinstance(values, dict):
        raise ValueError(f"Expected 'name: value' lines in {path}, but found {type(values).__name__}. Write it so.")
    return {str(name).replace("-", "_"): value for name, value in values.items()}


def _giving_way(values: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """A file's settings without those that a flag's other half of a pair replaces."""
    left_out = {name for pair in _EITHER for name in pair if not flags.keys().isdisjoint(pair)}
    if "model" in flags:
        left_out.update(_FRESH_MAPPER)
    return {name: value for name, value in values.items() if name not in left_out}


def _nearest(name: str, known: set[str]) -> str:
    found = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def _kind_of(entry: dataclasses.Field) -> tuple[type, bool]:
    """A setting's type, and whether it may be None."""
    kind: Any = entry.type
    is_optional = isinstance(kind, types.UnionType)
    if is_optional:
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    return typing.get_origin(kind) or kind, is_optional


def _help_of(entry: dataclasses.Field) -> str:
    default = entry.default if entry.default_factory is dataclasses.MISSING else None
    shown = "" if default in (None, "") or isinstance(default, bool) else f" ({default})"
    return (entry.metadata["help"] + shown).replace("%", "%%")


def _converted(value: Any, kind: type, is_optional: bool) -> Any:
    """A value in a setting's type: YAML reads 1e-4 as a string, and flags are strings all."""
    if value is None and is_optional:
        return None
    if kind is bool or isinstance(value, bool):
        if kind is bool and isinstance(value, bool):
            return value
        raise TypeError
    if kind is int and isinstance(value, float):
        if not value.is_integer():  # also infinity and NaN
            raise ValueError
        return int(value)
    if kind in (int, float) and isinstance(value, int | float | str):
        return kind(value)
    if kind is list and isinstance(value, str | list):
        texts = [value] if isinstance(value, str) else value
        return [part.strip() for text in texts for part in text.split(",") if part.strip()]
    if not isinstance(value, kind):
        raise TypeError
    return value
