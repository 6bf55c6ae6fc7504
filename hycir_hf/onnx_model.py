"""An exported model: ONNX graphs that onnxruntime runs in place of a `HyCIRModel` (extra `onnx`).

`hycir export` writes them: `image` turns images into features, `query` turns composed prompts and image features into
composed features. Not imported by the rest of the package until a folder of such graphs is named.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.exporters import ExportedModel
from transformers.utils import cached_file

from .names import EXPORT_MANIFEST

try:
    import onnxruntime  # noqa: F401 - transformers' runner uses it, but its own error names no extra
    import onnxscript  # noqa: F401
except ImportError as error:
    raise ImportError(
        "ONNX graphs need onnx, onnxscript and onnxruntime, which cannot be imported. Install them with pip install "
        "'hycir_hf[onnx]'."
    ) from error


class OnnxModel:
    """The methods of `HyCIRModel` that encode, run by onnxruntime.

    Args:
        name (`str` or `Path`): Folder that `hycir export` wrote, or its Hub id.
        device (`str`, *optional*): "cpu", or "cuda" with onnxruntime's GPU build. By default a GPU if both are there.

    Raises:
        ValueError: If onnxruntime cannot run on the device.
    """

    def __init__(self, name: str | Path, device: str | torch.device | None = None) -> None:
        exported = ExportedModel.from_pretrained(str(name), device=device)
        self.name_or_path, self.config = str(name), exported.config
        self.device = torch.device("cpu")  # where inputs and outputs are
        self._image, self._query = exported.runners["image"], exported.runners["query"]
        self._fingerprint = _hash_graphs(Path(cached_file(str(name), EXPORT_MANIFEST)).parent)

    def eval(self) -> "OnnxModel":
        """Do nothing: graphs have no training mode."""
        return self

    def encoder_fingerprint(self) -> str:
        """Identify the graphs: 16 hex digits of a SHA-256 of their files."""
        return self._fingerprint

    def get_image_features(self, pixel_values: Tensor, normalize: bool = True, **image_inputs: Tensor) -> Tensor:
        """See `HyCIRModel.get_image_features`."""
        return _unit(self._image(pixel_values=pixel_values, **image_inputs)["features"], normalize)  # (I, D)

    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, normalize: bool = True
    ) -> Tensor:
        """See `HyCIRModel.get_text_features`. A text has no placeholder, so the features of its image are not used."""
        features = torch.zeros(1, self.config.feature_size)
        return self.get_composed_features(input_ids, attention_mask, image_features=features, normalize=normalize)

    def get_composed_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        normalize: bool = True,
        **image_inputs: Any,
    ) -> Tensor:
        """See `HyCIRModel.get_composed_features`."""
        if image_features is None and pixel_values is not None:
            image_features = self.get_image_features(pixel_values, normalize=False, **image_inputs)  # (I, D)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "image_features": image_features}
        return _unit(self._query(**{k: v for k, v in inputs.items() if v is not None})["features"], normalize)  # (B, D)


def _unit(features: Tensor, normalize: bool) -> Tensor:
    return F.normalize(features, dim=-1) if normalize else features


def _hash_graphs(directory: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.onnx*")):
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()[:16]
