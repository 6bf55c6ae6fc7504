"""SynCir's models by name, as the plain callables that the pipeline takes.

embed images     any vision model of `transformers` (paper: ResNet-152)
caption          any image-to-text model of `transformers` (paper: BLIP)
embed sentences  any model of sentence-transformers (paper: BERT, mean pooling)
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from .checks import Check, ComposedCheck, PictureCheck
from .config import SynCirConfig


def load_image_embedder(path: str, device: str = "cpu") -> Callable[[list[Any]], np.ndarray]:
    """Load a vision model: PIL pictures -> `(B, D)`, its pooled features (a dual encoder's projected ones).

    Args:
        path (`str`): Folder or Hub id, for example "microsoft/resnet-152".
        device (`str`): "cpu", "cuda" ...
    """
    import torch
    from transformers import AutoImageProcessor, AutoModel

    model = AutoModel.from_pretrained(path, dtype=torch.float32).eval().to(device)
    processor = AutoImageProcessor.from_pretrained(path, backend="pil")

    @torch.inference_mode()
    def embed_images(images: list[Any]) -> np.ndarray:
        inputs = processor(images=images, return_tensors="pt").to(device)
        has_joint_space = hasattr(model, "get_image_features")
        output = model.get_image_features(**inputs) if has_joint_space else model(**inputs)
        features = output if isinstance(output, torch.Tensor) else output.pooler_output
        if features is None:
            raise ValueError(f"Expected a vision model with pooled features, but {path} has none. Take another.")
        return features.flatten(1).cpu().numpy()  # (B, D)

    return embed_images


def load_captioner(path: str, device: str = "cpu", max_new_tokens: int = 30) -> Callable[[list[Any]], list[str]]:
    """Load a captioning model: PIL pictures -> one caption each, greedily.

    Args:
        path (`str`): Folder or Hub id, for example "Salesforce/blip-image-captioning-base".
        device (`str`): "cpu", "cuda" ...
        max_new_tokens (`int`): Longest caption.
    """
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

    dtype = torch.float32 if device == "cpu" else "auto"
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype).eval().to(device)
    processor = AutoImageProcessor.from_pretrained(path, backend="pil")
    tokenizer = AutoTokenizer.from_pretrained(path)

    @torch.inference_mode()
    def caption(images: list[Any]) -> list[str]:
        inputs = processor(images=images, return_tensors="pt").to(device, model.dtype)
        generated = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)  # (B, L)
        return [text.strip() for text in tokenizer.batch_decode(generated, skip_special_tokens=True)]

    return caption


def load_sentence_embedder(path: str, device: str = "cpu", batch_size: int = 64) -> Callable[[list[str]], np.ndarray]:
    """Load a sentence embedding model: texts -> `(T, D)`; a plain BERT gets mean pooling.

    Args:
        path (`str`): Folder or Hub id, for example "google-bert/bert-base-uncased".
        device (`str`): "cpu", "cuda" ...
        batch_size (`int`): Texts at once, sorted by length.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(
            "Sentence embeddings need the package sentence-transformers. Install it with pip install "
            "'hycir_hf[syncir]'."
        ) from error
    model = SentenceTransformer(path, device=device)

    def embed_sentences(texts: list[str]) -> np.ndarray:
        return np.asarray(model.encode(texts, batch_size=batch_size, show_progress_bar=False), dtype=np.float32)

    return embed_sentences


def load_checks(config: SynCirConfig, device: str = "cpu") -> list[Check]:
    """Load the checks that the settings name: none, one or two."""
    from ..modeling_hycir import HyCIRModel
    from ..processing_hycir import HyCIRProcessor

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
