"""SynCir's models as plain callables: given by the caller, or loaded by their names in the settings.

embed images     any vision model of `transformers` (paper: ResNet-152)
caption          any image-to-text model of `transformers` (paper: BLIP)
embed sentences  any model of sentence-transformers (paper: BERT, here with mean pooling)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoTokenizer

from ..modeling_hycir import HyCIRModel
from ..processing_hycir import HyCIRProcessor
from .checks import Check, ComposedCheck, PictureCheck
from .config import SynCirConfig
from .filter import EmbedSentences
from .llm.answers import Generator
from .llm.batch import BatchGenerator
from .llm.chat import ChatGenerator
from .llm.local import LocalGenerator
from .query_texts import QUERY_TEXT_FORMAT

EmbedImages = Callable[[list[Image]], np.ndarray]
"""B images in RGB -> `(B, D)`."""

Caption = Callable[[list[Image]], Sequence[str]]
"""Images in RGB -> one caption each."""


@dataclass
class SynCirModels:
    """Models given by the caller; each one that is None is loaded by its name in the settings, when it is needed.

    Args:
        embed_images: Images -> `(B, D)`.
        caption: Images -> one caption each.
        generate: Answers questions (see `Generator`).
        embed_sentences: Texts -> `(T, D)`.
        checks: Further checks of the triplets by their images; None loads those that the settings name.
    """

    embed_images: EmbedImages | None = None
    caption: Caption | None = None
    generate: Generator | None = None
    embed_sentences: EmbedSentences | None = None
    checks: Sequence[Check] | None = None


class LoadedModels:
    """The models of a run, each loaded on first use.

    Args:
        given (`SynCirModels`): Used where they are not None.
        config (`SynCirConfig`): Names the others.
        device (`str`): Where the loaded models run.
    """

    def __init__(self, given: SynCirModels, config: SynCirConfig, device: str) -> None:
        self.given, self.config, self.device = given, config, device

    @cached_property
    def embed_images(self) -> EmbedImages:
        """The vision model of the pair extraction."""
        return self.given.embed_images or load_image_embedder(self.config.image_encoder, self.device)

    @cached_property
    def caption(self) -> Caption:
        """The captioning model."""
        return self.given.caption or load_captioner(self.config.captioner, self.device)

    @cached_property
    def generate(self) -> Generator:
        """The LLM."""
        return self.given.generate or load_generator(self.config, self.device)

    @cached_property
    def embed_sentences(self) -> EmbedSentences:
        """The filter's sentence embedding model."""
        config = self.config
        return self.given.embed_sentences or load_sentence_embedder(
            config.sentence_encoder, self.device, config.batch_size
        )

    @cached_property
    def checks(self) -> Sequence[Check]:
        """The further checks."""
        return load_checks(self.config, self.device) if self.given.checks is None else self.given.checks


def load_image_embedder(path: str, device: str = "cpu") -> EmbedImages:
    """Load a vision model: images -> `(B, D)`, its pooled features (a dual encoder's projected ones).

    Args:
        path (`str`): Folder or Hub id, for example "microsoft/resnet-152".
        device (`str`): "cpu", "cuda" ...
    """
    model = AutoModel.from_pretrained(path, dtype=torch.float32).eval().to(device)
    processor = AutoImageProcessor.from_pretrained(path, backend="pil")

    @torch.inference_mode()
    def embed_images(images: list[Image]) -> np.ndarray:
        inputs = processor(images=images, return_tensors="pt").to(device)
        has_joint_space = hasattr(model, "get_image_features")
        output = model.get_image_features(**inputs) if has_joint_space else model(**inputs)
        features = output if isinstance(output, torch.Tensor) else output.pooler_output
        if features is None:
            raise ValueError(f"The vision model {path} has no pooled features. Choose another image_encoder.")
        return features.flatten(1).cpu().numpy()  # (B, D)

    return embed_images


def load_captioner(path: str, device: str = "cpu", max_new_tokens: int = 30) -> Callable[[list[Image]], list[str]]:
    """Load a captioning model with greedy decoding: images -> one caption each.

    Args:
        path (`str`): Folder or Hub id, for example "Salesforce/blip-image-captioning-base".
        device (`str`): "cpu", "cuda" ...
        max_new_tokens (`int`): Most tokens of a caption.
    """
    dtype = torch.float32 if device == "cpu" else "auto"
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype).eval().to(device)
    processor = AutoImageProcessor.from_pretrained(path, backend="pil")
    tokenizer = AutoTokenizer.from_pretrained(path)

    @torch.inference_mode()
    def caption(images: list[Image]) -> list[str]:
        inputs = processor(images=images, return_tensors="pt").to(device, model.dtype)
        generated = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)  # (B, L)
        return [text.strip() for text in tokenizer.batch_decode(generated, skip_special_tokens=True)]

    return caption


def load_generator(config: SynCirConfig, device: str = "cpu") -> Generator:
    """Make the LLM that the settings name: an endpoint, a Batch API, or a model in this process."""
    if config.api == "local":
        options = {"max_new_tokens": config.max_tokens, **(config.llm_parameters or {})}
        return LocalGenerator.from_pretrained(config.llm, device, batch_size=config.concurrency, **options)
    parameters: dict[str, Any] = {"temperature": config.temperature, "max_tokens": config.max_tokens}
    if config.structured_output:
        parameters["response_format"] = QUERY_TEXT_FORMAT
    parameters |= config.llm_parameters or {}
    if config.api == "batch":
        return BatchGenerator(config.llm, config.base_url, **parameters)
    return ChatGenerator(
        config.llm,
        config.base_url,
        concurrency=config.concurrency,
        timeout=config.timeout,
        max_attempts=config.max_attempts,
        **parameters,
    )


def load_sentence_embedder(path: str, device: str = "cpu", batch_size: int = 64) -> EmbedSentences:
    """Load a sentence embedding model: texts -> `(T, D)`.

    Args:
        path (`str`): Folder or Hub id, for example "google-bert/bert-base-uncased".
        device (`str`): "cpu", "cuda" ...
        batch_size (`int`): Texts embedded at once, sorted by length.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(
            "Sentence embeddings need the package sentence-transformers. Run pip install 'hycir_hf[syncir]'."
        ) from error
    model = SentenceTransformer(path, device=device)  # Paper: names BERT, not its pooling; here it is the mean

    def embed_sentences(texts: list[str]) -> np.ndarray:
        return np.asarray(model.encode(texts, batch_size=batch_size, show_progress_bar=False), dtype=np.float32)

    return embed_sentences


def load_checks(config: SynCirConfig, device: str = "cpu") -> list[Check]:
    """Load the checks that the settings name: none, one or two."""
    checks: list[Check] = []
    if config.composed_model is not None:
        model = HyCIRModel.from_pretrained(config.composed_model).to(device)
        processor = HyCIRProcessor.from_pretrained(config.composed_model)
        checks.append(ComposedCheck(model, processor, config.composed_threshold))
    if config.image_text_model is not None:
        model = HyCIRModel.from_encoder(config.image_text_model).to(device)
        processor = HyCIRProcessor.from_encoder(config.image_text_model)
        checks.append(PictureCheck(model, processor, config.caption_threshold, config.query_threshold))
    return checks
