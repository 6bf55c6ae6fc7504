"""Frozen image-text encoders: loading them, and one adapter for each way in which families give their features.

Shapes: B texts, I images, K pseudo tokens, L text length, D joint width, H text hidden width.
"""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, BlipForImageTextRetrieval
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel

from .configuration_hycir import HUB_KEYS, HyCIRConfig

_UNUSED_WEIGHTS = r"pooler|position_ids|crossattention|itm_head|logit_scale"
"""Encoder weights that retrieval does not use. A file may lack them."""


class DualEncoder:
    """Reads every encoder whose `get_*_features` give the joint space (the CLIP and SigLIP families).

    Each output's `pooler_output` holds the features in the joint space, not normalised. `**further` may ask for
    `output_hidden_states` and `output_attentions`.
    """

    model_class: Any = AutoModel

    def build(self, encoder_config: Any) -> PreTrainedModel:
        """Build an encoder with random weights."""
        return AutoModel.from_config(encoder_config)

    def image_output(
        self, encoder: PreTrainedModel, pixel_values: Tensor, **further: Any
    ) -> BaseModelOutputWithPooling:
        """Encode images: features `(I, D)`."""
        return encoder.get_image_features(pixel_values=pixel_values, **further)

    def text_output(
        self, encoder: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None, **further: Any
    ) -> BaseModelOutputWithPooling:
        """Encode texts `(B, L)`: features `(B, D)`."""
        return encoder.get_text_features(input_ids=input_ids, attention_mask=attention_mask, **further)

    def prompt_output(
        self,
        encoder: PreTrainedModel,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        is_placeholder: Tensor,
        pseudo_tokens: Tensor,
        **further: Any,
    ) -> BaseModelOutputWithPooling:
        """Encode prompts `(B, L)` with pseudo tokens `(I, K, H)` at their placeholders: features `(B, D)`."""
        text_model = self.text_model(encoder)
        ids = input_ids.masked_fill(is_placeholder, _filler_id(encoder.config.text_config))
        with _write_pseudo_tokens(text_model.get_input_embeddings(), is_placeholder, pseudo_tokens):
            return self.text_output(encoder, ids, attention_mask, **further)

    def text_model(self, encoder: PreTrainedModel) -> PreTrainedModel:
        """Return the text side, which owns the token embedding."""
        return encoder.text_model

    def allow_tracing(self, encoder: PreTrainedModel) -> None:
        """Prepare for `torch.compile` and `torch.export`: compiled code can neither add a hook nor remove one."""
        embedding = self.text_model(encoder).get_input_embeddings()
        handle = embedding.register_forward_hook(_write_in_compiled_code)
        # The same key in every model: `datasets` takes equal models for equal by their pickles.
        embedding._forward_hooks[-1] = embedding._forward_hooks.pop(handle.id)
        embedding.to_write = None

    def logit_scale(self, encoder: PreTrainedModel) -> Tensor:
        """Return the factor on cosine similarities, 1 / temperature: `()`."""
        return full_tensor(encoder, "logit_scale", encoder.logit_scale).exp().squeeze()


class Siglip2(DualEncoder):
    """Reads SigLIP 2, whose images are patches with a mask and the shape of their grid."""

    def image_output(
        self, encoder: PreTrainedModel, pixel_values: Tensor, **further: Any
    ) -> BaseModelOutputWithPooling:
        """See `DualEncoder.image_output`."""
        if not {"pixel_attention_mask", "spatial_shapes"} <= further.keys():
            raise ValueError(
                "SigLIP 2 needs pixel_values, pixel_attention_mask and spatial_shapes together. Pass all three as the "
                "processor makes them. Pass targets as target_features, from get_image_features."
            )
        weight = encoder.vision_model.embeddings.patch_embedding.weight
        if not (torch.is_tensor(weight) and weight.is_floating_point()):
            raise ValueError(
                "SigLIP 2 casts images to the precision of vision_model.embeddings.patch_embedding, which is quantized "
                'here. Leave that layer out: with bitsandbytes, by llm_int8_skip_modules=["patch_embedding"].'
            )
        return super().image_output(encoder, pixel_values, **further)

    def allow_tracing(self, encoder: PreTrainedModel) -> None:
        """See `DualEncoder.allow_tracing`. The library resizes position embeddings in a loop over the images."""
        super().allow_tracing(encoder)
        embeddings = encoder.vision_model.embeddings
        embeddings.resize_positional_embeddings = partial(_resize, type(embeddings).resize_positional_embeddings)


class BlipRetrieval(DualEncoder):
    """Reads BLIP's contrastive (ITC) space: the projected [CLS] of both sides."""

    model_class = BlipForImageTextRetrieval

    def build(self, encoder_config: Any) -> PreTrainedModel:
        """See `DualEncoder.build`."""
        return BlipForImageTextRetrieval._from_config(encoder_config)

    def image_output(
        self, encoder: PreTrainedModel, pixel_values: Tensor, **further: Any
    ) -> BaseModelOutputWithPooling:
        """See `DualEncoder.image_output`."""
        output = encoder.vision_model(pixel_values=pixel_values, **further)
        output.pooler_output = encoder.vision_proj(output.last_hidden_state[:, 0])  # (I, D)
        return output

    def text_output(
        self, encoder: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None, **further: Any
    ) -> BaseModelOutputWithPooling:
        """See `DualEncoder.text_output`."""
        output = encoder.text_encoder(input_ids=input_ids, attention_mask=attention_mask, **further)
        output.pooler_output = encoder.text_proj(output.last_hidden_state[:, 0])  # (B, D)
        return output

    def text_model(self, encoder: PreTrainedModel) -> PreTrainedModel:
        """See `DualEncoder.text_model`."""
        return encoder.text_encoder

    def logit_scale(self, encoder: PreTrainedModel) -> Tensor:
        """See `DualEncoder.logit_scale`. transformers' BLIP has no trained temperature; its config's is used."""
        return torch.tensor(encoder.config.logit_scale_init_value).exp()


def adapter_for(encoder_config: Any) -> DualEncoder:
    """Choose the adapter of an encoder by its `model_type`."""
    return {"blip": BlipRetrieval, "siglip2": Siglip2}.get(encoder_config.model_type, DualEncoder)()


def image_inputs_of(pixel_attention_mask: Tensor | None = None, spatial_shapes: Tensor | None = None) -> dict[str, Any]:
    """Collect what SigLIP 2's images need besides `pixel_values` in one mapping. It is empty for other encoders.

    Called as `image_inputs_of(**image_inputs)`, it makes Python refuse an argument of another name.
    """
    given = {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
    return {name: value for name, value in given.items() if value is not None}


def full_tensor(module: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """Return a module's parameter or buffer. If accelerate has offloaded it, it is read back.

    Raises:
        ValueError: If it lies on the meta device for another reason.
    """
    if tensor.device.type != "meta":
        return tensor
    parts = name.split(".")
    for depth in range(len(parts) - 1, -1, -1):  # the hook is the owner's, or that of a module around it
        hook: Any = getattr(module.get_submodule(".".join(parts[:depth])), "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):  # a module may have several
            if getattr(one, "weights_map", None) is not None:
                return one.weights_map[".".join(parts[depth:])]
    raise ValueError(f"{name} has no values: it lies on the meta device. Load the model's weights first.")


def load_encoder(name_or_path: str, **loading: Any) -> PreTrainedModel:
    """Load a pretrained encoder with the class that its config asks for.

    Args:
        name_or_path (`str`): Hub id or folder.
        **loading: Those of `LOADING_KEYS`, as in `PreTrainedModel.from_pretrained`.

    Raises:
        OSError: If it cannot be read.
        ValueError: If its family is not supported, or weights that retrieval needs are missing.
    """
    hub_kwargs: dict[str, Any] = {k: v for k, v in loading.items() if k in (*HUB_KEYS, "trust_remote_code")}
    config = AutoConfig.from_pretrained(name_or_path, **hub_kwargs)
    HyCIRConfig(encoder_config=config)  # refuses an unsupported family before the weights are read
    model_class = adapter_for(config).model_class
    encoder, info = model_class.from_pretrained(name_or_path, output_loading_info=True, **loading)
    missing = sorted(name for name in info["missing_keys"] if not re.search(_UNUSED_WEIGHTS, name))
    if missing:
        raise ValueError(
            f"{name_or_path} is no complete image-text encoder ({config.model_type}): {len(missing)} weights are "
            f"missing, such as {missing[0]!r}. Give a model for retrieval, not one for captions."
        )
    return encoder


def _filler_id(text_config: Any) -> int:
    """Choose the ordinary id that stands at the placeholders while the text encoder reads ids for its own purposes.

    Its embedding is overwritten, but ids also decide where CLIP pools (at the first EOS or, where `eos_token_id` is 2,
    at the *largest* id) and where RoBERTa counts positions (not at padding). The lowest id that is no special token
    changes neither, whatever the placeholder's own id is.
    """
    names = ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id")
    special = {getattr(text_config, name, None) for name in names}
    return next(i for i in range(len(special) + 1) if i not in special)


def _write_in_compiled_code(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
    """Do for compiled code what `_write_pseudo_tokens` asks for. Other calls pass unchanged."""
    if module.to_write is None:
        return None
    is_placeholder, pseudo_tokens = module.to_write
    module.to_write = None
    return _overwrite(output, is_placeholder, pseudo_tokens)


def _overwrite(output: Tensor, is_placeholder: Tensor, pseudo_tokens: Tensor) -> Tensor:
    """Put pseudo tokens `(I, K, H)` at the placeholders `(B, L)` of an embedding's output `(B, L, H)`."""
    tokens = pseudo_tokens.flatten(0, 1).to(device=output.device, dtype=output.dtype)  # (I * K, H)
    return output.masked_scatter(is_placeholder.to(output.device)[..., None], tokens)  # (B, L, H)


def _resize(original: Callable, positions: Tensor, spatial_shapes: Tensor, max_length: int) -> Tensor:
    """Resize SigLIP 2's position embeddings `(S, S, W)` to each image's grid of patches: `(I, max_length, W)`.

    Traced code gets the same antialiased bilinear weights as one matrix product, for any number of images.
    """
    if not torch.compiler.is_compiling():
        return original(positions, spatial_shapes, max_length)
    heights, widths = spatial_shapes[:, :1], spatial_shapes[:, 1:]  # (I, 1) each
    patches = torch.arange(max_length, device=positions.device)  # (max_length,)
    patches = torch.where(patches < heights * widths, patches, 0)  # (I, max_length)
    rows = _resize_weights(patches // widths, heights, positions.shape[0])  # (I, max_length, S)
    columns = _resize_weights(patches % widths, widths, positions.shape[1])  # (I, max_length, S)
    weights = (rows[..., None] * columns[..., None, :]).flatten(-2)  # (I, max_length, S * S)
    return (weights @ positions.flatten(0, 1).float()).to(positions.dtype)


def _resize_weights(places: Tensor, sizes: Tensor, old_size: int) -> Tensor:
    """Weigh the `old_size` old places for each new one `(I, L)` of an axis of `sizes` `(I, 1)`: `(I, L, old_size)`."""
    scale = old_size / sizes  # (I, 1)
    distances = torch.arange(old_size, device=places.device) + 0.5 - ((places + 0.5) * scale)[..., None]
    weights = (1 - distances.abs() / scale.clamp(min=1)[..., None]).clamp(min=0)
    return weights / weights.sum(-1, keepdim=True)


@contextmanager
def _write_pseudo_tokens(embedding: nn.Module, is_placeholder: Tensor, pseudo_tokens: Tensor) -> Iterator[None]:
    """Let the token embedding give pseudo tokens `(I, K, H)` where `is_placeholder` `(B, L)` says so, for one call.

    The library's own masking, positions and pooling stay as they are. Other threads that use the same encoder at the
    same time are not affected.
    """
    if torch.compiler.is_dynamo_compiling():
        embedding.to_write = (is_placeholder, pseudo_tokens)
        yield
        if embedding.to_write is not None:
            raise RuntimeError(
                "The encoder's token embedding was replaced. Call HyCIRModel.set_input_embeddings before torch.compile."
            )
        return
    thread = threading.get_ident()

    def overwrite(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        return _overwrite(output, is_placeholder, pseudo_tokens) if threading.get_ident() == thread else None

    handle = embedding.register_forward_hook(overwrite)
    try:
        yield
    finally:
        handle.remove()
