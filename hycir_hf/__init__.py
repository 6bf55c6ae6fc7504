"""Composed image retrieval in the Hugging Face world (HyCIR: synthetic triplets and hybrid training).

Public names are imported on first use, so that `import hycir_hf` and `hycir --help` do not load torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .auto_classes import register

__version__ = "0.1.0"

_MODULE_OF_NAME = {
    "HyCIRConfig": "configuration_hycir",
    "HyCIRModel": "modeling_hycir",
    "HyCIROutput": "outputs_hycir",
    "PseudoTokenMapper": "mapper_hycir",
    "HyCIRProcessor": "processing_hycir",
    "Gallery": "retrieval",
    "ImageRetriever": "retriever",
    "RetrievalResults": "retrieval",
}

_SUBPACKAGES = ("app", "evaluation", "hub", "images", "retrieval", "retriever", "serving", "syncir", "training")

__all__ = [
    "Gallery",
    "HyCIRConfig",
    "HyCIRModel",
    "HyCIROutput",
    "HyCIRProcessor",
    "ImageRetriever",
    "PseudoTokenMapper",
    "RetrievalResults",
]

if TYPE_CHECKING:
    from .configuration_hycir import HyCIRConfig
    from .mapper_hycir import PseudoTokenMapper
    from .modeling_hycir import HyCIRModel
    from .outputs_hycir import HyCIROutput
    from .processing_hycir import HyCIRProcessor
    from .retrieval import Gallery, RetrievalResults
    from .retriever import ImageRetriever


def __getattr__(name: str) -> Any:
    """Import a public name's module when the name is first asked for (PEP 562)."""
    if name in _SUBPACKAGES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF_NAME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register()
