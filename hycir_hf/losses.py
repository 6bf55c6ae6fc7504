"""HyCIR's losses, on embeddings only (paper: Hybrid training, Eq. 1-3), and their gradients in chunks.

The contrastive loss itself and its gathering live in `modeling_hycir`, which travels alone as remote code.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .modeling_hycir import contrastive_loss, gather_features

__all__ = ["backward_in_chunks", "contrastive_loss", "gather_features", "hybrid_loss", "phrase_loss", "projection_loss"]


def hybrid_loss(
    unlabeled_query_features: Tensor,
    unlabeled_target_features: Tensor,
    triplet_query_features: Tensor,
    triplet_target_features: Tensor,
    logit_scale: Tensor | float,
    gather: bool = False,
    zero_shot_weight: float = 1.0,
    triplet_weight: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """L = L_ZS + L_triplet (Eq. 3).

    Args:
        unlabeled_query_features (`torch.FloatTensor` of shape `(U, D)`): f("a photo of [$ $ $ $]"), unit L2 norm.
        unlabeled_target_features (`torch.FloatTensor` of shape `(U, D)`): The same images' features, unit L2 norm.
        triplet_query_features (`torch.FloatTensor` of shape `(T, D)`): f_composed of the triplets, unit L2 norm.
        triplet_target_features (`torch.FloatTensor` of shape `(T, D)`): Their target images' features, unit L2 norm.
        logit_scale (`torch.FloatTensor` or `float`): 1 / temperature.
        gather (`bool`): Whether to take negatives from every process.
        zero_shot_weight (`float`): Factor on L_ZS (paper: 1).
        triplet_weight (`float`): Factor on L_triplet (paper: 1).

    Returns:
        The weighted sum (Eq. 3), L_ZS (Eq. 1) and L_triplet (Eq. 2), each of shape `()`.
    """
    zero_shot = contrastive_loss(unlabeled_query_features, unlabeled_target_features, logit_scale, gather)
    triplet = contrastive_loss(triplet_query_features, triplet_target_features, logit_scale, gather)
    return zero_shot_weight * zero_shot + triplet_weight * triplet, zero_shot, triplet


def phrase_loss(pseudo_phrase_features: Tensor, phrase_features: Tensor) -> Tensor:
    """1 - cosine between phrases with pseudo tokens and the same phrases with the concept's own word.

    Source: L_gpt of SEARLE (Baldrati et al., "Zero-Shot Composed Image Retrieval with Textual Inversion", ICCV 2023).

    Args:
        pseudo_phrase_features (`torch.FloatTensor` of shape `(B, D)`): f("a [$ $ $ $] on a bench").
        phrase_features (`torch.FloatTensor` of shape `(B, D)`): f("a dog on a bench").

    Returns:
        `torch.FloatTensor` of shape `()`: In [0, 2].
    """
    return 1 - F.cosine_similarity(pseudo_phrase_features.float(), phrase_features.float()).mean()


def projection_loss(masked_text_features: Tensor, text_features: Tensor) -> Tensor:
    """Mean squared error between a text's feature and that of the text whose keywords are pseudo tokens.

    Source: the self-masking projection of LinCIR (Gu et al., "Language-only Efficient Training of Zero-shot Composed
    Image Retrieval", CVPR 2024).

    Args:
        masked_text_features (`torch.FloatTensor` of shape `(B, D)`): Not normalised.
        text_features (`torch.FloatTensor` of shape `(B, D)`): Not normalised.

    Returns:
        `torch.FloatTensor` of shape `()`: At least 0.
    """
    return F.mse_loss(masked_text_features.float(), text_features.float())


def backward_in_chunks(
    chunks: Sequence[Callable[[], Tensor]],
    loss_function: Callable[[Tensor], Tensor],
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> Tensor:
    """Back-propagate a loss over all rows while only one chunk's activations are held: the whole batch's gradients.

    Each chunk is run twice: first without gradient, for its features; then, the loss's gradient on them known, with
    gradient. Source: GradCache (Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
    2021). Memory grows with the largest chunk instead of the batch, time by one more forward pass.

    Args:
        chunks (`Sequence` of functions): Each gives the features `(B_i, D)` of its rows; called twice, it must do the
            same both times (dropout belongs before the chunks).
        loss_function (function): All rows' features, `(B, D)` in the order of the chunks, to the loss, `()`.
        backward (function): Takes the loss and back-propagates it: `accelerator.backward` scales it for fp16.

    Returns:
        `torch.FloatTensor` of shape `()`: The loss, detached.
    """
    with torch.no_grad():
        parts = [chunk() for chunk in chunks]
    features = torch.cat(parts).requires_grad_()  # (B, D)
    loss = loss_function(features)
    backward(loss)
    if features.grad is None:
        raise ValueError("Expected a loss that depends on the features, but it does not. Use them in loss_function.")
    for chunk, gradient in zip(chunks, features.grad.split([len(part) for part in parts]), strict=True):
        chunk().backward(gradient)
    return loss.detach()
