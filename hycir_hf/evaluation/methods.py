"""The ways to answer composed queries: the mapper, its training-free rivals, trained combiners, captions.

A *combiner* is any callable from the unit features of references and texts, `(Q, D)` each, to query features `(Q, D)`.
A *method* is any callable from a part and its references' features by id, not normalised, to query features `(Q, D)`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ..images_hycir import load_image
from ..retrieval.gallery import prepare_image
from .benchmarks import BenchmarkPart, reference_ids_of
from .pictures import open_picture

IMAGE_BATCH, TEXT_BATCH, CAPTION_BATCH = 128, 256, 64
SLERP_WEIGHT = 0.6  # of the text: of .2, .3 ... .7 the best R@10 on the emoji benchmark's val, training vendor
MAPPER = "mapper"

Combiner = Callable[[Tensor, Tensor], Tensor]
Method = Callable[[BenchmarkPart, Mapping[str, Tensor]], Tensor]
TextsOf = Callable[[Sequence[str]], Sequence[str]]

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
            prepared = [prepare_image(processor, open_picture(one), start + row) for row, one in enumerate(batch)]
            inputs = {name: torch.cat([one[name] for one in prepared]).to(model.device) for name in prepared[0]}
            features.append(model.get_image_features(**inputs, normalize=False))  # (B, D)
            bar.update(len(batch))
    return torch.cat(features)  # (N, D)


@torch.inference_mode()
def encode_texts(model: Any, processor: Any, texts: Sequence[str], normalize: bool = True) -> Tensor:
    """Encode plain texts: `(Q, D)`, unit norm unless `normalize=False`."""
    batches = [list(texts[start : start + TEXT_BATCH]) for start in range(0, len(texts), TEXT_BATCH)]
    inputs = [processor(text=batch, compose=False).to(model.device) for batch in batches]
    return torch.cat([model.get_text_features(**one, normalize=normalize) for one in inputs])  # (Q, D)


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
    text_prompt: str = "{text}",
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

    Returns:
        `dict[str, torch.Tensor]`: Name -> `(Q, D)`; the mapper's last.
    """
    found = {}
    if combiners:
        unit = F.normalize(references, dim=-1)
        if unit.ndim == 3:
            unit = F.normalize(unit.mean(dim=1), dim=-1)  # (Q, D)
        encoded = encode_texts(model, processor, [text_prompt.format(text=text) for text in texts])  # (Q, D)
        found = {name: combine(unit, encoded) for name, combine in combiners.items()}
    return found | {MAPPER: compose(model, processor, references, texts)}


def part_features(
    model: Any,
    processor: Any,
    part: BenchmarkPart,
    feature_of: Mapping[str, Tensor],
    combiners: Mapping[str, Combiner] = TRAINING_FREE,
    text_prompt: str = "{text}",
) -> dict[str, Tensor]:
    """Compose a part's queries by every combiner and by the mapper; several texts' features are averaged.

    Args:
        model (`HyCIRModel`): Mapper and encoder.
        processor (`HyCIRProcessor`): The model's.
        part (`BenchmarkPart`): All its queries have the same number of references, and of texts.
        feature_of (`Mapping[str, torch.Tensor]`): Image id -> feature `(D,)`, not normalised, of the references.
        combiners (`Mapping[str, Combiner]`): Name -> combiner.
        text_prompt (`str`): Template with {text} of the texts that the combiners get.

    Returns:
        `dict[str, torch.Tensor]`: Method -> `(Q, D)`, unit L2 norm.
    """
    references = reference_features(part, feature_of)  # (Q, D) or (Q, R, D)
    variants = [
        query_features(model, processor, references, texts, combiners, text_prompt) for texts in text_variants(part)
    ]
    return {name: average_features([one[name] for one in variants]) for name in variants[0]}


def reference_features(part: BenchmarkPart, feature_of: Mapping[str, Tensor]) -> Tensor:
    """Stack the features of each query's references: `(Q, D)`, or `(Q, R, D)` where it has R of them."""
    rows = [torch.stack([feature_of[id_] for id_ in reference_ids_of(query)]) for query in part.queries]
    return torch.stack(rows).squeeze(1)


def text_variants(part: BenchmarkPart) -> list[list[str]]:
    """Each query's first text, each query's second text ...: most benchmarks have one a query."""
    texts = [[query["query_text"], *query.get("other_texts", ())] for query in part.queries]
    return [list(one) for one in zip(*texts, strict=True)]


def average_features(variants: Sequence[Tensor]) -> Tensor:
    """Average the directions of several texts' features: `(Q, D)`, unit L2 norm; a single one stays as it is."""
    if len(variants) == 1:
        return variants[0]
    return F.normalize(torch.stack([F.normalize(one, dim=-1) for one in variants]).mean(dim=0), dim=-1)


def combiner_method(model: Any, processor: Any, head: Combiner) -> Method:
    """Make a method of a trained head that takes features as the encoder gives them, such as `CombinerHead`.

    Args:
        model (`HyCIRModel`): The encoder that the head was trained on.
        processor (`HyCIRProcessor`): The model's.
        head (`Callable`): (reference features, text features), `(Q, D)` each and not normalised, to query features.
    """

    @torch.inference_mode()
    def answer(part: BenchmarkPart, feature_of: Mapping[str, Tensor]) -> Tensor:
        references = reference_features(part, feature_of)
        images = references if references.ndim == 2 else references.mean(dim=1)  # (Q, D)
        texts = [encode_texts(model, processor, one, normalize=False) for one in text_variants(part)]
        return average_features([F.normalize(head(images, one), dim=-1) for one in texts])

    return answer


def language_method(
    model: Any,
    processor: Any,
    pictures: Mapping[str, Any],
    caption: Callable[[list[Any]], Sequence[str]],
    generate: TextsOf,
    prompt: str = CIREVL_PROMPT,
) -> Method:
    """Make a method that answers by language alone, as CIReVL does; see `caption_features`.

    Args:
        model (`HyCIRModel`): Only its encoder is used.
        processor (`HyCIRProcessor`): The model's.
        pictures (`Mapping[str, Any]`): Image id -> picture, of the references; each is captioned once.
        caption (`Callable`): PIL pictures -> captions.
        generate (`Callable`): Prompts -> a language model's replies.
        prompt (`str`): Template with {caption} and {text}.

    Raises:
        ValueError: If the prompt lacks one of them.
    """
    missing = [name for name in ("{caption}", "{text}") if name not in prompt]
    if missing:
        raise ValueError(f"Expected a prompt with {{caption}} and {{text}}, but {missing} are not in it. Add them.")
    captions: dict[str, str] = {}

    def caption_all(id_rows: Sequence[list[str]]) -> list[str]:
        waiting = [id_ for id_ in dict.fromkeys(id_ for row in id_rows for id_ in row) if id_ not in captions]
        for start in tqdm(range(0, len(waiting), CAPTION_BATCH), desc="Captions", unit=" batches"):
            ids = waiting[start : start + CAPTION_BATCH]
            found = _checked(caption([load_image(open_picture(pictures[id_])) for id_ in ids]), len(ids), "captions")
            captions.update(zip(ids, found, strict=True))
        return [" and ".join(captions[id_] for id_ in row) for row in id_rows]

    def answer(part: BenchmarkPart, feature_of: Mapping[str, Tensor]) -> Tensor:
        ids = [reference_ids_of(query) for query in part.queries]
        encode = lambda texts: encode_texts(model, processor, texts)  # noqa: E731
        variants = [
            caption_features(ids, texts, caption_all, generate, encode, prompt)[0] for texts in text_variants(part)
        ]
        return average_features(variants)

    return answer


def caption_features(
    reference_images: Sequence[Any],
    query_texts: Sequence[str],
    caption: Callable[[Sequence[Any]], Sequence[str]],
    generate: TextsOf,
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
    prompts = [
        prompt.replace("{caption}", one).replace("{text}", text)
        for one, text in zip(captions, query_texts, strict=True)
    ]
    rewritten = [" ".join(reply.split()) for reply in _checked(generate(prompts), len(prompts), "replies")]
    return encode_text(rewritten), rewritten


def _checked(texts: Sequence[str], count: int, what: str) -> list[str]:
    if len(texts) != count:
        raise ValueError(f"Expected {count} {what}, one for each query, but found {len(texts)}. Check the callable.")
    return list(texts)
