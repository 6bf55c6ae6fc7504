"""What `HyCIRModel` returns: its output, and features as a tensor or within the encoder's own output."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput


@dataclass
class HyCIROutput(ModelOutput):
    """What `HyCIRModel.forward` returns.

    Attributes:
        loss (`torch.FloatTensor` of shape `()`): L_ZS (Eq. 2) or L_triplet (Eq. 3), if it was asked for.
        logits_per_query (`torch.FloatTensor` of shape `(B, B)`): Cosine similarities times the encoder's logit scale.
        query_features (`torch.FloatTensor` of shape `(B, D)`): Composed features, unit L2 norm.
        target_features (`torch.FloatTensor` of shape `(B, D)`): Unit L2 norm. Without targets, the reference images'.
        pseudo_tokens (`torch.FloatTensor` of shape `(I, K, H)`): The mapper's output.
        hidden_states (`tuple` of `torch.FloatTensor` of shape `(B, L, H)`): The text encoder's, of the composed
            prompts, if they were asked for: before its first layer and after each.
        attentions (`tuple` of `torch.FloatTensor` of shape `(B, heads, L, L)`): Likewise, of each layer.
    """

    loss: Tensor | None = None
    logits_per_query: Tensor | None = None
    query_features: Tensor | None = None
    target_features: Tensor | None = None
    pseudo_tokens: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


def further_outputs(output_hidden_states: bool, output_attentions: bool) -> dict[str, bool]:
    """Collect the further outputs that were asked for."""
    values = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
    return {name: value for name, value in values.items() if value}


def features_of(output: BaseModelOutputWithPooling, normalize: bool, return_dict: bool | None) -> Any:
    """Return an output's features `(N, D)`. With `return_dict`, return the output with them as `pooler_output`."""
    features = F.normalize(output.pooler_output, dim=-1) if normalize else output.pooler_output
    if return_dict is None:
        return features
    output.pooler_output = features
    return output if return_dict else output.to_tuple()
