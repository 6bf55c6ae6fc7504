"""HyCIR's processor: images of any kind to pixels, query texts to prompts with K placeholders for each reference image.

Paper: Model architecture; the prompt is "a photo of [$ $ $ $], query text".
"""

import inspect
import json
import os
from itertools import groupby
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ImagesKwargs, ProcessingKwargs
from transformers.utils import to_py_obj

from .configuration_hycir import HUB_KEYS, RESERVED_PLACEHOLDER_ID, HyCIRConfig, is_prompt, split_arguments
from .images_hycir import as_rows, load_image
from .prompts_hycir import HyCIRTextKwargs, PromptBuilder, as_texts

_POOL_LAST_POSITION = ("siglip", "siglip2")
"""Encoders that read the text at its last position and were trained without mask. They need the full length."""

_OFFSET_POSITIONS = ("altclip_text_model", "roberta", "xlm-roberta", "xlm-roberta-xl", "camembert")
"""Text encoders whose positions start after the padding id."""

_SENTENCE_TRANSFORMERS_FILES: dict[str, Any] = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
    ],
    "sentence_bert_config.json": {
        "modality_config": {
            modality: {"method": f"get_{kind}_features", "method_output_name": output}
            for modality, kind, output in (
                *(("text", "text", "pooler_output"), ("image", "image", "pooler_output")),
                *(("image+text", "composed", None), ("text+image", "composed", None)),
            )
        },
        "module_output_name": "sentence_embedding",
        "processing_kwargs": {"text": {"compose": None}},
    },
}
"""What makes a saved folder load as `SentenceTransformer(folder)`."""


class HyCIRProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    """Arguments of a call, as the library sorts them."""

    text_kwargs: HyCIRTextKwargs
    images_kwargs: ImagesKwargs
    num_images: int
    prompt: str | None


class HyCIRProcessor(PromptBuilder):
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

    valid_processor_kwargs = HyCIRProcessorKwargs
    images_kwargs: Any = {"return_tensors": "pt"}  # noqa: RUF012
    num_images = 1

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
        """Load a saved processor. Arguments are as in `ProcessorMixin.from_pretrained`.

        Values of the image processor or the tokenizer, such as `do_normalize=False`, replace the saved ones.
        """
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        if "image_processor" not in kwargs:
            processor.image_processor = _load_image_processor(pretrained_model_name_or_path, **kwargs)
        return processor

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> list[str]:
        """Save the processor, as `ProcessorMixin.save_pretrained` does, and the files of `SentenceTransformer`."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        for name, content in _SENTENCE_TRANSFORMERS_FILES.items():
            if not (path := Path(save_directory, name)).exists():
                path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        saved = super().save_pretrained(save_directory, **kwargs)
        self.__dict__.pop("auto_map", None)  # only the saved copy needs it
        return saved

    def to_dict(self) -> dict[str, Any]:
        """Return the values that are saved. While saving, the library also names our code on the image processor."""
        if self.image_processor._auto_class is None:
            self.image_processor.__dict__.pop("auto_map", None)
        return super().to_dict()

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """Prepare a batch.

        Args:
            images (*optional*): An image, a list of images (one a row) or a list of lists of images (several a row).
                An image is anything that `load_image` takes: a PIL image, a path, bytes, an array, a tensor.
            text (`str` or `list[str]`, *optional*): A query text for each row. "" means the image alone. A row
                without images, `[]`, is a text alone.
            **kwargs: The library's arguments, either flat or sorted into `text_kwargs`, `images_kwargs` and
                `common_kwargs`. Text arguments are those of `HyCIRTextKwargs`, image arguments the image processor's.

                - `compose` (`bool`, *optional*): `True` (the default) makes composed prompts, with placeholders for
                  each row's images. `False` leaves the texts as they are. `None` composes if images are given.
                - `num_images` (`int`): Reference images of each row if `images` is not given, because the model gets
                  their features (1).
                - `prompt` (`str`): Prompt template for this batch; by default the processor's own.
                - `padding` (`bool` or `str`): To the longest row (`True`), to "max_length" or not at all (`False`).
                - `truncation` (`bool` or `str`), `max_length` (`int`): Whether query texts are cut (`True`), and the
                  longest prompt in tokens. The default is the processor's.
                - `return_tensors` (`str`, *optional*): "pt" (the default), "np" or `None` for lists.
                - `device` (`str` or `torch.device`): Where to put the tensors.

        Returns:
            `BatchFeature`: With text, `input_ids` and `attention_mask` of shape `(B, L)`. With images, `pixel_values`
            of shape `(I, 3, height, width)`, row by row, and for SigLIP 2 its further inputs.

        Raises:
            ValueError: If there is nothing to do, texts and images differ in number, or an image is broken.
            TypeError: If a text is no string, or an argument does not exist.
            OSError: If the system failed to read an image (see `load_image`).
        """
        if images is None and text is None:
            raise ValueError("HyCIRProcessor got neither images nor text. Give at least one of them.")
        given = self._sorted_kwargs(kwargs)
        words, pictures = given["text_kwargs"], given["images_kwargs"]
        device = pictures.pop("device", None)
        rows = None if images is None else as_rows(images)
        data: dict[str, Any] = {}
        if text is not None:
            texts = as_texts(text)
            is_composed = words["compose"] if words["compose"] is not None else rows is not None
            counts = self._count_images(rows, texts, given["num_images"]) if is_composed else [0] * len(texts)
            data |= self._pad(self._ids_of(texts, counts, given["prompt"] or self.prompt, words), words)
        if rows is not None:
            if text is None or not is_composed:
                _check_filled(rows, [])
            loaded = [load_image(image, position=i) for i, image in enumerate(image for row in rows for image in row)]
            if loaded:
                data |= self.image_processor(loaded, **pictures | {"input_data_format": "channels_last"})
        batch = BatchFeature(data, tensor_type=(pictures if text is None else words)["return_tensors"])
        return batch if device is None else batch.to(device)

    def _sorted_kwargs(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Sort a call's arguments by the part that they are for, and add the defaults."""
        # A saved max_length counts only beside a saved padding. Alone, it is what some earlier call left there.
        saved = self.tokenizer.init_kwargs if self.tokenizer.init_kwargs.get("padding") else {}
        known = {"common_kwargs", *HyCIRProcessorKwargs.__annotations__, *ImagesKwargs.__annotations__}
        known |= set(getattr(getattr(self.image_processor, "valid_kwargs", None), "__annotations__", ()))
        given = self._merge_kwargs(tokenizer_init_kwargs=saved, **kwargs)
        unknown = (set(kwargs) - known | set(given["text_kwargs"])) - set(HyCIRTextKwargs.__annotations__)
        if unknown:
            raise TypeError(f"HyCIRProcessor takes no argument {sorted(unknown)}. Its docstring lists those it takes.")
        return given

    def _count_images(self, rows: list[list[Any]] | None, texts: list[str], num_images: int) -> list[int]:
        """Count the reference images of each row of a composed batch, and check that rows and texts agree."""
        if rows is None:
            return [num_images] * len(texts)
        if len(rows) != len(texts):
            raise ValueError(
                f"There are {len(rows)} rows of images, but {len(texts)} texts. Give one text a row ('' for the "
                "image alone). If a row has several images, put them in a list."
            )
        _check_filled(rows, texts)
        return [len(row) for row in rows]

    def decode(self, token_ids: Any, *args: Any, **kwargs: Any) -> Any:
        """Decode ids, or several rows of them, as the tokenizer does. The reserved placeholder id prints as `[$]`."""
        ids = to_py_obj(token_ids)
        if isinstance(ids, list | tuple) and ids and isinstance(ids[0], list | tuple):
            return [self.decode(row, *args, **kwargs) for row in ids]
        parts: list[str] = []
        rows = groupby(ids if isinstance(ids, list | tuple) else [ids], lambda id_: id_ == RESERVED_PLACEHOLDER_ID)
        for is_placeholder, group in rows:
            row = list(group)
            parts += ["[$]"] * len(row) if is_placeholder else [self.tokenizer.decode(row, *args, **kwargs)]
        return " ".join(part for part in parts if part)

    def batch_decode(self, sequences: Any, *args: Any, **kwargs: Any) -> list[str]:
        """Decode rows of ids, as `decode` does."""
        return [self.decode(row, *args, **kwargs) for row in to_py_obj(sequences)]

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that the processor makes."""
        return ["input_ids", "attention_mask", "pixel_values"]


def _check_filled(rows: list[list[Any]], texts: list[str]) -> None:
    """Refuse rows that have neither images nor words."""
    empty = [i for i, row in enumerate(rows) if not row and not any(text.strip() for text in texts[i : i + 1])]
    if empty:
        raise ValueError(f"The rows {empty} of images are empty, and no text fills them. Leave those rows out.")


def _load_image_processor(name_or_path: Any, **kwargs: Any) -> Any:
    """Load an image processor that resizes with PIL. torchvision's results differ, and it may not be installed."""
    return AutoImageProcessor.from_pretrained(name_or_path, **{"backend": "pil"} | kwargs)


def _num_positions(text_config: Any) -> int:
    """Count the positions of a text encoder."""
    num_positions = text_config.max_position_embeddings
    if text_config.model_type in _OFFSET_POSITIONS:
        num_positions -= text_config.pad_token_id + 1
    return num_positions


AutoProcessor.register(HyCIRConfig, HyCIRProcessor, exist_ok=True)
HyCIRProcessor.register_for_auto_class("AutoProcessor")
