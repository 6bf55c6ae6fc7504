"""The training's settings: one dataclass, whose fields are YAML keys and flags of `hycir train`.

This module is light (no torch), so that `hycir train --help` is quick and complaints come before torch is loaded.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from ..settings import Settings, setting
from ..settings import read_config as read_config  # part of this module's interface

TERMS = ("zs", "triplet", "phrases", "projection", "combiner")
"""The loss terms; an objective is one of them, or several joined by "+"."""

_ALIASES = {"hybrid": "zs+triplet"}

_EITHER = (("encoder", "model"), ("steps", "epochs"))
"""Pairs of which exactly one is given; an override replaces the other one of the file."""

_FRESH_MAPPER = ("num_pseudo_tokens", "mapper_hidden_size", "mapper_num_layers", "mapper_dropout", "prompt")
"""Settings of a fresh mapper: a `model` brings its own."""

_NEEDS = (
    (("zs", "phrases"), ("unlabeled", "unlabeled_features"), "unlabeled images"),
    (("phrases",), ("phrases",), "phrases"),
    (("triplet", "combiner"), ("triplets",), "triplets"),
    (("projection",), ("texts",), "texts"),
)
"""Loss terms, the settings of which they need one, and what that is."""

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
"""What the file of a `validation` table may be."""

NOT_IN_RESUME = (
    *("output_dir", "save_steps", "save_total_limit", "log_steps", "report_to", "progress", "num_workers"),
    *("early_stopping_patience", "validation", "validation_options", "validation_steps", "metric", "smaller_is_better"),
    *("encode_batch_size", "load_best_at_end", "save_encoder"),
)
"""Settings that may change between a training and its resumption: they do not change its weights."""

TripletKind = Literal["auto", "syncir", "table", "lasco", "cirr", "fashioniq"]


@dataclass
class TripletSettings(Settings):
    """A source of triplets: an entry of `further_triplets`, or what `triplets` and its settings say."""

    title: ClassVar[str] = "further_triplets"

    path: str = setting("", "As triplets.")
    share: float = setting(0.0, "Share of each step's triplets, in (0, 1).", at_least=0, below=1)
    kind: TripletKind = setting("auto", "As triplet_kind.")
    split: str | None = setting(None, "As triplet_split.")
    images: str | None = setting(None, "As triplet_images.")
    features: str | None = setting(None, "As triplet_features.")

    def complaints(self) -> Iterator[str]:
        """Yield what is missing."""
        if not self.path:
            yield "path is missing"


@dataclass
class HybridTrainingArguments(Settings):
    """Settings of a training. The defaults are the paper's: hybrid objective, Adam, lr 1e-4, 512 + 256 per step.

    Batch sizes are global: they stay the same whatever the number of processes. `hycir train --help` shows each
    field's meaning. You must give `output_dir`, either `encoder` or `model`, either `steps` or `epochs`, and the data
    that the objective needs.

    Raises:
        ParameterError: With every complaint about the values at once.
    """

    title: ClassVar[str] = "Training settings"

    output_dir: str = setting("", "Folder for checkpoints, curves and the trained model.", group="Model")
    encoder: str | None = setting(None, "Frozen encoder that gets a fresh mapper: folder or Hub id.")
    model: str | None = setting(None, "HyCIR model to train further, instead of a fresh mapper: folder or Hub id.")
    num_pseudo_tokens: int = setting(4, "K, the number of pseudo tokens of an image (paper: 4).", at_least=1)
    mapper_hidden_size: int = setting(512, "Width of the mapper.", at_least=1)
    mapper_num_layers: int = setting(2, "Number of the mapper's blocks.", at_least=0)
    mapper_dropout: float = setting(0.1, "Dropout of the mapper, in [0, 1).", at_least=0, below=1)
    prompt: str = setting("a photo of {image}, {text}", "Prompt template with {image} and {text}.")

    objective: str = setting(
        "hybrid",
        "Loss: hybrid (zs+triplet, the paper's), combiner, or terms joined by +: zs, triplet, phrases, projection.",
        group="Objective",
    )
    zs_weight: float = setting(1.0, "Weight of L_ZS (term zs).", at_least=0)
    triplet_weight: float = setting(1.0, "Weight of L_triplet (term triplet).", at_least=0)
    phrases_weight: float = setting(0.5, "Weight of SEARLE's phrase loss (term phrases).", at_least=0)
    projection_weight: float = setting(1.0, "Weight of LinCIR's projection loss (term projection).", at_least=0)
    hn_alpha: float = setting(
        1.0, "HN-NCE's weight of the positive pair in L_ZS and L_triplet (paper: 1).", at_least=0, at_most=1
    )
    hn_beta: float = setting(0.0, "HN-NCE's hardness: how much more similar negatives count (paper: 0).", at_least=0)

    unlabeled: str | None = setting(
        None, "Unlabeled images: folder, PATH[:CONFIG] of a dataset, .tar shards (file, glob, folder) or .tsv.",
        group="Data",
    )  # fmt: skip
    unlabeled_split: str | None = setting(None, "Split of the dataset.")
    unlabeled_image_column: str | None = setting(None, "Image column of the dataset.")
    unlabeled_id_column: str | None = setting(None, "Id column of the dataset.")
    unlabeled_tsv_folder: str | None = setting(None, "Folder of the images that a .tsv names.")
    unlabeled_streaming: bool = setting(False, "Read the dataset or the shards in order, without an index.")
    stream_buffer_size: int = setting(1000, "Images of a stream that are shuffled together.", at_least=1)
    unlabeled_features: str | None = setting(None, "Feature cache of the unlabeled images; computed if missing.")
    triplets: str | None = setting(
        None, "Triplets: SynCir's folder, a .parquet, .csv or .jsonl file, LaSCo's JSON, CIRR's or FashionIQ's folder."
    )
    triplet_kind: TripletKind = setting("auto", "Format of the triplets.")
    triplet_split: str | None = setting(None, "Split of SynCir's dataset.")
    triplet_images: str | None = setting(None, "Images of the triplets, if they are not stored with them.")
    triplet_features: str | None = setting(None, "Feature cache of the triplets' images; computed if missing.")
    further_triplets: list[dict[str, Any]] = setting(
        [],
        "Further sources of triplets, as a list of {path, share, kind, split, images, features}. share, in (0, 1), is "
        "a source's part of triplet_batch_size; triplets gets the rest.",
    )
    cache_features: bool = setting(
        True, "Encode each image once, into output_dir/features if no feature cache is given. No: in every step."
    )
    num_views: int = setting(1, "Augmented views of each image in unlabeled_features.", at_least=1)
    features_dtype: Literal["float16", "float32"] = setting("float16", "Precision of a feature cache that is made.")
    encode_batch_size: int = setting(64, "Images that are encoded at once.", at_least=1)
    phrases: str | None = setting(None, "SEARLE's phrases: a JSON file, concept to list of phrases.")
    top_k_concepts: int = setting(15, "An image's most similar concepts, of which one is drawn.", at_least=1)
    texts: str | None = setting(None, "LinCIR's texts: .txt, .json or PATH[:CONFIG] of a dataset.")
    text_column: str | None = setting(None, "Text column of the dataset.")

    unlabeled_batch_size: int = setting(
        512, "Unlabeled images per step, over all processes (paper: 512).", group="Optimisation", at_least=1
    )
    triplet_batch_size: int = setting(256, "Triplets per step, over all processes (paper: 256).", at_least=1)
    text_batch_size: int = setting(512, "Texts per step, over all processes.", at_least=1)
    chunk_size: int | None = setting(
        None, "Prompts that are in memory at once. Less memory; the gradients stay the same.", at_least=1
    )
    steps: int | None = setting(None, "Number of optimizer steps.", at_least=1)
    epochs: int | None = setting(None, "Passes over the objective's first data source, instead of steps.", at_least=1)
    optimizer: Literal["adam", "adamw"] = setting("adam", "Optimizer (paper: adam).")
    learning_rate: float = setting(1e-4, "Highest learning rate (paper: 1e-4).", at_least=0)
    weight_decay: float = setting(0.0, "Weight decay; biases have none.", at_least=0)
    adam_beta1: float = setting(0.9, "Adam's first beta, in [0, 1).", at_least=0, below=1)
    adam_beta2: float = setting(0.999, "Adam's second beta, in [0, 1).", at_least=0, below=1)
    adam_epsilon: float = setting(1e-8, "Adam's epsilon.")
    schedule: Literal["constant", "cosine", "linear"] = setting("constant", "Learning rate after the warm-up.")
    warmup_steps: int = setting(0, "Steps until the highest learning rate.", at_least=0)
    max_grad_norm: float | None = setting(None, "Clip the gradient to this norm.", at_least=0)

    mixed_precision: Literal["no", "bf16", "fp16"] = setting(
        "no", "Precision of the encoder's forward pass.", group="Run"
    )
    compile: bool = setting(False, "Use torch.compile on the text encoder's layers.")
    reuse_prefix: bool = setting(True, "Compute the prompts' common beginning once, if the encoder is causal.")
    seed: int = setting(0, "Random seed for the mapper, the order of the data and dropout.", at_least=0)
    num_workers: int = setting(0, "Processes that decode images.", at_least=0)
    save_steps: int = setting(1000, "Steps between checkpoints.", at_least=1)
    save_total_limit: int | None = setting(2, "Newest checkpoints to keep. The best one is always kept.", at_least=1)
    save_encoder: bool = setting(False, "Save the encoder with the model. By default the model names where it is.")
    log_steps: int = setting(10, "Steps between entries of the log.", at_least=1)
    report_to: list[str] = setting([], "Trackers, such as tensorboard, wandb or trackio.")
    progress: bool = setting(True, "Show a progress bar.")

    validation: str | None = setting(
        None, "Your own benchmark's table, beside its images; or MODULE:FUNCTION from model and processor to figures.",
        group="Validation",
    )  # fmt: skip
    validation_options: dict[str, Any] = setting(
        {}, "Further arguments of that function, or of the table (images, ranks, metric), as JSON."
    )
    validation_steps: int = setting(1000, "Steps between validations.", at_least=1)
    metric: str | None = setting(None, "Figure of the validation that decides which checkpoint is best.")
    smaller_is_better: bool = setting(False, "The best metric is the smallest one.")
    early_stopping_patience: int | None = setting(
        None, "Stop after this many validations without a better metric.", at_least=1
    )
    load_best_at_end: bool = setting(False, "Save the best checkpoint's weights as the trained model.")

    @property
    def terms(self) -> tuple[str, ...]:
        """The objective's loss terms."""
        return tuple(_ALIASES.get(self.objective, self.objective).split("+"))

    @property
    def validates_table(self) -> bool:
        """Whether `validation` is a table of queries."""
        return self.validation is not None and Path(self.validation).suffix.lower() in TABLES

    def triplet_sources(self) -> list[tuple[TripletSettings, int]]:
        """Return the sources of triplets, `triplets` first, each with its number of triplets in a step."""
        further = [TripletSettings.from_yaml(None, **entry) for entry in self.further_triplets]
        sizes = [round(source.share * self.triplet_batch_size) for source in further]
        first = TripletSettings(
            path=str(self.triplets),
            kind=self.triplet_kind,
            split=self.triplet_split,
            images=self.triplet_images,
            features=self.triplet_features,
        )
        return [(first, self.triplet_batch_size - sum(sizes)), *zip(further, sizes, strict=True)]

    def complaints(self) -> Iterator[str]:
        """Yield which settings are missing, or do not go together."""
        if not self.output_dir:
            yield "output_dir is missing"
        for one, other in _EITHER:
            if (getattr(self, one) is None) == (getattr(self, other) is None):
                yield f"give either {one} or {other}, and not both"
        own = [name for name in _FRESH_MAPPER if getattr(self, name) != DEFAULTS[name]]
        if self.model is not None and own:
            yield f"{', '.join(own)} would change nothing, since the model has its own mapper: leave it out"
        if self.validation is not None and ":" not in self.validation and not self.validates_table:
            yield f"validation must be a table {TABLES} or MODULE:FUNCTION, but it is {self.validation!r}"
        for name in ("early_stopping_patience", "load_best_at_end"):
            if getattr(self, name) and self.metric is None:
                yield f"{name} needs a metric of the validation"
        unknown = [term for term in self.terms if term not in TERMS]
        if unknown:
            yield f"objective must be hybrid, or of {list(TERMS)} joined by '+', but it has {unknown}"
        else:
            yield from self._data_complaints()

    def _data_complaints(self) -> Iterator[str]:
        if len(set(self.terms)) < len(self.terms):
            yield f"objective names a term twice: {self.objective!r}"
        if "combiner" in self.terms and len(self.terms) > 1:
            yield "the combiner is trained alone: objective: combiner"
        for terms, names, what in _NEEDS:
            if any(term in self.terms for term in terms) and not any(getattr(self, name) for name in names):
                yield f"objective {self.objective!r} needs {what}: set {' or '.join(names)}"
        if self.unlabeled_streaming and self.epochs is not None and self.terms[0] in ("zs", "phrases"):
            yield "a stream has no known length: give steps instead of epochs"
        if self.num_views > 1 and not self.unlabeled_features and (self.unlabeled_streaming or not self.cache_features):
            yield "num_views needs a feature cache: set cache_features or unlabeled_features"
        if self.unlabeled_streaming and not self.unlabeled:
            yield "unlabeled_streaming needs unlabeled"
        if self.further_triplets:
            yield from self._source_complaints()

    def _source_complaints(self) -> Iterator[str]:
        if not self.triplets:
            yield "further_triplets needs triplets"
        try:
            sources = self.triplet_sources()
        except (TypeError, ValueError) as error:
            yield str(error).removesuffix(".")
            return
        sizes = [size for _, size in sources]
        if min(sizes) < 1:
            yield (
                f"further_triplets divides the {self.triplet_batch_size} triplets of a step into {sizes}: choose "
                "shares that give each source at least one"
            )
        if not self.cache_features and len({source.features is None for source, _ in sources}) > 1:
            yield "without cache_features, give the features of all sources of triplets, or of none"

    @classmethod
    def _overridden(cls, values: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
        """The overrides over the file's values, without those that the other one of a pair replaces."""
        replaced = {name for pair in _EITHER for name in pair if not overrides.keys().isdisjoint(pair)}
        if "model" in overrides:
            replaced.update(_FRESH_MAPPER)
        return {name: value for name, value in values.items() if name not in replaced} | dict(overrides)


DEFAULTS: dict[str, Any] = {
    entry.name: entry.default if entry.default is not MISSING else []  # the mappings change no weights
    for entry in fields(HybridTrainingArguments)
}
"""Each setting's default."""
