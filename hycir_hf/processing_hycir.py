"""HyCIR's processor: images of any kind to pixels, query texts to prompts with K placeholders for each reference image.

Paper: Model architecture; the prompt is "a photo of [$ $ $ $], query text".
"""

import io
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .configuration_hycir import HUB_KEYS, RESERVED_PLACEHOLDER_ID, HyCIRConfig, is_prompt

logger = logging.getLogger(__name__)

_POOL_LAST_POSITION = ("siglip", "siglip2")
"""Encoders that read the text from its last position and were trained without mask: they need the full length."""

_OFFSET_POSITIONS = ("altclip_text_model", "roberta", "xlm-roberta", "xlm-roberta-xl", "camembert")
"""Text encoders whose positions start after the padding id."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture of each EXIF orientation upright."""


class HyCIRProcessor(ProcessorMixin):
    """Prepare images and texts for `HyCIRModel`.

    Args:
        image_processor (`BaseImageProcessor`): The encoder's image processor.
        tokenizer (`PreTrainedTokenizerBase`): The encoder's tokenizer.
        num_pseudo_tokens (`int`): K, the placeholders of one reference image.
        placeholder_token_id (`int`): As in `HyCIRConfig`.
        prompt (`str`): As in `HyCIRConfig`; where the query text is empty, `{text}` and the punctuation before it go.
        max_length (`int`, *optional*): The longest prompt in tokens; by default the tokenizer's limit.
        pad_to_max_length (`bool`): Pad every batch to `max_length` and give no mask, as SigLIP was trained; otherwise
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
                "HyCIRProcessor needs a prompt with exactly one {image} and one {text}, and at least 1 pseudo token, "
                f"but found {prompt!r} and {num_pseudo_tokens}. Correct them, for example to "
                "'a photo of {image}, {text}'."
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
            **kwargs: Further arguments of this class.

        Returns:
            `HyCIRProcessor`
        """
        config = HyCIRConfig(encoder_config=AutoConfig.from_pretrained(encoder)).encoder_config
        tokenizer = AutoTokenizer.from_pretrained(encoder)
        image_processor = _load_image_processor(encoder)
        kwargs.setdefault("max_length", min(tokenizer.model_max_length, _num_positions(config.text_config)))
        kwargs.setdefault("pad_to_max_length", config.model_type in _POOL_LAST_POSITION)
        return cls(image_processor, tokenizer, num_pseudo_tokens=num_pseudo_tokens, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load a saved processor; arguments as in `ProcessorMixin.from_pretrained`."""
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        hub_kwargs = {k: v for k, v in kwargs.items() if k in HUB_KEYS}
        if "image_processor" not in kwargs:
            processor.image_processor = _load_image_processor(pretrained_model_name_or_path, **hub_kwargs)
        return processor

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload the processor; arguments as in `ProcessorMixin.push_to_hub`, but a new repository is private."""
        return super().push_to_hub(repo_id, **({"private": True} | kwargs))

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        compose: bool = True,
        return_tensors: str | None = "pt",
        num_images: int = 1,
    ) -> BatchFeature:
        """Prepare a batch.

        Args:
            images (*optional*): An image, a list of images (one a row) or of lists of images (several a row); each a
                PIL image, a path, bytes, an array or a tensor (see `load_image`).
            text (`str` or `list[str]`, *optional*): A query text for each row; "" means the image alone.
            compose (`bool`): `True` makes composed prompts, with placeholders for each row's images (for `num_images`
                where no images are given); `False` leaves the texts as they are.
            return_tensors (`str`, *optional*): "pt", "np" or `None` for lists.
            num_images (`int`): Reference images of each row where none are given here: their features go to the model.

        Returns:
            `BatchFeature`: `input_ids` and `attention_mask` of shape `(B, L)` where there is text, `pixel_values` of
            shape `(I, 3, height, width)` where there are images, row by row.

        Raises:
            ValueError: If there is nothing to do, texts and images differ in number, or an image is broken.
            TypeError: If a text is no string.
        """
        if images is None and text is None:
            raise ValueError("HyCIRProcessor needs images, text or both, but found neither. Give at least one.")
        rows = None if images is None else _as_rows(images)
        data: dict[str, Any] = {}
        if text is not None:
            texts = _as_texts(text)
            if rows is not None and len(rows) != len(texts) and compose:
                raise ValueError(
                    f"Each row needs its images and its text, but found {len(rows)} rows of images and {len(texts)} "
                    "texts. Give one text a row ('' for the image alone); wrap a row's several images in a list."
                )
            counts = [len(row) for row in rows] if rows is not None else [num_images] * len(texts)
            ids = self._composed_ids(texts, counts) if compose else self._plain_ids(texts)
            data |= self._pad(ids)
        if rows is not None:
            loaded = [load_image(image, position=i) for i, image in enumerate(image for row in rows for image in row)]
            data |= self.image_processor(loaded, input_data_format="channels_last", return_tensors=return_tensors)
        return BatchFeature(data, tensor_type=return_tensors)

    def build_prompts(self, pieces: list[list[str]], return_tensors: str | None = "pt") -> BatchFeature:
        """Make prompts of any form: K placeholders between each two pieces of text.

        Args:
            pieces (`list[list[str]]`): A row's texts around its placeholders: `["a photo of", "on a bench"]` has one
                block of placeholders, a row of one piece has none. Pieces may be empty.
            return_tensors (`str`, *optional*): As in `__call__`.

        Returns:
            `BatchFeature`: `input_ids` and `attention_mask` of shape `(B, L)`; the end of a prompt is cut where the
            encoder has no room for it.
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
        """Names of the tensors that the processor gives."""
        return ["input_ids", "attention_mask", "pixel_values"]

    def _composed_ids(self, texts: list[str], counts: list[int]) -> list[list[int]]:
        """Build composed prompts: the pieces are tokenized apart, so no query text can make or break a placeholder."""
        pairs = [_fill(self.prompt, text) for text in texts]
        befores = self._tokenize([before for before, _ in pairs])
        afters = self._tokenize([after for _, after in pairs])
        between = self._tokenize([" and"])[0]
        is_text_first = self.prompt.index("{text}") < self.prompt.index("{image}")
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
            f"The tokenizer must put its special tokens around the text, but it turns 'a' into {wrapped} with and into "
            f"{probe} without them. Use the encoder's own tokenizer."
        )

    def _cut(self, ids: list[int], num_others: int, text: str) -> list[int]:
        """Cut a text's ids so that the prompt's `num_others` other tokens and the special ones still fit."""
        before, after = self._special_ids()
        room = self.max_length - len(before) - len(after) - num_others
        if room < 0:
            raise ValueError(
                f"A prompt may have {self.max_length} tokens, but its placeholders and fixed words alone exceed that "
                f"by {-room}. Give fewer reference images a row, or use fewer pseudo tokens."
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
        """Refuse words that read as placeholders (possible only where the placeholder is an ordinary token)."""
        if self.placeholder_token_id in ids:
            raise ValueError(
                f"No query text may contain the placeholder (token id {self.placeholder_token_id}), but {text!r} or "
                f"the prompt does. Reword it, or use placeholder_token_id={RESERVED_PLACEHOLDER_ID}, which no text has."
            )

    def _pad(self, rows: list[list[int]]) -> dict[str, list[list[int]]]:
        """Pad to the batch's longest row (SigLIP: to the full length) and make the mask."""
        length = self.max_length if self.pad_to_max_length else max(map(len, rows), default=0)
        pad_id = next((i for i in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if i is not None), 0)
        padded = {"input_ids": [], "attention_mask": []}  # type: dict[str, list[list[int]]]
        for row in rows:
            num_padding = length - len(row)
            padded["input_ids"].append(row + [pad_id] * num_padding)
            padded["attention_mask"].append([1] * len(row) + [0] * num_padding)
        if self.pad_to_max_length:
            del padded["attention_mask"]
        return padded


def load_image(image: Any, position: int | None = None) -> Image.Image:
    """Load an image of any kind as an upright 8-bit RGB picture; transparency is laid on white.

    Args:
        image: A PIL image of any mode (of an animation the first frame counts), a path, the bytes of an image file, a
            `datasets` record with "bytes" or "path", or an array or tensor of shape (height, width), (height, width,
            channels) or (channels, height, width) with 1 to 4 channels, in uint8, uint16, bool or float (in [0, 1], or
            else in [0, 255]).
        position (`int`, *optional*): The image's number in its batch, for the error message.

    Returns:
        `PIL.Image.Image`: Mode "RGB".

    Raises:
        ValueError: If the image cannot be read; the message names it.
    """
    try:
        return _load(image)
    except Exception as error:  # image decoders raise nearly everything
        name = "the image" if position is None else f"image {position}"
        raise ValueError(
            f"Expected a readable picture, but {name} ({_describe(image)}) cannot be read: {error}. Repair it or "
            "leave it out."
        ) from error


def _load(image: Any) -> Image.Image:
    """Open an image of any kind and convert it."""
    if isinstance(image, dict):
        image = image["bytes"] if image.get("bytes") is not None else image.get("path")
    if isinstance(image, Image.Image):
        return _to_rgb(image)
    if isinstance(image, (bytes, bytearray, memoryview)):
        image = io.BytesIO(image)
    elif isinstance(image, (str, Path)):
        if "://" in str(image) or str(image).startswith("data:"):
            raise ValueError("it is a URL, and nothing is downloaded here; download it first and give the file's path")
        if not Path(image).is_file():
            raise ValueError("there is no such file")
    elif isinstance(image, (np.ndarray, torch.Tensor)):
        return _to_rgb(_from_array(image))
    else:
        raise ValueError("it is no PIL image, path, bytes, array or tensor")
    with Image.open(image) as opened:
        return _to_rgb(opened)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert a PIL image of any mode to upright RGB on white."""
    if getattr(image, "is_animated", False):
        image.seek(0)
    image = _upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        values, clear = np.asarray(image), image.info.get("transparency")
        image = _to_8_bit(values)
        if isinstance(clear, int):  # PIL itself forgets the transparent grey of a 16-bit PNG
            image.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    if image.mode == "La":  # premultiplied: PIL knows only the way back
        image = image.convert("LA")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa"):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF orientation says."""
    image.load()  # a PNG's EXIF may follow its pixels
    try:  # ImageOps.exif_transpose would refuse sound pixels for one damaged tag among the EXIF data
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # damaged EXIF raises nearly everything
        return image
    return image if turn is None else image.transpose(turn)


def _to_8_bit(values: np.ndarray) -> Image.Image:
    """Bring a 16-bit, 32-bit or floating-point picture of one to four channels to 8 bits."""
    if not np.isfinite(values).all() or values.min(initial=0) < 0:
        raise ValueError("its values are negative or not finite; give it before normalization, in [0, 1] or [0, 255]")
    top = values.max(initial=0)
    if (values.dtype.kind, values.dtype.itemsize) == ("u", 2) or (values.dtype.kind in "iu" and top > 255):
        values = values / 257 if top <= 65535 else values / top * 255
    elif values.dtype.kind == "b" or (values.dtype.kind == "f" and top <= 1):
        values = values * 255.0
    elif values.dtype.kind == "f" and top > 255:
        values = values / top * 255
    return Image.fromarray(np.rint(values).astype(np.uint8))


def _from_array(array: np.ndarray | torch.Tensor) -> Image.Image:
    """Make a PIL image of an array or tensor, channels last or first."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    if array.ndim == 3 and array.shape[-1] not in (1, 2, 3, 4) and array.shape[0] in (1, 2, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 2, 3, 4)) or not array.size:
        raise ValueError(f"its shape is {array.shape}; give (height, width) or 1 to 4 channels, last or first")
    return _to_8_bit(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array)


def _describe(image: Any) -> str:
    """Name an image in one short phrase."""
    if isinstance(image, (str, Path)):
        return str(image)[:300]
    if isinstance(image, dict):
        return _describe(image.get("path") or image.get("bytes"))
    if isinstance(image, (bytes, bytearray, memoryview)):
        return f"{len(image)} bytes"
    if isinstance(image, (np.ndarray, torch.Tensor)):
        return f"{type(image).__name__} of shape {tuple(image.shape)}"
    return getattr(image, "filename", "") or type(image).__name__


def _as_rows(images: Any) -> list[list[Any]]:
    """Bring images to a list of rows, each a list of at least one image."""
    rows = [row if isinstance(row, list) else [row] for row in _as_list(images)]
    if not rows:
        raise ValueError("HyCIRProcessor needs at least one image, but found an empty list. Leave out empty batches.")
    empty = [i for i, row in enumerate(rows) if not row]
    if empty:
        raise ValueError(f"Each row needs at least one image, but rows {empty} have none. Leave those rows out.")
    return rows


def _as_list(images: Any) -> list[Any]:
    """Tell a batch of images from a single image."""
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
        raise ValueError("HyCIRProcessor needs at least one text, but found an empty list. Leave out empty batches.")
    for i, item in enumerate(texts):
        if not isinstance(item, str):
            raise TypeError(f"Texts must be strings, but text {i} is {item!r}. Give '' for the image alone.")
    return texts


def _fill(prompt: str, text: str) -> tuple[str, str]:
    """Put a query text into the template and split it at `{image}`; an empty text takes its punctuation along."""
    text = text.strip()
    if not text:
        prompt = re.sub(r"^\{text\}[\s,;:.]*|[\s,;:]*\{text\}", "", prompt)
    before, after = prompt.split("{image}")
    return before.replace("{text}", text).rstrip(), after.replace("{text}", text).rstrip()


def _load_image_processor(name_or_path: Any, **hub_kwargs: Any) -> Any:
    """Load an image processor that resizes with PIL everywhere: torchvision's differs, and need not be there."""
    return AutoImageProcessor.from_pretrained(name_or_path, backend="pil", **hub_kwargs)


def _num_positions(text_config: Any) -> int:
    """Count the positions that a text encoder has room for."""
    num_positions = text_config.max_position_embeddings
    if text_config.model_type in _OFFSET_POSITIONS:
        num_positions -= text_config.pad_token_id + 1
    return num_positions


AutoProcessor.register(HyCIRConfig, HyCIRProcessor, exist_ok=True)
HyCIRProcessor.register_for_auto_class("AutoProcessor")
