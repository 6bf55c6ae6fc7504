"""The ways to answer composed queries: the mapper, its training-free rivals, trained combiners, captions.

A *combiner* is any callable from the unit features of references and texts, `(Q, D)` each, to query features `(Q, D)`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ..retrieval.gallery import prepare_image
from .benchmarks import BenchmarkPart, reference_ids_of

IMAGE_BATCH, TEXT_BATCH = 128, 256
SLERP_WEIGHT = 0.6  # of the text: of .2, .3 ... .7 the best R@10 on the emoji benchmark's val, training vendor
MAPPER = "mapper"

Combiner = Callable[[Tensor, Tensor], Tensor]

CIREVL_PROMPT = """\
A picture is described as: "{caption}"
It is changed as follows: "{text}"
Describe the changed picture in one short sentence. Write nothing else."""
"""A prompt in the manner of CIReVL (Karthik et al., 2024)."""


def slerp(images: Tensor, texts: Tensor, weight: float = SLERP_WEIGHT) -> Tensor:
    """Interpolate between unit vectors on the sphere; `weight` 0 is the image, 1 the text (Jang et al., 2024)."""
    angle = torch.acos((images * texts).sum(-1, keepdim=True).clamp(-1 + 1e-6, 1 - 1e-6))
    return (torch.sin((1 - weight) * angle) * images + torch.sin(weight * angle) * texts) / torch.sin(angle)


TRAINING_FREE: Mapping[str, Combiner] = {
    "image only": lambda images, texts: images,
    "text only": lambda images, texts: texts,
    "image + text": lambda images, texts: F.normalize(images + texts, dim=-1),
    "slerp": slerp,
}
"""The combiners that need no training."""


@torch.inference_mode()
def encode_images(model: Any, processor: Any, images: Sequence[Any], label: str = "pictures") -> Tensor:
    """Encode images of any kind: `(N, D)`, not normalised, as the mapper takes them."""
    features = []
    with tqdm(total=len(images), desc=label, unit=" images") as bar:
        for start in range(0, len(images), IMAGE_BATCH):
            batch = images[start : start + IMAGE_BATCH]
            prepared = [prepare_image(processor, image, start + number) for number, image in enumerate(batch)]
            inputs = {name: torch.cat([one[name] for one in prepared]).to(model.device) for name in prepared[0]}
            features.append(model.get_image_features(**inputs, normalize=False))  # (B, D)
            bar.update(len(batch))
    return torch.cat(features)  # (N, D)


@torch.inference_mode()
def encode_texts(model: Any, processor: Any, texts: Sequence[str]) -> Tensor:
    """Encode plain texts: `(Q, D)`, unit norm."""
    batches = [list(texts[start : start + TEXT_BATCH]) for start in range(0, len(texts), TEXT_BATCH)]
    inputs = [processor(text=batch, compose=False).to(model.device) for batch in batches]
    return torch.cat([model.get_text_features(**one) for one in inputs])  # (Q, D)


@torch.inference_mode()
def compose(model: Any, processor: Any, references: Tensor, texts: Sequence[str]) -> Tensor:
    """Compose references with query texts by the mapper.

    Args:
        model (`HyCIRModel`): With its mapper.
        processor (`HyCIRProcessor`): The model's.
        references (`torch.Tensor` of shape `(Q, D)` or `(Q, R, D)`): Features, not normalised, of one or R reference
            images a query; R images' pseudo tokens stand one after the other in one prompt.
        texts (`Sequence[str]` of length Q): The query texts.

    Returns:
        `torch.Tensor` of shape `(Q, D)`: Unit L2 norm.
    """
    several = references if references.ndim == 3 else references[:, None]  # (Q, R, D)
    composed = []
    for start in range(0, len(texts), TEXT_BATCH):
        block = several[start : start + TEXT_BATCH]  # (B, R, D)
        inputs = processor(text=list(texts[start : start + TEXT_BATCH]), num_images=block.shape[1]).to(model.device)
        composed.append(model.get_composed_features(**inputs, image_features=block.flatten(0, 1)))  # (B, D)
    return torch.cat(composed)  # (Q, D)


@torch.inference_mode()
def query_features(
    model: Any,
    processor: Any,
    references: Tensor,
    texts: Sequence[str],
    combiners: Mapping[str, Combiner] = TRAINING_FREE,
) -> dict[str, Tensor]:
    """Compose queries by every combiner and by the mapper.

    Args:
        model (`HyCIRModel`): Mapper and encoder.
        processor (`HyCIRProcessor`): The model's.
        references (`torch.Tensor` of shape `(Q, D)` or `(Q, R, D)`): Features, not normalised; combiners get the
            mean direction of a query's R references.
        texts (`Sequence[str]` of length Q): The query texts.
        combiners (`Mapping[str, Combiner]`): Name -> combiner.

    Returns:
        `dict[str, torch.Tensor]`: Name -> `(Q, D)`; the mapper's last.
    """
    unit = F.normalize(references, dim=-1)
    if unit.ndim == 3:
        unit = F.normalize(unit.mean(dim=1), dim=-1)  # (Q, D)
    encoded = encode_texts(model, processor, texts)  # (Q, D)
    found = {name: combine(unit, encoded) for name, combine in combiners.items()}
    return found | {MAPPER: compose(model, processor, references, texts)}


def part_features(
    model: Any,
    processor: Any,
    part: BenchmarkPart,
    feature_of: Mapping[str, Tensor],
    combiners: Mapping[str, Combiner] = TRAINING_FREE,
) -> dict[str, Tensor]:
    """Compose a part's queries by every method; where a query has several texts, their features are averaged.

    Args:
        model (`HyCIRModel`): Mapper and encoder.
        processor (`HyCIRProcessor`): The model's.
        part (`BenchmarkPart`): All its queries have the same number of references, and of texts.
        feature_of (`Mapping[str, torch.Tensor]`): Image id -> feature `(D,)`, not normalised, of the references.
        combiners (`Mapping[str, Combiner]`): Name -> combiner.

    Returns:
        `dict[str, torch.Tensor]`: Method -> `(Q, D)`, unit L2 norm.
    """
    references = torch.stack(
        [torch.stack([feature_of[id_] for id_ in reference_ids_of(query)]) for query in part.queries]
    ).squeeze(1)  # (Q, D) or (Q, R, D)
    texts = [[query["query_text"], *query.get("other_texts", ())] for query in part.queries]
    variants = [query_features(model, processor, references, list(one), combiners) for one in zip(*texts, strict=True)]
    if len(variants) == 1:
        return variants[0]
    return {
        name: F.normalize(torch.stack([F.normalize(one[name], dim=-1) for one in variants]).mean(dim=0), dim=-1)
        for name in variants[0]
    }


def caption_features(
    reference_images: Sequence[Any],
    query_texts: Sequence[str],
    caption: Callable[[Sequence[Any]], Sequence[str]],
    generate: Callable[[Sequence[str]], Sequence[str]],
    encode_text: Callable[[Sequence[str]], Tensor],
    prompt: str = CIREVL_PROMPT,
) -> tuple[Tensor, list[str]]:
    """Answer composed queries by language alone, as CIReVL does: caption, rewrite, retrieve by the rewritten caption.

    Args:
        reference_images (`Sequence` of length Q): The references.
        query_texts (`Sequence[str]` of length Q): What to change.
        caption (`Callable`): Images -> captions.
        generate (`Callable`): Prompts -> a language model's replies.
        encode_text (`Callable`): Texts -> features `(Q, D)`, unit L2 norm, in the gallery's space.
        prompt (`str`): Template with {caption} and {text}.

    Returns:
        `tuple[torch.Tensor, list[str]]`: Query features `(Q, D)` and the rewritten captions.

    Raises:
        ValueError: If a callable returns another number of texts than it got.
    """
    captions = _checked(caption(reference_images), len(query_texts), "captions")
    prompts = [prompt.format(caption=one, text=text) for one, text in zip(captions, query_texts, strict=True)]
    rewritten = [" ".join(reply.split()) for reply in _checked(generate(prompts), len(prompts), "replies")]
    return encode_text(rewritten), rewritten


def _checked(texts: Sequence[str], count: int, what: str) -> list[str]:
    if len(texts) != count:
        raise ValueError(f"Expected {count} {what}, one for each query, but found {len(texts)}. Check the callable.")
    return list(texts)
