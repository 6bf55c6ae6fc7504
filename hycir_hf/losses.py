"""HyCIR's losses, on embeddings only (paper: Hybrid training, Eq. 1-3).

The contrastive loss itself lives in `modeling_hycir`, which travels alone as remote code.
"""

from torch import Tensor

from .modeling_hycir import contrastive_loss, gather_features

__all__ = ["contrastive_loss", "gather_features", "hybrid_loss"]


def hybrid_loss(
    unlabeled_query_features: Tensor,
    unlabeled_target_features: Tensor,
    triplet_query_features: Tensor,
    triplet_target_features: Tensor,
    logit_scale: Tensor | float,
    gather: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """L = L_ZS + L_triplet (Eq. 3).

    Args:
        unlabeled_query_features (`torch.FloatTensor` of shape `(U, D)`): f("a photo of [$ $ $ $]"), unit L2 norm.
        unlabeled_target_features (`torch.FloatTensor` of shape `(U, D)`): The same images' features, unit L2 norm.
        triplet_query_features (`torch.FloatTensor` of shape `(T, D)`): f_composed of the triplets, unit L2 norm.
        triplet_target_features (`torch.FloatTensor` of shape `(T, D)`): Their target images' features, unit L2 norm.
        logit_scale (`torch.FloatTensor` or `float`): 1 / temperature.
        gather (`bool`): Whether to take negatives from every process.

    Returns:
        The loss (Eq. 3), L_ZS (Eq. 1) and L_triplet (Eq. 2), each of shape `()`.
    """
    zero_shot = contrastive_loss(unlabeled_query_features, unlabeled_target_features, logit_scale, gather)
    triplet = contrastive_loss(triplet_query_features, triplet_target_features, logit_scale, gather)
    return zero_shot + triplet, zero_shot, triplet
