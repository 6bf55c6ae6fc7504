"""Models for the commands: a name is checked, the model is loaded and moved to its device."""

import os
from typing import TYPE_CHECKING

import hycir_hf

from ..names import naming_model, resolve_model

if TYPE_CHECKING:
    from ..modeling_hycir import HyCIRModel
    from ..processing_hycir import HyCIRProcessor


def quiet() -> None:
    """Turn off the progress bars of transformers and datasets: only our own are shown."""
    import datasets
    from transformers.utils import logging

    logging.disable_progress_bar()
    datasets.disable_progress_bars()


def default_device() -> str:
    """Return a GPU if there is one (under `accelerate launch` this process's own), or else the CPU."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def load_model(name: str, device: str | None, takes_encoder: bool = False) -> "tuple[HyCIRModel, HyCIRProcessor]":
    """Load a HyCIR model, in eval mode on its device, and its processor.

    Args:
        name (`str`): Folder or Hub id.
        device (`str`, *optional*): By default `default_device()`.
        takes_encoder (`bool`): Whether a plain encoder will do; it gets a fresh mapper, which features do not use.

    Raises:
        ValueError: If the name is no folder with a saved model and no Hub id.
    """
    from transformers import AutoConfig

    resolve_model(name, "model or encoder" if takes_encoder else "HyCIR model")
    quiet()
    with naming_model(name):
        encoder_class = hycir_hf.retriever.encoder_class(name)
        if encoder_class is hycir_hf.retriever.OnnxEncoder:
            exported = encoder_class.from_pretrained(name, device)
            return exported.model, exported.processor
        is_encoder = takes_encoder and AutoConfig.from_pretrained(name).model_type != "hycir"
        way = "from_encoder" if is_encoder else "from_pretrained"
        model, processor = (getattr(one, way)(name) for one in (hycir_hf.HyCIRModel, hycir_hf.HyCIRProcessor))
    return model.eval().to(device or default_device()), processor
