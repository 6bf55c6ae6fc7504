"""Query features from image and text features: the mapper, and the ways that need no training (paper: Experiments).

A *combiner* is any callable from the unit features of references and texts, `(Q, D)` each, to query features `(Q, D)`.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..metrics.intervals import MAPPER
from ..modeling_hycir import HyCIRModel
from ..processing_hycir import HyCIRProcessor

TEXT_BATCH = 256
SLERP_WEIGHT = 0.6  # of the text: of .2, .3 ... .7 the best R@10 on the emoji benchmark's val, training vendor
IMAGE_ONLY, TEXT_ONLY = "image only", "text only"

Combiner = Callable[[Tensor, Tensor], Tensor]


def slerp(images: Tensor, texts: Tensor, weight: float = SLERP_WEIGHT) -> Tensor:
    """Interpolate between unit vectors on the sphere; `weight` 0 is the image, 1 the text (Jang et al., 2024)."""
    angle = torch.acos((images * texts).sum(-1, keepdim=True).clamp(-1 + 1e-6, 1 - 1e-6))
    return (torch.sin((1 - weight) * angle) * images + torch.sin(weight * angle) * texts) / torch.sin(angle)


TRAINING_FREE: Mapping[str, Combiner] = {
    IMAGE_ONLY: lambda images, texts: images,
    TEXT_ONLY: lambda images, texts: texts,
    "image + text": lambda images, texts: F.normalize(images + texts, dim=-1),
    "slerp": slerp,
}
"""The combiners that need no training."""


@torch.inference_mode()
def encode_texts(model: HyCIRModel, processor: HyCIRProcessor, texts: Sequence[str], normalize: bool = True) -> Tensor:
    """Encode plain texts: `(Q, D)`, unit norm unless `normalize=False`."""
    batches = [list(texts[start : start + TEXT_BATCH]) for start in range(0, len(texts), TEXT_BATCH)]
    inputs = [processor(text=batch, compose=False).to(model.device) for batch in batches]
    return torch.cat([model.get_text_features(**one, normalize=normalize) for one in inputs])  # (Q, D)


@torch.inference_mode()
def compose(
    model: HyCIRModel, processor: HyCIRProcessor, references: Tensor, texts: Sequence[str], prompt: str | None = None
) -> Tensor:
    """Compose references with query texts by the mapper.

    Args:
        model (`HyCIRModel`): With its mapper.
        processor (`HyCIRProcessor`): The model's.
        references (`torch.Tensor` of shape `(Q, D)` or `(Q, R, D)`): Features, not normalised, of one or R reference
            images a query; R images' pseudo tokens stand one after the other in one prompt.
        texts (`Sequence[str]` of length Q): The query texts.
        prompt (`str`, *optional*): Template with {image} and {text}; by default the processor's.

    Returns:
        `torch.Tensor` of shape `(Q, D)`: Unit L2 norm.
    """
    several = references if references.ndim == 3 else references[:, None]  # (Q, R, D)
    composed = []
    for start in range(0, len(texts), TEXT_BATCH):
        block = several[start : start + TEXT_BATCH]  # (B, R, D)
        batch = list(texts[start : start + TEXT_BATCH])
        inputs = processor(text=batch, num_images=block.shape[1], prompt=prompt).to(model.device)
        composed.append(model.get_composed_features(**inputs, image_features=block.flatten(0, 1)))  # (B, D)
    return torch.cat(composed)  # (Q, D)


@torch.inference_mode()
def query_features(
    model: HyCIRModel,
    processor: HyCIRProcessor,
    references: Tensor,
    texts: Sequence[str],
    combiners: Mapping[str, Combiner] = TRAINING_FREE,
    text_prompt: str = "{text}",
    prompt: str | None = None,
) -> dict[str, Tensor]:
    """Compose queries by every combiner and by the mapper.

    Args:
        model (`HyCIRModel`): Mapper and encoder.
        processor (`HyCIRProcessor`): The model's.
        references (`torch.Tensor` of shape `(Q, D)` or `(Q, R, D)`): Features, not normalised; combiners get the
            mean direction of a query's R references.
        texts (`Sequence[str]` of length Q): The query texts.
        combiners (`Mapping[str, Combiner]`): Name -> combiner.
        text_prompt (`str`): Template with {text} of the texts that the combiners get.
        prompt (`str`, *optional*): Template of the mapper's prompts; by default the processor's.

    Returns:
        `dict[str, torch.Tensor]`: Name -> `(Q, D)`; the mapper's last.
    """
    found: dict[str, Tensor] = {}
    if combiners:
        unit = F.normalize(references, dim=-1)
        if unit.ndim == 3:
            unit = F.normalize(unit.mean(dim=1), dim=-1)  # (Q, D)
        encoded = encode_texts(model, processor, [text_prompt.format(text=text) for text in texts])  # (Q, D)
        found = {name: combine(unit, encoded) for name, combine in combiners.items()}
    return found | {MAPPER: compose(model, processor, references, texts, prompt)}
