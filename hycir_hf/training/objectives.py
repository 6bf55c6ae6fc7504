"""The loss terms of a training (paper: Hybrid training, Eq. 1-3), all on one interface.

A term turns a batch into a `Task`: the inputs of the trained part (mapper or combiner), the prompts that take its
pseudo tokens, and the loss on the prompts' features. The trainer runs the tasks of all terms together.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..losses import phrase_loss, projection_loss, triplet_loss, zero_shot_loss
from ..modeling_hycir import HyCIRModel
from ..processing_hycir import HyCIRProcessor
from .data.batches import CONCEPT, PHRASE, Batch, ImageBatch
from .data.texts import split_at_concept
from .prompts import plain_features


@dataclass
class Task:
    """What one term asks of a step. All rows are this process's.

    Args:
        inputs (`tuple[Tensor, ...]`): Inputs of the trained part, each `(B, D)`.
        prompts (`Mapping`, *optional*): `input_ids` and `attention_mask`, each `(B, L)`, on the CPU. Their placeholders
            become the rows' pseudo tokens. Without prompts, the features are the output of the trained part.
        loss (function): Features `(B, D)` -> this process's loss, `()`. The step's loss is the mean over processes.
        normalize (`bool`): Whether the features are brought to unit norm first.
    """

    inputs: tuple[Tensor, ...]
    prompts: Mapping[str, Tensor] | None
    loss: Callable[[Tensor], Tensor]
    normalize: bool = True


class Term(Protocol):
    """A loss term."""

    stream: str
    """The part of the batch that it reads: "unlabeled", "triplets" or "texts"."""
    hard_negatives: Mapping[str, float]
    """HN-NCE's alpha and beta, for a contrastive loss."""

    def task(self, batch: Batch) -> Task:
        """Return what this term asks of a step."""


class _ModelTerm:
    """A term that uses the frozen encoder and the processor."""

    hard_negatives: Mapping[str, float] = {}

    def __init__(self, model: HyCIRModel, processor: HyCIRProcessor) -> None:
        self.model, self.processor = model, processor

    def _image_features(self, images: ImageBatch) -> Tensor:
        """A batch's image features `(B, D)`, not normalised. They are encoded here unless they were stored.

        Encoded features stay with the batch, for the next term that reads it.
        """
        if images.features is None:
            inputs = {name: value.to(self.model.device) for name, value in (images.inputs or {}).items()}
            with torch.no_grad():
                images.features = self.model.get_image_features(**inputs, normalize=False)
        images.features = images.features.to(self.model.device).float()
        return images.features

    def _against(self, loss: Callable[..., Tensor], target_features: Tensor) -> Callable[[Tensor], Tensor]:
        """A loss against these targets, with negatives from all processes."""
        targets = F.normalize(target_features, dim=-1)
        return lambda features: loss(features, targets, self.model.logit_scale, gather=True, **self.hard_negatives)


class ZeroShotTerm(_ModelTerm):
    """L_ZS (Eq. 2): an image finds its own prompt, "a photo of [$ $ $ $]"."""

    stream = "unlabeled"

    def __init__(self, model: HyCIRModel, processor: HyCIRProcessor) -> None:
        super().__init__(model, processor)
        self.prompt = processor(text=[""], return_tensors="pt")

    def task(self, batch: Batch) -> Task:
        """See `Term.task`."""
        features = self._image_features(_part(batch.unlabeled).images)  # (U, D)
        prompts = {name: value.expand(len(features), -1) for name, value in self.prompt.items()}
        return Task((features,), prompts, self._against(zero_shot_loss, features))


class TripletTerm(_ModelTerm):
    """L_triplet (Eq. 3): reference image and query text find the target image."""

    stream = "triplets"

    def task(self, batch: Batch) -> Task:
        """See `Term.task`."""
        triplets = _part(batch.triplets)
        references = self._image_features(triplets.references)  # (T, D)
        prompts = self.processor(text=triplets.query_texts, return_tensors="pt")
        targets = self._image_features(triplets.targets)
        return Task((references,), prompts, self._against(triplet_loss, targets))


class PhrasesTerm(_ModelTerm):
    """SEARLE's regularisation: in a phrase about the image's concept, its pseudo tokens mean what the word means.

    Source: L_gpt of Baldrati et al., "Zero-Shot Composed Image Retrieval with Textual Inversion", ICCV 2023. An image's
    concept is drawn from the `top_k` whose prompts ("a photo of a dog") are most similar to the image. The phrase is
    drawn from the concept's phrases.

    Args:
        model (`HyCIRModel`): The model.
        processor (`HyCIRProcessor`): Its processor.
        phrases (`dict[str, list[str]]`): Concept -> phrases that use its word, from `read_phrases`.
        top_k (`int`): Number of concepts to draw from (SEARLE: 15).
    """

    stream = "unlabeled"

    def __init__(
        self, model: HyCIRModel, processor: HyCIRProcessor, phrases: dict[str, list[str]], top_k: int = 15
    ) -> None:
        super().__init__(model, processor)
        self.phrases, self.concepts, self.top_k = phrases, list(phrases), min(top_k, len(phrases))
        parts = [self.concepts[start : start + 256] for start in range(0, len(self.concepts), 256)]
        texts = [[f"a photo of a {concept}" for concept in part] for part in parts]
        encoded = [plain_features(model, processor(text=part, compose=False)) for part in texts]
        self.concept_features = torch.cat(encoded)  # (C, D)

    def task(self, batch: Batch) -> Task:
        """See `Term.task`."""
        unlabeled = _part(batch.unlabeled)
        features = self._image_features(unlabeled.images)  # (U, D)
        concepts = self._draw_concepts(features, unlabeled.draws[:, CONCEPT])
        phrases = [
            self.phrases[concept][int(draw * len(self.phrases[concept]))]
            for concept, draw in zip(concepts, unlabeled.draws[:, PHRASE], strict=True)
        ]
        pieces = [split_at_concept(*pair) for pair in zip(phrases, concepts, strict=True)]
        expected = plain_features(self.model, self.processor(text=phrases, compose=False))  # (U, D)
        prompts = self.processor.build_prompts(pieces)
        return Task((features,), prompts, lambda found: phrase_loss(found, expected))

    def _draw_concepts(self, features: Tensor, draws: Any) -> list[str]:
        similarities = F.normalize(features, dim=-1) @ self.concept_features.T  # (U, C)
        nearest = similarities.topk(self.top_k, dim=-1).indices.tolist()  # (U, top_k)
        return [self.concepts[row[int(draw * self.top_k)]] for row, draw in zip(nearest, draws, strict=True)]


class ProjectionTerm(_ModelTerm):
    """LinCIR's self-masking projection: pseudo tokens of a text's own feature replace its keywords. No images.

    Source: Gu et al., "Language-only Efficient Training of Zero-shot Composed Image Retrieval", CVPR 2024. LinCIR finds
    keywords (runs of adjectives and nouns) with a part-of-speech tagger. Here, keywords are runs of words that are not
    function words (`mask_keywords`).
    """

    stream = "texts"

    def task(self, batch: Batch) -> Task:
        """See `Term.task`."""
        texts = _part(batch.texts)
        plain = self.processor(text=texts.texts, compose=False)
        expected = plain_features(self.model, plain, normalize=False)  # (B, D)
        noisy = expected + texts.noise.to(expected.device)
        prompts = self.processor.build_prompts([mask_keywords(text) for text in texts.texts])
        return Task((noisy,), prompts, lambda found: projection_loss(found, expected), normalize=False)


class CombinerTerm(_ModelTerm):
    """CLIP4Cir's contrastive loss: the combiner's feature of reference image and query text finds the target image."""

    stream = "triplets"

    def task(self, batch: Batch) -> Task:
        """See `Term.task`."""
        triplets = _part(batch.triplets)
        references = self._image_features(triplets.references)  # (T, D)
        texts = self.processor(text=triplets.query_texts, compose=False)
        inputs = (references, plain_features(self.model, texts, normalize=False))
        return Task(inputs, None, self._against(triplet_loss, self._image_features(triplets.targets)))


_FUNCTION_WORDS = frozenset(
    """
    a about above across after against all along also am among an and another any are around as at away back be been
    before behind being below beneath beside between beyond both but by can could did do does doing down during each
    either for from front had has have having he her here hers him his how i if in inside into is it its itself just
    like may me might more most much must my near next no nor not of off on one onto or other our out outside over
    own past per photo picture image same shall she should so some such than that the their them themselves then
    there these they this those through to together too toward towards two under until up upon us very was we were
    what when where which while who whose why will with within without would you your
    """.split()
)
"""Words that are never keywords. They take the place of LinCIR's tagger."""


def mask_keywords(text: str) -> list[str]:
    """Split a text at its runs of keywords. There is one piece more than there are runs.

    A text without keywords gets its pseudo tokens at its end.

    Args:
        text (`str`): For example "a cat sits on the mat".

    Returns:
        `list[str]`: `["a", "on the", ""]`. Pseudo tokens go between the pieces.
    """
    pieces, is_after_keyword = [""], False
    for word in re.findall(r"[\w'’-]+|[^\w\s]", text):
        if not word[0].isalnum() or word.lower() in _FUNCTION_WORDS:
            pieces[-1] = f"{pieces[-1]} {word}".strip()
            is_after_keyword = False
        elif not is_after_keyword:
            pieces.append("")
            is_after_keyword = True
    return pieces if len(pieces) > 1 else [*pieces, ""]


def _part(part: Any) -> Any:
    if part is None:
        raise ValueError("The batch does not have the part that the objective's term reads. Open its stream.")
    return part
