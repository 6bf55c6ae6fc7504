"""Models for the commands: a name is checked, the model is loaded and moved to its device."""

import os
from typing import TYPE_CHECKING

import hycir_hf

from ..names import resolve_model
from ..settings import ParameterError

if TYPE_CHECKING:
    from ..modeling_hycir import HyCIRModel
    from ..processing_hycir import HyCIRProcessor
    from ..retrieval import Gallery


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


def load_model(name: str, device: str | None) -> "tuple[HyCIRModel, HyCIRProcessor]":
    """Load a HyCIR model, in eval mode on its device, and its processor.

    Args:
        name (`str`): Folder or Hub id.
        device (`str`, *optional*): By default a GPU if there is one.

    Raises:
        ValueError: If the name is no folder with a saved model and no Hub id.
    """
    resolve_model(name, "HyCIR model")
    quiet()
    model = hycir_hf.HyCIRModel.from_pretrained(name).eval()
    return model.to(device or default_device()), hycir_hf.HyCIRProcessor.from_pretrained(name)


def model_of(gallery: "Gallery", place: str, name: str | None) -> str:
    """Return the name of a gallery's model: the one that was given, or the one that the gallery names."""
    found = name or gallery.model_path
    if found is None:
        raise ParameterError(f"The gallery {place} names no model. Give the one that made it.", "model")
    return found
