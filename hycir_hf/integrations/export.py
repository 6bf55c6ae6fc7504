"""HyCIR models as ONNX graphs for onnxruntime, checked against the model that they were made of (extra `onnx`)."""

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.export import Dim
from transformers.exporters import (
    ExportedModel,
    OnnxConfig,
    OnnxExporter,
    OnnxRuntimeDynamicConfig,
    OnnxRuntimeQuantizer,
)

from ..files import atomic_folder, check_new_folder
from ..modeling_hycir import HyCIRModel
from ..names import resolve_model
from ..onnx_model import OnnxModel
from ..processing_hycir import HyCIRProcessor
from ..retriever import HyCIREncoder, OnnxEncoder

MIN_COSINE, MIN_COSINE_INT8 = 0.9999, 0.99
"""The least similarity of each exported feature to the model's own."""

_TEXTS = ("", "make it night", "the same animal, but larger, seen from the side and with a red hat on its head")


class _ImageGraph(nn.Module):
    """Images to features `(I, D)`, not normalised."""

    def __init__(self, model: HyCIRModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Name the output of `HyCIRModel.get_image_features`."""
        return {"features": self.model.get_image_features(**inputs, normalize=False)}


class _QueryGraph(_ImageGraph):
    """Prompts `(B, L)` and image features `(I, D)` to composed features `(B, D)`, neither normalised."""

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Name the output of `HyCIRModel.get_composed_features`."""
        return {"features": self.model.get_composed_features(**inputs, normalize=False)}


def export_model(model: str, output: str | os.PathLike, int8: bool = False) -> dict[str, float]:
    """Export a HyCIR model to ONNX graphs, with its processor, and compare them with the model.

    The graph `image` takes any number of images. The graph `query` takes any number of prompts, of any length up to
    the encoder's, and the features of any number of reference images. K and the prompt are the model's. SigLIP's
    prompts keep their one length.

    Args:
        model (`str`): Folder or Hub id of a HyCIR model. It is exported in float32.
        output (`str` or `Path`): Folder to write. It must be new or empty.
        int8 (`bool`): Whether to store the weights of matrix products as 8-bit integers.

    Returns:
        `dict[str, float]`: "images", "texts" and "queries" -> the least cosine similarity to the model's own features.

    Raises:
        ValueError: If a similarity is below 0.9999 (`int8`: 0.99). Then nothing is written.
    """
    check_new_folder(output)
    original = HyCIRModel.from_pretrained(resolve_model(model), dtype=torch.float32).eval()
    processor = HyCIRProcessor.from_pretrained(model)
    images = [_picture(seed) for seed in range(3)]
    inputs = dict(processor(images=[images[:2], images[2]], text=list(_TEXTS[1:])))
    prompts = {name: inputs.pop(name) for name in ("input_ids", "attention_mask") if name in inputs}
    with torch.no_grad():
        prompts["image_features"] = original.get_image_features(**inputs, normalize=False)  # (3, D)
    graphs = {
        "image": _export(_ImageGraph(original), inputs, int8),
        "query": _export(_QueryGraph(original), prompts, int8),
    }
    components = {name: graph.components["model"] for name, graph in graphs.items()}
    with atomic_folder(output) as folder:
        ExportedModel(components, "onnx", config=original.config).save_pretrained(folder)
        processor.save_pretrained(folder)
        exported: Any = OnnxModel(folder, "cpu")
        found = _compare(HyCIREncoder(original, processor), OnnxEncoder(exported, processor), images)
        _check(found, MIN_COSINE_INT8 if int8 else MIN_COSINE, model)
    return found


def _export(graph: nn.Module, inputs: dict[str, Tensor], int8: bool) -> ExportedModel:
    """Export one graph with free rows, and free length where prompts are not padded to a fixed one."""
    is_free = "attention_mask" in inputs
    shapes = {
        name: {0: Dim.DYNAMIC} | ({1: Dim.DYNAMIC} if is_free and name in ("input_ids", "attention_mask") else {})
        for name in inputs
    }
    dynamic = OnnxRuntimeDynamicConfig(per_channel=True, op_types_to_quantize=["MatMul", "Gemm"])
    config = OnnxConfig(dynamic_shapes=shapes, quantizer=OnnxRuntimeQuantizer(dynamic) if int8 else None)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its steps
        exported = OnnxExporter().export(graph.eval(), dict(inputs), config)
    for node in exported.program.graph.all_nodes():
        node.metadata_props.clear()  # stack traces with local paths
    return exported


def _picture(seed: int) -> Image.Image:
    """Draw smooth random colours: 8 x 6 of them, enlarged."""
    values = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((320, 240), Image.Resampling.BICUBIC)


def _compare(original: HyCIREncoder, exported: HyCIREncoder, images: list[Image.Image]) -> dict[str, float]:
    """Find the least cosine similarity of each kind of feature."""
    rows = [images[0], images[1], images[1:]]  # the last query has two reference images
    pairs = {
        "images": [one.encode_images(images) for one in (original, exported)],
        "texts": [one.encode_texts(_TEXTS) for one in (original, exported)],
        "queries": [one.encode_queries(rows, _TEXTS) for one in (original, exported)],
    }
    return {name: float((first * second).sum(-1).min()) for name, (first, second) in pairs.items()}


def _check(found: dict[str, float], least: float, model: str) -> None:
    bad = {name: round(value, 5) for name, value in found.items() if not value >= least}  # nan is bad, too
    if bad:
        raise ValueError(
            f"The graphs of {Path(model).name} differ too much from the model: the least cosine similarity is {bad}, "
            f"where {least} is needed. Nothing was written. Export without int8, or report the model."
        )
