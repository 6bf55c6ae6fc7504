"""The methods that answer a benchmark part: the mapper and the training-free ones, trained combiners, captions.

A *combiner* is any callable from the unit features of references and texts, `(Q, D)` each, to query features `(Q, D)`.
A *method* is any callable from a part and its references' features by id, not normalised, to query features `(Q, D)`.
"""

import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ..images import FeatureEncoder, ListSource
from ..images import encoding as stored_images
from ..images.store import BLOCKS, holds_settings, key_of
from ..images_hycir import load_image
from ..modeling_hycir import HyCIRModel
from ..processing_hycir import HyCIRProcessor
from ..retrieval.queries import (
    TRAINING_FREE,
    Combiner,
    encode_texts,
    query_features,
)
from .benchmarks import BenchmarkPart, SourceImage, open_image, reference_ids_of

IMAGE_BATCH, CAPTION_BATCH = 128, 64

Method = Callable[[BenchmarkPart, Mapping[str, Tensor]], Tensor]
TextsOf = Callable[[Sequence[str]], Sequence[str]]

CIREVL_PROMPT = """\
A picture is described as: "{caption}"
It is changed as follows: "{text}"
Describe the changed picture in one short sentence. Write nothing else."""
"""A prompt in the manner of CIReVL (Karthik et al., 2024)."""


def encode_images(
    model: HyCIRModel,
    processor: HyCIRProcessor,
    images: Mapping[str, Any],
    directory: str | os.PathLike | None = None,
    label: str = "images",
) -> Tensor:
    """Encode images as the mapper takes them.

    Args:
        model (`HyCIRModel`): Its image encoder makes the features.
        processor (`HyCIRProcessor`): The model's.
        images (`Mapping[str, Any]`): Image id -> path, bytes, PIL image, record or region: N of them.
        directory (`str` or `Path`, *optional*): Where the features are stored, so that they are made only once.
        label (`str`): Label of the progress bar.

    Returns:
        `torch.FloatTensor` of shape `(N, D)`: Not normalised, on the model's device.

    Raises:
        ValueError: If an image is broken. The message names it.
    """
    features, reasons = encode_readable(model, processor, images, directory, label)
    for id_, reason in reasons.items():
        raise ValueError(f"The image {id_} cannot be read: {reason}")
    return features


def encode_readable(
    model: HyCIRModel,
    processor: HyCIRProcessor,
    images: Mapping[str, Any],
    directory: str | os.PathLike | None = None,
    label: str = "images",
    stored: Path | None = None,
) -> tuple[Tensor, dict[str, str]]:
    """Encode those images that can be read; arguments as in `encode_images`.

    What the image store in the folder `stored` holds of the same encoder is not encoded again.

    Returns:
        `tuple[torch.Tensor, dict[str, str]]`: Their features, in order, and why each other image cannot be read.
    """
    encoder, source = FeatureEncoder(model, processor), _ImageSource(list(images.values()), list(images))
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(directory or scratch) / key_of(encoder.settings)
        if stored is not None and holds_settings(stored, encoder.settings):
            _copy_blocks(stored / BLOCKS, place / BLOCKS)
        store, _ = stored_images.encode_images(
            source,
            encoder,
            place,
            batch_size=IMAGE_BATCH,
            label=label,
            on_skip=lambda id_, reason: None,
            prune=False,  # other splits share the folder
        )
        features = store.read(range(len(store.ids))) if store.ids else np.zeros((0, 0), np.float32)  # (N, D)
    return torch.from_numpy(features).to(model.device), dict(store.skipped)


def _copy_blocks(stored: Path, place: Path) -> None:
    """Copy a store's blocks. A block that a kill cuts off is not used: its name is its checksum."""
    place.mkdir(parents=True, exist_ok=True)
    for path in stored.glob("*.arrow"):
        if not (place / path.name).exists():
            shutil.copyfile(path, place / path.name)


class _ImageSource(ListSource):
    """A benchmark's images: also those of a dataset, which it stamps and reads itself."""

    def stamp(self, row: int) -> str:
        image = self.images[row]
        return image.source.stamp(image.row) if isinstance(image, SourceImage) else super().stamp(row)

    def load(self, row: int) -> Any:
        image = self.images[row]
        return image.load() if isinstance(image, SourceImage) else super().load(row)


def part_features(
    model: HyCIRModel,
    processor: HyCIRProcessor,
    part: BenchmarkPart,
    feature_of: Mapping[str, Tensor],
    combiners: Mapping[str, Combiner] = TRAINING_FREE,
    text_prompt: str = "{text}",
    prompt: str | None = None,
) -> dict[str, Tensor]:
    """Compose a part's queries by every combiner and by the mapper; several texts' features are averaged.

    Args:
        model (`HyCIRModel`): Mapper and encoder.
        processor (`HyCIRProcessor`): The model's.
        part (`BenchmarkPart`): All its queries have the same number of references, and of texts (see `by_shape`).
        feature_of (`Mapping[str, torch.Tensor]`): Image id -> feature `(D,)`, not normalised, of the references.
        combiners (`Mapping[str, Combiner]`): Name -> combiner.
        text_prompt (`str`): Template with {text} of the texts that the combiners get.
        prompt (`str`, *optional*): Template of the mapper's prompts; by default the processor's.

    Returns:
        `dict[str, torch.Tensor]`: Method -> `(Q, D)`, unit L2 norm.
    """
    references = reference_features(part, feature_of)  # (Q, D) or (Q, R, D)
    variants = [
        query_features(model, processor, references, texts, combiners, text_prompt, prompt)
        for texts in text_variants(part)
    ]
    return {name: average_features([one[name] for one in variants]) for name in variants[0]}


def by_shape(part: BenchmarkPart, answer: Callable[[BenchmarkPart], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Answer queries with the same number of references, and of texts, together; results in the part's order."""
    rows_of = defaultdict(list)
    for row, query in enumerate(part.queries):
        rows_of[len(reference_ids_of(query)), len(query.get("other_texts", ()))].append(row)
    found = [answer(replace(part, queries=[part.queries[row] for row in rows])) for rows in rows_of.values()]
    order = np.argsort([row for rows in rows_of.values() for row in rows])
    return {name: torch.cat([one[name] for one in found])[order] for name in found[0]}


def reference_features(part: BenchmarkPart, feature_of: Mapping[str, Tensor]) -> Tensor:
    """Stack the features of each query's references: `(Q, D)`, or `(Q, R, D)` where it has R of them."""
    rows = [torch.stack([feature_of[id_] for id_ in reference_ids_of(query)]) for query in part.queries]
    return torch.stack(rows).squeeze(1)


def text_variants(part: BenchmarkPart) -> list[list[str]]:
    """Give each query's first text, then each query's second text, and so on; most benchmarks have one per query."""
    texts = [[query["query_text"], *query.get("other_texts", ())] for query in part.queries]
    return [list(one) for one in zip(*texts, strict=True)]


def average_features(variants: Sequence[Tensor]) -> Tensor:
    """Average the directions of several texts' features: `(Q, D)`, unit L2 norm; a single one stays as it is."""
    if len(variants) == 1:
        return variants[0]
    return F.normalize(torch.stack([F.normalize(one, dim=-1) for one in variants]).mean(dim=0), dim=-1)


def combiner_method(model: HyCIRModel, processor: HyCIRProcessor, head: Combiner) -> Method:
    """Make a method from a trained head, such as `CombinerHead`, that takes features as the encoder gives them.

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
    model: HyCIRModel,
    processor: HyCIRProcessor,
    images: Mapping[str, Any],
    caption: Callable[[list[Any]], Sequence[str]],
    generate: TextsOf,
    prompt: str = CIREVL_PROMPT,
) -> Method:
    """Make a method that answers by language alone, as CIReVL does; see `caption_features`.

    Args:
        model (`HyCIRModel`): Only its encoder is used.
        processor (`HyCIRProcessor`): The model's.
        images (`Mapping[str, Any]`): Image id -> image, of the references; each is captioned once.
        caption (`Callable`): PIL images -> captions.
        generate (`Callable`): Prompts -> a language model's replies.
        prompt (`str`): Template with {caption} and {text}.

    Raises:
        ValueError: If the prompt lacks one of them.
    """
    missing = [name for name in ("{caption}", "{text}") if name not in prompt]
    if missing:
        raise ValueError(f"The prompt lacks {' and '.join(missing)}. It needs {{caption}} and {{text}}.")
    captions: dict[str, str] = {}

    def caption_all(id_rows: Sequence[list[str]]) -> list[str]:
        waiting = [id_ for id_ in dict.fromkeys(id_ for row in id_rows for id_ in row) if id_ not in captions]
        for start in tqdm(range(0, len(waiting), CAPTION_BATCH), desc="Captions", unit=" batches"):
            ids = waiting[start : start + CAPTION_BATCH]
            found = _checked(caption([load_image(open_image(images[id_])) for id_ in ids]), len(ids), "captions")
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
