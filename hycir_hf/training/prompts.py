"""The text side of a training step, without useless work.

Prompts are sorted by length, and each group is cut to its longest prompt. If the encoder is causal (CLIP), the words
that all prompts begin with ("a photo of") are encoded once: their keys and values never change.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface

from ..modeling_hycir import HyCIRModel

_CAUSAL_ENCODERS = ("clip", "metaclip_2")
_ATTENTION = "hycir_prefix"
NUM_LENGTH_GROUPS = 4  # without chunks: more groups pad less, but make smaller matrices


class PromptEncoder:
    """Composed features of many prompts from their pseudo tokens, in groups of similar length.

    Args:
        model (`HyCIRModel`): The model. Its text encoder is frozen.
        chunk_size (`int`, *optional*): Size of the largest group. By default there are `NUM_LENGTH_GROUPS` groups.
        reuse_prefix (`bool`): Whether to encode the prompts' common beginning once. Only causal encoders can.
    """

    def __init__(self, model: HyCIRModel, chunk_size: int | None = None, reuse_prefix: bool = True) -> None:
        self.model, self.chunk_size = model, chunk_size
        self.can_reuse_prefix = reuse_prefix and model.config.encoder_config.model_type in _CAUSAL_ENCODERS
        self._prefixes: dict[Any, _Prefix] = {}

    def groups(self, prompts: Mapping[str, Tensor]) -> list[Tensor]:
        """Split the row numbers of prompts into groups of similar length, shortest first, of at most `chunk_size`."""
        lengths = _lengths(prompts)
        count = NUM_LENGTH_GROUPS if self.chunk_size is None else -(-len(lengths) // self.chunk_size)
        if lengths.min() == lengths.max() and self.chunk_size is None:
            count = 1
        order = torch.argsort(lengths, stable=True)
        return [group for group in torch.tensor_split(order, count) if len(group)]

    def encode(self, prompts: Mapping[str, Tensor], pseudo_tokens: Tensor, rows: Tensor, normalize: bool) -> Tensor:
        """Encode some of the prompts.

        Args:
            prompts (`Mapping`): `input_ids` `(B, L)` and perhaps `attention_mask`, on the CPU.
            pseudo_tokens (`torch.FloatTensor` of shape `(B, K, H)`): They take the place of the row's placeholders.
            rows (`torch.LongTensor` of shape `(R,)`): The rows to encode.
            normalize (`bool`): Whether to bring the features to unit norm.

        Returns:
            `torch.FloatTensor` of shape `(R, D)`.
        """
        ids = prompts["input_ids"][rows]  # (R, L)
        mask = prompts["attention_mask"][rows] if "attention_mask" in prompts else None
        if mask is not None:
            length = int(mask.sum(1).max())
            ids, mask = ids[:, :length], mask[:, :length]
        is_placeholder = ids == self.model.config.placeholder_token_id  # (R, L)
        blocks = is_placeholder.sum(1) // pseudo_tokens.shape[1]
        device = pseudo_tokens.device
        tokens = pseudo_tokens[rows.to(device)]  # (R, K, H)
        if (blocks != 1).any():
            tokens = tokens.repeat_interleave(blocks.to(device), dim=0)
        num_shared = self._num_shared(ids, is_placeholder)
        if num_shared == 0:
            inputs = {"attention_mask": None if mask is None else mask.to(device)}
            return self._compose(ids.to(device), tokens, normalize, **inputs)
        with _after_prefix(self._text_model(), self._prefix(ids[:1, :num_shared].to(device))):
            return self._compose(ids[:, num_shared:].to(device), tokens, normalize)

    def _compose(self, ids: Tensor, tokens: Tensor, normalize: bool, **inputs: Any) -> Tensor:
        return self.model.get_composed_features(ids, pseudo_tokens=tokens, normalize=normalize, **inputs).float()

    def _text_model(self) -> Any:
        return self.model.encoder.text_model

    def _num_shared(self, ids: Tensor, is_placeholder: Tensor) -> int:
        """Count the first tokens that all rows share: none after a placeholder, and never the whole prompt."""
        if not self.can_reuse_prefix or len(ids) == 1:
            return 0
        is_shared = (ids == ids[:1]).all(0) & ~is_placeholder.any(0)  # (L,)
        return int(is_shared[:-1].cumprod(0).sum()) if is_placeholder.any() else 0

    def _prefix(self, ids: Tensor) -> "_Prefix":
        """The keys and values of a prompt's beginning, `(1, P)`. They are computed once."""
        device = ids.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        key = (tuple(ids[0].tolist()), dtype)
        if key not in self._prefixes:
            prefix = _Prefix(ids.shape[1])
            with torch.no_grad(), _after_prefix(self._text_model(), prefix):
                self._text_model()(input_ids=ids)
            prefix.is_recorded = True
            self._prefixes[key] = prefix
        return self._prefixes[key]


def plain_features(model: HyCIRModel, prompts: Mapping[str, Tensor], normalize: bool = True) -> Tensor:
    """Encode plain texts without gradient: `(B, D)`, float32."""
    with torch.no_grad():
        inputs = {name: value.to(model.device) for name, value in prompts.items()}
        return model.get_text_features(**inputs, normalize=normalize).float()


def _lengths(prompts: Mapping[str, Tensor]) -> Tensor:
    """Number of tokens of each prompt, `(B,)`. Without a mask (SigLIP) all have the full length."""
    if "attention_mask" in prompts:
        return prompts["attention_mask"].sum(1)
    return torch.full((len(prompts["input_ids"]),), prompts["input_ids"].shape[1])


class _Prefix:
    """A prompt's first P tokens: keys and values of every layer, each `(1, heads, P, width)`."""

    def __init__(self, length: int) -> None:
        self.length, self.is_recorded = length, False
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}


@contextmanager
def _after_prefix(text_model: Any, prefix: _Prefix) -> Iterator[None]:
    """Let the text encoder read its input as the continuation of a prefix; the first time, as the prefix itself."""
    start = prefix.length if prefix.is_recorded else 0

    def shift(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        length = kwargs["input_ids"].shape[1]
        positions = torch.arange(start, start + length, device=kwargs["input_ids"].device)[None]
        return args, {**kwargs, "position_ids": positions, "attention_mask": None, "prefix": prefix}

    handle = text_model.register_forward_pre_hook(shift, with_kwargs=True)
    usual = text_model.config._attn_implementation
    text_model.config._attn_implementation = _ATTENTION
    try:
        yield
    finally:
        text_model.config._attn_implementation = usual
        handle.remove()


def _prefix_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    prefix: _Prefix,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention to a prefix and its continuation.

    The padding needs no mask: it is at the end of the rows, and they are pooled before it.
    """
    if prefix.is_recorded:
        first_keys, first_values = prefix.layers[id(module)]
        key = torch.cat([first_keys.expand(len(key), -1, -1, -1), key], dim=2)  # (B, heads, P + S, width)
        value = torch.cat([first_values.expand(len(value), -1, -1, -1), value], dim=2)
    else:
        prefix.layers[id(module)] = (key, value)
    num_queries, num_keys = query.shape[2], key.shape[2]
    is_visible = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device)
    is_visible = is_visible.tril(num_keys - num_queries)  # (S, P + S)
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=is_visible, scale=scaling)
    return output.transpose(1, 2).contiguous(), None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """`_prefix_attention` makes its own mask."""


AttentionInterface.register(_ATTENTION, _prefix_attention)
AttentionMaskInterface.register(_ATTENTION, _no_mask)
