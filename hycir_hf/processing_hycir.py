"""HyCIR's processor: images of any kind to pixels, query texts to prompts with K placeholders for each reference image.

Paper: Model architecture; the prompt is "a photo of [$ $ $ $], query text".
"""

import inspect
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .configuration_hycir import (
    HUB_KEYS,
    RESERVED_PLACEHOLDER_ID,
    HyCIRConfig,
    PrivateByDefault,
    is_prompt,
    split_arguments,
)
from .images_hycir import load_image

logger = logging.getLogger(__name__)

_POOL_LAST_POSITION = ("siglip", "siglip2")
"""Encoders that read the text at its last position and were trained without mask. They need the full length."""

_OFFSET_POSITIONS = ("altclip_text_model", "roberta", "xlm-roberta", "xlm-roberta-xl", "camembert")
"""Text encoders whose positions start after the padding id."""


class HyCIRProcessor(PrivateByDefault, ProcessorMixin):
    """Prepare images and texts for `HyCIRModel`.

    Args:
        image_processor (`BaseImageProcessor`): The encoder's image processor.
        tokenizer (`PreTrainedTokenizerBase`): The encoder's tokenizer.
        num_pseudo_tokens (`int`): K, the placeholders of one reference image.
        placeholder_token_id (`int`): As in `HyCIRConfig`.
        prompt (`str`): As in `HyCIRConfig`. An empty query text also removes the punctuation before `{text}`.
        max_length (`int`, *optional*): The longest prompt in tokens. The default is the tokenizer's limit.
        pad_to_max_length (`bool`): Pad every batch to `max_length` and give no mask, as SigLIP was trained. By default
            a batch is padded to its longest prompt.

    Raises:
        ValueError: If the prompt has not exactly one `{image}` and one `{text}`, or `num_pseudo_tokens` is below 1.
    """

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        num_pseudo_tokens: int = 4,
        placeholder_token_id: int = RESERVED_PLACEHOLDER_ID,
        prompt: str = "a photo of {image}, {text}",
        max_length: int | None = None,
        pad_to_max_length: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_processor, tokenizer, **kwargs)
        if not is_prompt(prompt) or num_pseudo_tokens < 1:
            raise ValueError(
                f"HyCIRProcessor got prompt={prompt!r} and num_pseudo_tokens={num_pseudo_tokens}. Give a prompt with "
                "exactly one {image} and one {text}, such as 'a photo of {image}, {text}', and at least 1 pseudo token."
            )
        self.num_pseudo_tokens = num_pseudo_tokens
        self.placeholder_token_id = placeholder_token_id
        self.prompt = prompt
        self.max_length = max_length or min(tokenizer.model_max_length, 512)
        self.pad_to_max_length = pad_to_max_length
        self._has_warned_of_cut = False

    @classmethod
    def from_encoder(cls, encoder: str | Path, num_pseudo_tokens: int = 4, **kwargs: Any) -> "HyCIRProcessor":
        """Build the processor that belongs to a pretrained encoder.

        Args:
            encoder (`str` or `Path`): Hub id or folder, as in `HyCIRModel.from_encoder`.
            num_pseudo_tokens (`int`): K.
            **kwargs: Further arguments of this class, and those of `HyCIRModel.from_encoder`. Of these, the processor
                uses what says where files are (`revision`, `token` and so on) and `trust_remote_code`.

        Returns:
            `HyCIRProcessor`

        Raises:
            TypeError: If an argument is unknown.
        """
        own, loading, _ = split_arguments(kwargs, inspect.signature(cls.__init__).parameters)
        hub_kwargs: dict[str, Any] = {k: v for k, v in loading.items() if k in (*HUB_KEYS, "trust_remote_code")}
        config = HyCIRConfig(encoder_config=AutoConfig.from_pretrained(encoder, **hub_kwargs)).encoder_config
        tokenizer = AutoTokenizer.from_pretrained(encoder, **hub_kwargs)
        image_processor = _load_image_processor(encoder, **hub_kwargs)
        own.setdefault("max_length", min(tokenizer.model_max_length, _num_positions(config.text_config)))
        own.setdefault("pad_to_max_length", config.model_type in _POOL_LAST_POSITION)
        return cls(image_processor, tokenizer, num_pseudo_tokens=num_pseudo_tokens, **own)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load a saved processor. Arguments are as in `ProcessorMixin.from_pretrained`."""
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        hub_kwargs = {k: v for k, v in kwargs.items() if k in HUB_KEYS}
        if "image_processor" not in kwargs:
            processor.image_processor = _load_image_processor(pretrained_model_name_or_path, **hub_kwargs)
        return processor

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        compose: bool = True,
        return_tensors: str | None = "pt",
        num_images: int = 1,
        prompt: str | None = None,
    ) -> BatchFeature:
        """Prepare a batch.

        Args:
            images (*optional*): An image, a list of images (one a row) or a list of lists of images (several a row).
                An image is anything that `load_image` takes: a PIL image, a path, bytes, an array, a tensor.
            text (`str` or `list[str]`, *optional*): A query text for each row. "" means the image alone.
            compose (`bool`): `True` makes composed prompts, with placeholders for each row's images. `False` leaves the
                texts as they are.
            return_tensors (`str`, *optional*): "pt", "np" or `None` for lists.
            num_images (`int`): Reference images of each row if `images` is not given, because the model gets their
                features.
            prompt (`str`, *optional*): Prompt template for this batch; by default the processor's own.

        Returns:
            `BatchFeature`: With text, `input_ids` and `attention_mask` of shape `(B, L)`. With images, `pixel_values`
            of shape `(I, 3, height, width)`, row by row, and for SigLIP 2 its further inputs.

        Raises:
            ValueError: If there is nothing to do, texts and images differ in number, or an image is broken.
            TypeError: If a text is no string.
            OSError: If the system failed to read an image (see `load_image`).
        """
        if images is None and text is None:
            raise ValueError("HyCIRProcessor got neither images nor text. Give at least one of them.")
        rows = None if images is None else _as_rows(images)
        data: dict[str, Any] = {}
        if text is not None:
            texts = _as_texts(text)
            if rows is not None and len(rows) != len(texts) and compose:
                raise ValueError(
                    f"There are {len(rows)} rows of images, but {len(texts)} texts. Give one text a row ('' for the "
                    "image alone). If a row has several images, put them in a list."
                )
            counts = [len(row) for row in rows] if rows is not None else [num_images] * len(texts)
            ids = self._composed_ids(texts, counts, prompt or self.prompt) if compose else self._plain_ids(texts)
            data |= self._pad(ids)
        if rows is not None:
            loaded = [load_image(image, position=i) for i, image in enumerate(image for row in rows for image in row)]
            data |= self.image_processor(loaded, input_data_format="channels_last", return_tensors=return_tensors)
        return BatchFeature(data, tensor_type=return_tensors)

    def build_prompts(self, pieces: list[list[str]], return_tensors: str | None = "pt") -> BatchFeature:
        """Make prompts of any form: K placeholders between each two pieces of text.

        Args:
            pieces (`list[list[str]]`): Each row's texts around its placeholders. `["a photo of", "on a bench"]` has one
                block of placeholders, a row of one piece has none. Pieces may be empty.
            return_tensors (`str`, *optional*): As in `__call__`.

        Returns:
            `BatchFeature`: `input_ids` and `attention_mask` of shape `(B, L)`. A prompt that is too long for the
            encoder loses its end.
        """
        counts = [len(row) for row in pieces]
        tokenized = iter(self._tokenize([piece.rstrip() for row in pieces for piece in row]))
        block = [self.placeholder_token_id] * self.num_pseudo_tokens
        rows = []
        for row, count in zip(pieces, counts, strict=True):
            ids: list[int] = []
            for number in range(count):
                words = next(tokenized)
                self._check_free_of_placeholders(words, row[number])
                ids += (block if number else []) + words
            rows.append(self._wrap(self._cut_at_block(ids)))
        return BatchFeature(self._pad(rows), tensor_type=return_tensors)

    def _cut_at_block(self, ids: list[int]) -> list[int]:
        """Cut a prompt to the encoder's length, never within a block of placeholders."""
        before, after = self._special_ids()
        room = self.max_length - len(before) - len(after)
        kept = ids[:room]
        if len(ids) > room:
            num_partial = kept.count(self.placeholder_token_id) % self.num_pseudo_tokens
            kept = kept[: len(kept) - num_partial]
        return kept

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that the processor makes."""
        return ["input_ids", "attention_mask", "pixel_values"]

    def _composed_ids(self, texts: list[str], counts: list[int], prompt: str) -> list[list[int]]:
        """Build composed prompts. Pieces are tokenized apart, so no query text can make or break a placeholder."""
        pairs = [_fill(prompt, text) for text in texts]
        befores = self._tokenize([before for before, _ in pairs])
        afters = self._tokenize([after for _, after in pairs])
        between = self._tokenize([" and"])[0]
        is_text_first = prompt.index("{text}") < prompt.index("{image}")
        rows = []
        for text, before, after, count in zip(texts, befores, afters, counts, strict=True):
            image = [self.placeholder_token_id] * self.num_pseudo_tokens
            # Paper: one reference image; several are joined with "and", as in "a photo of [...] and [...], text".
            block = image + (between + image) * (count - 1)
            if is_text_first:
                before = self._cut(before, len(block) + len(after), text)
            else:
                after = self._cut(after, len(block) + len(before), text)
            self._check_free_of_placeholders(before + after, text)
            rows.append(self._wrap(before + block + after))
        return rows

    def _plain_ids(self, texts: list[str]) -> list[list[int]]:
        """Tokenize plain texts."""
        return [self._wrap(self._cut(ids, 0, text)) for ids, text in zip(self._tokenize(texts), texts, strict=True)]

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        """Tokenize without special tokens and without cutting."""
        return self.tokenizer(texts, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]

    def _wrap(self, ids: list[int]) -> list[int]:
        """Put the tokenizer's special tokens around a text."""
        before, after = self._special_ids()
        return before + ids + after

    def _special_ids(self) -> tuple[list[int], list[int]]:
        """Find the special tokens that the tokenizer puts before and after every text."""
        probe = self._tokenize(["a"])[0]
        wrapped = self.tokenizer("a")["input_ids"]
        for start in range(len(wrapped) - len(probe) + 1):
            if wrapped[start : start + len(probe)] == probe:
                return wrapped[:start], wrapped[start + len(probe) :]
        raise ValueError(
            f"The tokenizer does not put its special tokens around the text: it turns 'a' into {wrapped} with and into "
            f"{probe} without them. Use the encoder's own tokenizer."
        )

    def _cut(self, ids: list[int], num_others: int, text: str) -> list[int]:
        """Cut a text's ids so that the prompt's `num_others` other tokens and the special ones still fit."""
        before, after = self._special_ids()
        room = self.max_length - len(before) - len(after) - num_others
        if room < 0:
            raise ValueError(
                f"A prompt may have {self.max_length} tokens, but its placeholders and fixed words alone have {-room} "
                "more. Give fewer reference images a row, or use fewer pseudo tokens."
            )
        if len(ids) > room and not self._has_warned_of_cut:
            self._has_warned_of_cut = True
            logger.warning(
                "A text was cut to fit the encoder's %d tokens: %r. Further cuts are not reported.",
                self.max_length,
                f"{text[:60]} ...",
            )
        return ids[:room]

    def _check_free_of_placeholders(self, ids: list[int], text: str) -> None:
        """Refuse words that read as placeholders. This can only happen if the placeholder is an ordinary token."""
        if self.placeholder_token_id in ids:
            raise ValueError(
                f"The query text {text!r} or the prompt contains the placeholder (id {self.placeholder_token_id}). "
                f"Reword it, or use placeholder_token_id={RESERVED_PLACEHOLDER_ID}, which no text can contain."
            )

    def _pad(self, rows: list[list[int]]) -> dict[str, list[list[int]]]:
        """Pad to the batch's longest row (SigLIP: to the full length) and make the mask."""
        length = self.max_length if self.pad_to_max_length else max(map(len, rows), default=0)
        pad_id = next((i for i in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if i is not None), 0)
        padded: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": []}
        for row in rows:
            num_padding = length - len(row)
            padded["input_ids"].append(row + [pad_id] * num_padding)
            padded["attention_mask"].append([1] * len(row) + [0] * num_padding)
        if self.pad_to_max_length:
            del padded["attention_mask"]
        return padded


def _as_rows(images: Any) -> list[list[Any]]:
    """Bring images to a list of rows, each a list of at least one image."""
    rows = [row if isinstance(row, list) else [row] for row in _as_list(images)]
    if not rows:
        raise ValueError("images is an empty list. Leave out empty batches.")
    empty = [i for i, row in enumerate(rows) if not row]
    if empty:
        raise ValueError(f"The rows {empty} of images are empty. Leave those rows out.")
    return rows


def _as_list(images: Any) -> list[Any]:
    """Bring a batch of images, or a single image, to a list."""
    if isinstance(images, (np.ndarray, torch.Tensor)):
        return list(images) if images.ndim == 4 else [images]
    is_single = isinstance(images, (str, Path, bytes, bytearray, memoryview, dict, Image.Image))
    if not is_single and hasattr(images, "__iter__"):
        return [list(row) if isinstance(row, tuple) else row for row in images]
    return [images]


def _as_texts(text: Any) -> list[str]:
    """Bring texts to a list of strings."""
    texts = [text] if isinstance(text, str) else list(text)
    if not texts:
        raise ValueError("text is an empty list. Leave out empty batches.")
    for i, item in enumerate(texts):
        if not isinstance(item, str):
            raise TypeError(f"Texts must be strings, but text {i} is {item!r}. Give '' for the image alone.")
    return texts


def _fill(prompt: str, text: str) -> tuple[str, str]:
    """Put a query text into the template and split it at `{image}`. An empty text also removes its punctuation."""
    text = text.strip()
    if not text:
        prompt = re.sub(r"^\{text\}[\s,;:.]*|[\s,;:]*\{text\}", "", prompt)
    before, after = prompt.split("{image}")
    return before.replace("{text}", text).rstrip(), after.replace("{text}", text).rstrip()


def _load_image_processor(name_or_path: Any, **hub_kwargs: Any) -> Any:
    """Load an image processor that resizes with PIL. torchvision's results differ, and it may not be installed."""
    return AutoImageProcessor.from_pretrained(name_or_path, backend="pil", **hub_kwargs)


def _num_positions(text_config: Any) -> int:
    """Count the positions of a text encoder."""
    num_positions = text_config.max_position_embeddings
    if text_config.model_type in _OFFSET_POSITIONS:
        num_positions -= text_config.pad_token_id + 1
    return num_positions


AutoProcessor.register(HyCIRConfig, HyCIRProcessor, exist_ok=True)
HyCIRProcessor.register_for_auto_class("AutoProcessor")
