"""From settings to the parts of a training: model, streams, loss terms, optimizer, schedule and validation."""

import importlib
import importlib.util
import inspect
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..images import FeatureStore, ImageSource, ImageStream, build_features, check_images, open_images
from ..images.features import preprocessing_fingerprint
from ..modeling_hycir import HyCIRModel
from ..names import resolve_model
from ..processing_hycir import HyCIRProcessor
from .arguments import HybridTrainingArguments, TripletSettings
from .data import (
    Share,
    Stream,
    TextRows,
    TripletRows,
    TripletSource,
    UnlabeledRows,
    UnlabeledStream,
    open_triplets,
    read_phrases,
    read_texts,
)
from .objectives import CombinerTerm, PhrasesTerm, ProjectionTerm, Term, TripletTerm, ZeroShotTerm

try:
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs, LoggerType, get_int_from_env
except ImportError as error:
    raise ImportError("Training needs accelerate. Install it with `pip install hycir_hf[train]`.") from error

logger = logging.getLogger(__name__)

_PATIENCE = timedelta(
    days=7
)  # how long processes wait for one that encodes images or validates (libraries: 10 minutes)

Validation = Callable[..., dict[str, float]]
OpenImages = Callable[[], ImageSource | ImageStream]

TERMS: dict[str, Any] = {
    "zs": ZeroShotTerm,
    "triplet": TripletTerm,
    "phrases": PhrasesTerm,
    "projection": ProjectionTerm,
    "combiner": CombinerTerm,
}
"""A term's name in `objective` -> its class. A new term is one class in `objectives.py` and one line here."""


def check_installed(arguments: HybridTrainingArguments) -> None:
    """Refuse at the start what would be missing at the end. Accelerate silently ignores a missing tracker.

    Raises:
        ImportError: If matplotlib or a tracker of `report_to` is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("The training's curves need matplotlib. Install it with `pip install hycir_hf[train]`.")
    trackers = [kind.value for kind in LoggerType if kind is not LoggerType.ALL]
    for name in arguments.report_to:
        modules = (name, "tensorboardX") if name == "tensorboard" else (name,)
        if name in trackers and not any(importlib.util.find_spec(module) for module in modules):
            raise ImportError(f"The tracker {name!r} of report_to is not installed. Run `pip install {name}`.")


def build_accelerator(arguments: HybridTrainingArguments) -> Accelerator:
    """Build the accelerator with the precision and the trackers of the settings."""
    return Accelerator(
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
        mixed_precision=arguments.mixed_precision,
        log_with=arguments.report_to or None,
        project_dir=arguments.output_dir,
    )


def check_launch(accelerator: Accelerator) -> None:
    """Refuse processes that were launched together but do not know of each other: all would write one folder.

    Raises:
        ValueError: If the launcher started more processes than the accelerator sees.
    """
    launched = get_int_from_env(("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"), 1)
    if launched > accelerator.num_processes:
        raise ValueError(
            f"{launched} processes were launched, but this one sees {accelerator.num_processes}. Each of them would "
            "train alone and write the same output_dir. On CPUs, set ACCELERATE_USE_CPU=true before the launch."
        )


def find_validation(arguments: HybridTrainingArguments) -> Validation | None:
    """Find the table or the function that `validation` names, with its options filled in.

    Raises:
        ValueError: If there is no such function, it does not take the options, or the table is wrong.
    """
    if arguments.validation is None:
        return None
    module_name, _, name = arguments.validation.partition(":")
    if arguments.validates_table:  # `evaluation` stands beside `training`, so it is named, not imported
        table = importlib.import_module("hycir_hf.evaluation").TableValidation
        try:
            return table(arguments.validation, **arguments.validation_options)
        except TypeError as error:
            raise ValueError(f"validation_options={arguments.validation_options} do not fit: {error}.") from error
    try:
        function = getattr(importlib.import_module(module_name), name)
        inspect.signature(function).bind(None, None, **arguments.validation_options)
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(
            f"validation={arguments.validation!r} cannot be called with model, processor and the options "
            f"{arguments.validation_options}: {error}. Name a function as MODULE:FUNCTION."
        ) from error
    return lambda *inputs: function(*inputs, **arguments.validation_options)


def load_model(arguments: HybridTrainingArguments) -> tuple[HyCIRModel, HyCIRProcessor]:
    """Load the model to train further, or put a fresh mapper on an encoder; and the processor.

    Raises:
        ValueError: If there is no such model or encoder.
    """
    if arguments.model is not None:
        path = resolve_model(arguments.model)
        model = HyCIRModel.from_pretrained(path).float()
        encoder = model.config.encoder_name_or_path
        if encoder and (Path(path) / encoder).is_dir():  # a local encoder is named relative to the model
            model.config.encoder_name_or_path = str(Path(path) / encoder)
        return model, HyCIRProcessor.from_pretrained(path)
    path = resolve_model(str(arguments.encoder), "encoder")
    mapper = {name: getattr(arguments, name) for name in ("mapper_hidden_size", "mapper_num_layers", "mapper_dropout")}
    model = HyCIRModel.from_encoder(path, arguments.num_pseudo_tokens, prompt=arguments.prompt, **mapper)
    return model, HyCIRProcessor.from_encoder(path, arguments.num_pseudo_tokens, prompt=arguments.prompt)


def open_streams(
    names: list[str],
    arguments: HybridTrainingArguments,
    model: HyCIRModel,
    processor: HyCIRProcessor,
    share: Share,
    wait_for_everyone: Callable[[], None],
) -> dict[str, Stream]:
    """Open the streams that an objective reads.

    Args:
        names (`list[str]`): From "unlabeled", "triplets" and "texts".
        arguments (`HybridTrainingArguments`): The data's places and the global batch sizes.
        model (`HyCIRModel`): Makes features that are not stored yet.
        processor (`HyCIRProcessor`): The model's processor.
        share (`Share`): This process's part of each global batch.
        wait_for_everyone (function): Returns when all processes have called it.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If data cannot be opened, a global batch cannot be shared evenly, or stored features were made
            by another encoder, with other preprocessing or from other images.
    """
    opener = _StreamOpener(arguments, model, processor, share, wait_for_everyone)
    openers = {"unlabeled": opener.unlabeled, "triplets": opener.triplets, "texts": opener.texts}
    return {name: openers[name]() for name in names}


def build_terms(arguments: HybridTrainingArguments, model: HyCIRModel, processor: HyCIRProcessor) -> dict[str, Term]:
    """Build the objective's loss terms by name."""
    terms: dict[str, Term] = {}
    for name in arguments.terms:
        further = [read_phrases(str(arguments.phrases)), arguments.top_k_concepts] if name == "phrases" else []
        terms[name] = TERMS[name](model, processor, *further)
        terms[name].hard_negatives = {"alpha": arguments.hn_alpha, "beta": arguments.hn_beta}
    return terms


def build_optimizer(arguments: HybridTrainingArguments, trained: nn.Module) -> torch.optim.Optimizer:
    """Build Adam (paper) or AdamW (Pic2Word). Biases get no weight decay."""
    parameters = list(trained.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": arguments.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    kind = torch.optim.AdamW if arguments.optimizer == "adamw" else torch.optim.Adam
    betas = (arguments.adam_beta1, arguments.adam_beta2)
    return kind(groups, lr=arguments.learning_rate, betas=betas, eps=arguments.adam_epsilon)


def schedule_factor(step: int, num_steps: int, warmup_steps: int, schedule: str) -> float:
    """Return the factor on the learning rate, as in Pic2Word: a linear warm-up, then the schedule down to 0.

    Args:
        step (`int`): The step, counted from 0.
        num_steps (`int`): Steps of the whole training.
        warmup_steps (`int`): Steps until the factor is 1.
        schedule (`str`): "constant", "cosine" or "linear".
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)  # in [0, 1)
    return {"constant": 1.0, "cosine": (1 + math.cos(math.pi * progress)) / 2, "linear": 1 - progress}[schedule]


def compile_layers(model: HyCIRModel) -> None:
    """Compile each layer of the text encoder in place, for prompts of any length."""
    for module in model._adapter.text_model(model.encoder).modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile(dynamic=True)


@dataclass
class _StreamOpener:
    arguments: HybridTrainingArguments
    model: HyCIRModel
    processor: HyCIRProcessor
    share: Share
    wait_for_everyone: Callable[[], None]

    def unlabeled(self) -> Stream:
        """Unlabeled images, from stored features or from pixels."""
        arguments, size = self.arguments, self._batch_size("unlabeled_batch_size")
        directory = self._cache("unlabeled_features")
        if not directory:
            images = self._images()
            if isinstance(images, ImageStream):
                return UnlabeledStream(images, self.processor, size, arguments.seed, self.share)
            return UnlabeledRows(images, self.processor, size, arguments.seed, self.share)
        open_source = self._images if arguments.unlabeled else None
        features = self._features(directory, open_source, arguments.num_views, has_same_ids=True)
        if arguments.num_views not in (1, features.num_views):
            raise ValueError(
                f"num_views is {arguments.num_views}, but {directory} has {features.num_views} views of each image. "
                "Set num_views to that, or choose another unlabeled_features."
            )
        return UnlabeledRows(features, self.processor, size, arguments.seed, self.share)

    def triplets(self) -> Stream:
        """Triplets of all sources, with their images from stored features or from pixels."""
        self._batch_size("triplet_batch_size")
        sources = [self._triplet_source(number, *one) for number, one in enumerate(self.arguments.triplet_sources())]
        return TripletRows(sources, self.processor, self.arguments.seed, self.share)

    def _triplet_source(self, number: int, source: TripletSettings, size: int) -> TripletSource:
        triplets = open_triplets(source.path, source.kind, source.images, source.split)
        triplets.rows()  # finds an unknown image before anything is encoded
        features = None
        if directory := source.features or self._own_cache(f"triplet{number or ''}"):
            features = self._features(directory, lambda: triplets.images, num_views=1, has_same_ids=False)
        return TripletSource(triplets, features, size)

    def texts(self) -> Stream:
        """Texts without images."""
        arguments, size = self.arguments, self._batch_size("text_batch_size")
        texts = read_texts(str(arguments.texts), arguments.text_column)
        return TextRows(texts, self.model.config.feature_size, size, arguments.seed, self.share)

    def _cache(self, name: str) -> str | None:
        """The feature cache of a stream: the one given, or else a folder of this training's own."""
        given, is_stream = getattr(self.arguments, name), name.startswith("unl") and self.arguments.unlabeled_streaming
        return given if given or is_stream else self._own_cache(name.removesuffix("_features"))

    def _own_cache(self, name: str) -> str | None:
        """A folder of this training's own, unless features are not to be stored."""
        return str(Path(self.arguments.output_dir) / "features" / name) if self.arguments.cache_features else None

    def _batch_size(self, name: str) -> int:
        size, count = getattr(self.arguments, name), self.share.count
        if size % count:
            raise ValueError(f"{name} is {size}, but {count} processes share it. Choose a multiple of {count}.")
        return size

    def _images(self) -> ImageSource | ImageStream:
        arguments, path = self.arguments, str(self.arguments.unlabeled)
        columns = (arguments.unlabeled_split, arguments.unlabeled_image_column, arguments.unlabeled_id_column)
        try:
            if arguments.unlabeled_streaming:
                return ImageStream(path, *columns, arguments.stream_buffer_size, arguments.seed)
            return open_images(path, *columns, arguments.unlabeled_tsv_folder)
        except ValueError as error:
            raise ValueError(f"unlabeled={path}: {error}") from error

    def _features(
        self, directory: str, open_source: OpenImages | None, num_views: int, has_same_ids: bool
    ) -> FeatureStore:
        """Open stored features. If there are none yet, all processes make them together first."""
        arguments, model, processor, share = self.arguments, self.model.eval(), self.processor, self.share
        fingerprint, found = model.encoder_fingerprint(), None
        try:
            found = FeatureStore.open(directory, fingerprint)
        except FileNotFoundError:
            if open_source is None:
                raise
        # Every process looks before one begins. Otherwise a late one would find a part, or wait at another barrier.
        self.wait_for_everyone()
        if found is None and open_source is not None:
            build_features(
                model,
                processor,
                open_source(),
                directory,
                dtype=arguments.features_dtype,
                num_views=num_views,
                seed=arguments.seed,
                batch_size=arguments.encode_batch_size,
                num_shards=share.count,
                shard_index=share.index,
                progress=arguments.progress and share.index == 0,
            )
        self.wait_for_everyone()
        features = FeatureStore.open(directory, fingerprint) if found is None else found
        features.check("preprocessing", preprocessing_fingerprint(processor))
        source = None if found is None or open_source is None else _open_if_there(open_source, directory)
        if source is not None:
            check_images(features, model, processor, source, has_same_ids)
        return features


def _open_if_there(open_source: OpenImages, directory: str) -> ImageSource | ImageStream | None:
    """Open the images of stored features, to compare them. The features can be used without them."""
    try:
        return open_source()
    except (ValueError, OSError) as error:
        logger.warning("The features in %s could not be compared with their images: %s", directory, error)
        return None
