"""HyCIR's losses, on features alone. The paper's equations (Hybrid training) are functions, and training calls them.

This file travels with the model files as remote code, so it imports nothing of the package.

Shapes: B rows, D joint width, W processes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


def hybrid_loss(losses: Mapping[str, Tensor], weights: Mapping[str, float] | None = None) -> Tensor:
    """L = L_ZS + L_triplet (Eq. 1), or the weighted sum of any other loss terms.

    Args:
        losses (`Mapping[str, Tensor]`): Each term's name -> its value, `()`.
        weights (`Mapping[str, float]`, *optional*): Each term's name -> its factor (paper: 1 for both).

    Returns:
        `torch.FloatTensor` of shape `()`.
    """
    return torch.stack([(weights or {}).get(name, 1.0) * loss for name, loss in losses.items()]).sum()


def zero_shot_loss(
    prompt_features: Tensor,
    image_features: Tensor,
    logit_scale: Tensor | float,
    gather: bool = False,
    **hard_negatives: float,
) -> Tensor:
    """L_ZS (Eq. 2): each unlabeled image finds its own prompt, "a photo of [$ $ $ $]", and the prompt its image.

    Args are as in `contrastive_loss`: the prompts' features (f_ref_txt) and the same images' features (f_ref_img).
    """
    return contrastive_loss(prompt_features, image_features, logit_scale, gather, **hard_negatives)


def triplet_loss(
    composed_features: Tensor,
    target_features: Tensor,
    logit_scale: Tensor | float,
    gather: bool = False,
    **hard_negatives: float,
) -> Tensor:
    """L_triplet (Eq. 3): each composed query finds its target image, and the target image its query.

    Args are as in `contrastive_loss`: the queries' features (f_composed) and their target images' (f_target_img).
    """
    return contrastive_loss(composed_features, target_features, logit_scale, gather, **hard_negatives)


def contrastive_loss(
    query_features: Tensor,
    target_features: Tensor,
    logit_scale: Tensor | float,
    gather: bool = False,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Tensor:
    """L_contrastive: symmetric InfoNCE, the mean of the losses query -> target and target -> query.

    With another alpha or beta it is HN-NCE (Radenovic et al., "Filtering, Distillation, and Hard Negatives for
    Vision-Language Pre-Training", CVPR 2023): the more similar a negative, the more it counts.

    Args:
        query_features (`torch.FloatTensor` of shape `(B, D)`): Unit L2 norm.
        target_features (`torch.FloatTensor` of shape `(B, D)`): Row i is the target of query i. Unit L2 norm.
        logit_scale (`torch.FloatTensor` or `float`): 1 / temperature.
        gather (`bool`): Whether to take negatives from all processes. All must then have the same B.
        alpha (`float`): HN-NCE's weight of the positive pair in the denominator, in [0, 1].
        beta (`float`): HN-NCE's hardness, at least 0. At 0 all negatives count the same.

    Returns:
        `torch.FloatTensor` of shape `()`. It is log(alpha + B - 1) if all rows are the same.

    Raises:
        ValueError: If the shapes differ.
    """
    if query_features.shape != target_features.shape:
        raise ValueError(
            "The contrastive loss needs one target for each query, but query_features and target_features have the "
            f"shapes {tuple(query_features.shape)} and {tuple(target_features.shape)}. Give one target for each prompt "
            "as target_pixel_values or target_features: a prompt with several reference images has no default target."
        )
    if gather:
        query_features, target_features = gather_features(query_features), gather_features(target_features)
    # In float32 also under autocast: in half precision, close similarities times 100 would become equal.
    with torch.autocast(query_features.device.type, enabled=False):
        logits = logit_scale * query_features.float() @ target_features.float().T  # (B, B)
        return (_nce(logits, alpha, beta) + _nce(logits.T, alpha, beta)) / 2


def _nce(logits: Tensor, alpha: float, beta: float) -> Tensor:
    """One direction: the mean over rows i of -log(e^s_ii / (alpha e^s_ii + sum over j of w_ij e^s_ij)), w: HN-NCE's."""
    if (alpha, beta) == (1, 0):
        return F.cross_entropy(logits, torch.arange(logits.shape[0], device=logits.device))
    is_positive = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    hardness = beta * logits  # (B, B)
    total = hardness.masked_fill(is_positive, torch.finfo(logits.dtype).min).logsumexp(dim=1, keepdim=True)
    log_weights = hardness - total + math.log(max(len(logits) - 1, 1))  # the mean weight of a row's negatives is 1
    log_weights = log_weights.masked_fill(is_positive, math.log(alpha) if alpha else -math.inf)
    return ((logits + log_weights).logsumexp(dim=1) - logits.diagonal()).mean()


class _GatherWithGradient(torch.autograd.Function):
    """Concatenate the rows of all processes. Each process gets back the sum of all gradients on its own rows."""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        parts = [torch.empty_like(features) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, features.contiguous())
        return torch.cat(parts)  # (W * B, D)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad.chunk(dist.get_world_size())[dist.get_rank()]  # (B, D)


def gather_features(features: Tensor) -> Tensor:
    """Gather features `(B, D)` of all processes into `(W * B, D)`, with gradient. One process gets its own back."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return features
    return _GatherWithGradient.apply(features)


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
    """Back-propagate the loss of all rows, but hold the activations of one chunk at a time. The gradients are the same.

    Each chunk runs twice: first without gradient, for its features; then, when the loss's gradient on these is known,
    with gradient. Memory grows with the largest chunk instead of the batch, at the cost of one more forward pass.
    Source: GradCache (Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021).

    Args:
        chunks (`Sequence` of functions): Each gives the features `(B_i, D)` of its rows, and the same when called again
            (dropout belongs before the chunks).
        loss_function (function): The features of all rows, `(B, D)` in the order of the chunks, to the loss, `()`.
        backward (function): Back-propagates a loss. `accelerator.backward` also scales it for fp16.

    Returns:
        `torch.FloatTensor` of shape `()`: The loss, detached.

    Raises:
        ValueError: If the loss does not depend on the features.
    """
    with torch.no_grad():
        parts = [chunk() for chunk in chunks]
    features = torch.cat(parts).requires_grad_()  # (B, D)
    loss = loss_function(features)
    backward(loss)
    if features.grad is None:
        raise ValueError("The loss does not depend on the features. Use them in loss_function.")
    for chunk, gradient in zip(chunks, features.grad.split([len(part) for part in parts]), strict=True):
        chunk().backward(gradient)
    return loss.detach()
