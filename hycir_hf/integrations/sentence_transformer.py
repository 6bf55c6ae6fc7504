"""HyCIR as a `SentenceTransformer`, so that its evaluators, `semantic_search` and trainer work on composed queries.

Needs the extra `sentence-transformers`.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..modeling_hycir import HyCIRModel
from ..processing_hycir import HyCIRProcessor

try:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modality import infer_batch_modality
    from sentence_transformers.base.modules import InputModule
except ImportError as error:
    raise ImportError(
        "sentence-transformers 6 or later is not installed. Run `pip install 'hycir_hf[sentence-transformers]'`."
    ) from error

_IMAGE_INPUTS = ("pixel_values", "pixel_attention_mask", "spatial_shapes")


class HyCIRModule(InputModule):
    """Encodes images, texts, and images with query texts into one space, unit L2 norm.

    Args:
        model (`HyCIRModel`): The model.
        processor (`HyCIRProcessor`): The model's processor.
    """

    def __init__(self, model: HyCIRModel, processor: HyCIRProcessor) -> None:
        super().__init__()
        self.model = model
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.max_seq_length = processor.max_length

    @property
    def modalities(self) -> list[Any]:
        """What can be encoded. A composed query is an image with a text."""
        return ["image", "text", ("image", "text"), ("text", "image")]

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """Prepare a batch of images, of texts, or of `{"image": ..., "text": ...}`.

        Args:
            inputs (`Sequence`): All of the same modality. A string that names an image file is an image.
            prompt (`str`, *optional*): Put before each text.
            **kwargs: Not used. The library may pass further arguments.
        """
        modality = infer_batch_modality(inputs, supported_modalities=self.modalities)
        parts = (modality,) if isinstance(modality, str) else modality
        given: dict[str, Any] = {}
        if "image" in parts:
            given["images"] = [_part(sample, "image") for sample in inputs]
        if "text" in parts:
            given["text"] = [(prompt or "") + _part(sample, "text") for sample in inputs]
        return dict(self.processor(**given, compose=len(parts) > 1))

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Encode what `preprocess` made, and add it as "sentence_embedding" of shape `(B, D)`."""
        inputs = {name: features[name] for name in ("input_ids", "attention_mask", *_IMAGE_INPUTS) if name in features}
        if "input_ids" not in inputs:
            embeddings = self.model.get_image_features(**inputs)
        elif "pixel_values" in inputs:
            embeddings = self.model.get_composed_features(**inputs)
        else:
            embeddings = self.model.get_text_features(**inputs)
        return features | {"sentence_embedding": embeddings}

    def get_embedding_dimension(self) -> int:
        """D, the width of the joint space."""
        return self.model.config.feature_size

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Save model and processor with their own `save_pretrained`. The folder also loads as a `HyCIRModel`."""
        self.model.save_pretrained(output_path)
        self.processor.save_pretrained(output_path)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> "HyCIRModule":
        """Load what `save` wrote. `model_kwargs` go to `HyCIRModel.from_pretrained`. Other arguments are not used."""
        hub_kwargs: dict[str, Any] = {
            "subfolder": subfolder,
            "token": token,
            "cache_dir": cache_folder,
            "revision": revision,
            "local_files_only": local_files_only,
        }
        model = HyCIRModel.from_pretrained(model_name_or_path, **hub_kwargs, **(kwargs.get("model_kwargs") or {}))
        return cls(model, HyCIRProcessor.from_pretrained(model_name_or_path, **hub_kwargs))


def as_sentence_transformer(model: HyCIRModel, processor: HyCIRProcessor) -> SentenceTransformer:
    """Wrap a model as a `SentenceTransformer`.

    `encode(images)` gives image features, and `encode([{"image": ..., "text": ...}])` gives composed queries' features.

    A saved folder loads again as `SentenceTransformer(folder, trust_remote_code=True)`, because that library treats a
    module of any other package as remote code. `push_to_hub(name, private=True)` uploads the same files. Without
    `private=True` a new repository is public.
    """
    return SentenceTransformer(modules=[HyCIRModule(model, processor)], device=str(model.device))


def _part(sample: Any, name: str) -> Any:
    return sample[name] if isinstance(sample, dict) else sample
