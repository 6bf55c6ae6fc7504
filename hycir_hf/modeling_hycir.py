"""HyCIR's model: a frozen image-text encoder and a mapper from image features to pseudo-word tokens.

Paper: Model architecture. The mapper turns a reference image's feature into K pseudo-word tokens; they take the places
of the prompt's placeholders ("a photo of [$ $ $ $], query text") before the frozen text encoder runs.

Shapes: B rows, I reference images (B unless rows have several), K pseudo tokens, L text length, D joint width, H text
hidden width.
"""

import copy
import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, BlipForImageTextRetrieval
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME, ModelOutput, cached_file

from .configuration_hycir import HUB_KEYS, RESERVED_PLACEHOLDER_ID, HyCIRConfig

_BEHAVIOUR_KEYS = ("model_type", "hidden_act", "num_attention_heads", "patch_size", "image_size", "eos_token_id")
"""The config values that change features without changing any weight; part of an encoder's fingerprint."""

_UNUSED_WEIGHTS = r"pooler|position_ids|crossattention|itm_head|logit_scale"
"""Weights of an encoder that retrieval goes without: a file may lack them."""

_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)


@dataclass
class HyCIROutput(ModelOutput):
    """What `HyCIRModel.forward` returns.

    Attributes:
        loss (`torch.FloatTensor` of shape `()`): Contrastive loss (Eq. 1 or 2), if it was asked for.
        logits_per_query (`torch.FloatTensor` of shape `(B, B)`): Cosine similarities times the encoder's logit scale.
        query_features (`torch.FloatTensor` of shape `(B, D)`): Composed features, unit L2 norm.
        target_features (`torch.FloatTensor` of shape `(B, D)`): Unit L2 norm; the reference images' own features where
            no targets were given.
        pseudo_tokens (`torch.FloatTensor` of shape `(I, K, H)`): The mapper's output.
    """

    loss: Tensor | None = None
    logits_per_query: Tensor | None = None
    query_features: Tensor | None = None
    target_features: Tensor | None = None
    pseudo_tokens: Tensor | None = None


class DualEncoder:
    """How HyCIR reads every encoder whose `get_*_features` give the joint space (the CLIP and SigLIP families)."""

    model_class: Any = AutoModel

    def image_features(self, encoder: PreTrainedModel, pixel_values: Tensor, **image_inputs: Tensor) -> Tensor:
        """Encode images into the joint space, not normalised: `(I, D)`."""
        return encoder.get_image_features(pixel_values=pixel_values, **image_inputs).pooler_output

    def text_features(self, encoder: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Encode texts into the joint space, not normalised: `(B, D)`."""
        return encoder.get_text_features(input_ids=input_ids, attention_mask=attention_mask).pooler_output

    def text_model(self, encoder: PreTrainedModel) -> PreTrainedModel:
        """Return the text side, which owns the token embedding."""
        return encoder.text_model

    def logit_scale(self, encoder: PreTrainedModel) -> Tensor:
        """Return the factor on cosine similarities, 1 / temperature: `()`."""
        return encoder.logit_scale.exp().squeeze()


class Siglip2(DualEncoder):
    """How HyCIR reads SigLIP 2, whose images come as patches with a mask and their grid's shape."""

    def image_features(self, encoder: PreTrainedModel, pixel_values: Tensor, **image_inputs: Tensor) -> Tensor:
        """See `DualEncoder.image_features`."""
        if len(image_inputs) < 2:
            raise ValueError(
                "SigLIP 2 needs pixel_values, pixel_attention_mask and spatial_shapes, but found not all three. Give "
                "them as the processor makes them; give targets as target_features from get_image_features."
            )
        return super().image_features(encoder, pixel_values, **image_inputs)


class BlipRetrieval(DualEncoder):
    """How HyCIR reads BLIP: the contrastive (ITC) space, from both sides' [CLS]."""

    model_class = BlipForImageTextRetrieval

    def image_features(self, encoder: PreTrainedModel, pixel_values: Tensor, **image_inputs: Tensor) -> Tensor:
        """See `DualEncoder.image_features`."""
        states = encoder.vision_model(pixel_values=pixel_values).last_hidden_state
        return encoder.vision_proj(states[:, 0])  # (I, D)

    def text_features(self, encoder: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """See `DualEncoder.text_features`."""
        states = encoder.text_encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return encoder.text_proj(states[:, 0])  # (B, D)

    def text_model(self, encoder: PreTrainedModel) -> PreTrainedModel:
        """See `DualEncoder.text_model`."""
        return encoder.text_encoder

    def logit_scale(self, encoder: PreTrainedModel) -> Tensor:
        """See `DualEncoder.logit_scale`; transformers' BLIP keeps no trained temperature, so the config's is used."""
        return torch.tensor(encoder.config.logit_scale_init_value, device=encoder.device).exp()


def _adapter_for(encoder_config: Any) -> DualEncoder:
    """Choose how to read an encoder by its `model_type`."""
    return {"blip": BlipRetrieval, "siglip2": Siglip2}.get(encoder_config.model_type, DualEncoder)()


class PseudoTokenMapper(nn.Module):
    """The mapper M: an image feature to K pseudo-word tokens, `(I, D)` to `(I, K, H)`.

    Paper: names no architecture for it; this is Pic2Word's: blocks of Linear-Dropout-ReLU, then an output layer, here
    K x H wide. Its input is the encoder's projected image feature before normalisation, as in Pic2Word.
    `mapper_activation="gelu"` gives SEARLE's and LinCIR's phi, Linear-GELU-Dropout; since dropout and ReLU commute, one
    order serves both.
    """

    def __init__(self, config: HyCIRConfig) -> None:
        super().__init__()
        self.num_pseudo_tokens = config.num_pseudo_tokens
        activation = {"relu": nn.ReLU, "gelu": nn.GELU}[config.mapper_activation]
        layers: list[nn.Module] = []
        width = config.feature_size
        for _ in range(config.mapper_num_layers):
            layers += [nn.Linear(width, config.mapper_hidden_size), activation(), nn.Dropout(config.mapper_dropout)]
            width = config.mapper_hidden_size
        self.blocks = nn.Sequential(*layers)
        self.output = nn.Linear(width, config.num_pseudo_tokens * config.text_hidden_size)

    def forward(self, image_features: Tensor) -> Tensor:
        """Map image features `(I, D)` to pseudo tokens `(I, K, H)`."""
        tokens = self.output(self.blocks(image_features))  # (I, K * H)
        return tokens.unflatten(-1, (self.num_pseudo_tokens, -1))  # (I, K, H)


class HyCIRModel(PreTrainedModel):
    """A frozen image-text encoder with a trainable mapper (paper: Model architecture).

    Args:
        config (`HyCIRConfig`): Configuration.
        encoder (`PreTrainedModel`, *optional*): The encoder to use; by default one with random weights is built from
            `config.encoder_config`.
    """

    config_class = HyCIRConfig
    base_model_prefix = "hycir"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    # What really runs is the encoder, which checks the asked-for attention again for itself.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: HyCIRConfig, encoder: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self._adapter = _adapter_for(config.encoder_config)
        self._fingerprint: tuple[Any, str] | None = None
        if encoder is None:
            model_class = self._adapter.model_class
            build = model_class.from_config if model_class is AutoModel else model_class._from_config
            encoder = build(config.encoder_config)
        else:
            _mark_initialized(encoder)
        self.encoder = encoder
        self.mapper = PseudoTokenMapper(config)
        self.post_init()
        _frozen(self)

    @classmethod
    def from_encoder(
        cls,
        encoder: str | Path | PreTrainedModel,
        num_pseudo_tokens: int = 4,
        *,
        dtype: torch.dtype | str | None = None,
        attn_implementation: str | None = None,
        **config_kwargs: Any,
    ) -> "HyCIRModel":
        """Build a model from a pretrained encoder and a fresh mapper.

        Args:
            encoder (`str`, `Path` or `PreTrainedModel`): Hub id, folder, or the encoder itself (not copied; frozen).
            num_pseudo_tokens (`int`): K.
            dtype (`torch.dtype`, *optional*): Of encoder and mapper; by default float32, in which a mapper trains best,
                or a given encoder's own.
            attn_implementation (`str`, *optional*): The encoder's attention, for example "sdpa".
            **config_kwargs: Further fields of `HyCIRConfig`.

        Returns:
            `HyCIRModel`: In eval mode.
        """
        if not isinstance(encoder, PreTrainedModel):
            encoder = _load_encoder(str(encoder), dtype=dtype or torch.float32, attn_implementation=attn_implementation)
        else:
            encoder = encoder if dtype is None else encoder.to(dtype)
            if attn_implementation is not None:
                encoder.set_attn_implementation(attn_implementation)
        config_kwargs.setdefault("encoder_name_or_path", encoder.name_or_path or None)
        config = HyCIRConfig(encoder_config=encoder.config, num_pseudo_tokens=num_pseudo_tokens, **config_kwargs)
        model = cls(config, encoder=encoder)
        return model.to(device=encoder.device, dtype=encoder.dtype).eval()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        target_pixel_values: Tensor | None = None,
        target_features: Tensor | None = None,
        pixel_attention_mask: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        return_loss: bool = True,
    ) -> HyCIROutput:
        """Compose the queries and, with `return_loss`, score them against their targets.

        With targets the loss is L_triplet (Eq. 2); without, it is L_ZS (Eq. 1): the reference images' own features are
        then the targets of their prompts.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, L)`): Prompts with K placeholders for each reference image.
            attention_mask (`torch.LongTensor` of shape `(B, L)`, *optional*): 1 for tokens, 0 for padding.
            pixel_values (`torch.FloatTensor` of shape `(I, 3, height, width)`): The reference images, or
            image_features (`torch.FloatTensor` of shape `(I, D)`): their features, not normalised.
            target_pixel_values (`torch.FloatTensor` of shape `(B, 3, height, width)`, *optional*): The targets, or
            target_features (`torch.FloatTensor` of shape `(B, D)`): their features; normalised here.
            pixel_attention_mask (*optional*): SigLIP 2's further input for the reference images.
            spatial_shapes (*optional*): SigLIP 2's further input for the reference images.
            return_loss (`bool`): Whether to compute the loss.

        Returns:
            `HyCIROutput`

        Raises:
            ValueError: If inputs are missing, or placeholders, images and targets do not match in number.
        """
        if input_ids is None:
            raise ValueError(
                "HyCIRModel needs composed prompts as input_ids, but found None. Make them with HyCIRProcessor."
            )
        if image_features is None:
            image_features = self._encode_images(pixel_values, pixel_attention_mask, spatial_shapes)  # (I, D)
        pseudo_tokens = self.get_pseudo_tokens(image_features=image_features)  # (I, K, H)
        query_features = F.normalize(self._encode_prompts(input_ids, attention_mask, pseudo_tokens), dim=-1)  # (B, D)
        if target_features is None:
            has_target_images = target_pixel_values is not None
            target_features = self._encode_images(target_pixel_values) if has_target_images else image_features
        target_features = F.normalize(target_features.to(query_features), dim=-1)  # (B, D)
        logits, loss = None, None
        logit_scale = self.logit_scale.to(query_features.device)
        if len(target_features) == len(query_features):
            logits = logit_scale * query_features @ target_features.T  # (B, B)
        if return_loss:
            # In evaluation the processes' last batches may differ in size, and a gather would wait forever.
            loss = contrastive_loss(query_features, target_features, logit_scale, gather=self.training)
        return HyCIROutput(loss, logits, query_features, target_features, pseudo_tokens)

    def get_image_features(
        self,
        pixel_values: Tensor,
        pixel_attention_mask: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        normalize: bool = True,
    ) -> Tensor:
        """Encode images (paper: f_img).

        Args:
            pixel_values (`torch.FloatTensor` of shape `(I, 3, height, width)`): Images from the processor.
            pixel_attention_mask (*optional*): SigLIP 2's further input.
            spatial_shapes (*optional*): SigLIP 2's further input.
            normalize (`bool`): `False` gives the features that `get_pseudo_tokens` takes as `image_features`.

        Returns:
            `torch.FloatTensor` of shape `(I, D)`: Unit L2 norm, unless `normalize=False`.
        """
        features = self._encode_images(pixel_values, pixel_attention_mask, spatial_shapes)  # (I, D)
        return F.normalize(features, dim=-1) if normalize else features

    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, normalize: bool = True
    ) -> Tensor:
        """Encode plain texts, `(B, L)`, into `(B, D)` of unit L2 norm, unless `normalize=False`.

        Raises:
            ValueError: If the texts hold placeholders: those are `get_composed_features`'s.
        """
        if self.config.placeholder_token_id == RESERVED_PLACEHOLDER_ID and not torch.compiler.is_compiling():
            found = int((input_ids == RESERVED_PLACEHOLDER_ID).sum())
            if found:
                raise ValueError(
                    f"get_text_features expects plain texts, but found {found} placeholders. Make the texts with "
                    "processor(text=..., compose=False), or call get_composed_features."
                )
        features = self._adapter.text_features(self.encoder, input_ids, attention_mask)  # (B, D)
        return F.normalize(features, dim=-1) if normalize else features

    def get_pseudo_tokens(
        self,
        image_features: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_attention_mask: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
    ) -> Tensor:
        """Map reference images to pseudo-word tokens (paper: M(f_ref_img)).

        Args:
            image_features (`torch.FloatTensor` of shape `(I, D)`): From `get_image_features(normalize=False)`, or
            pixel_values (`torch.FloatTensor` of shape `(I, 3, height, width)`): the images themselves.
            pixel_attention_mask (*optional*): SigLIP 2's further input.
            spatial_shapes (*optional*): SigLIP 2's further input.

        Returns:
            `torch.FloatTensor` of shape `(I, K, H)`.
        """
        if image_features is None:
            image_features = self._encode_images(pixel_values, pixel_attention_mask, spatial_shapes)
        weight = self.mapper.output.weight
        return self.mapper(image_features.to(device=weight.device, dtype=weight.dtype))  # (I, K, H)

    def get_composed_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        pixel_attention_mask: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        pseudo_tokens: Tensor | None = None,
        normalize: bool = True,
    ) -> Tensor:
        """Compose reference images and query texts into retrieval features (paper: f_composed).

        Args:
            input_ids (`torch.LongTensor` of shape `(B, L)`): Prompts with K placeholders for each reference image.
            attention_mask (`torch.LongTensor` of shape `(B, L)`, *optional*): 1 for tokens, 0 for padding.
            pixel_values (`torch.FloatTensor` of shape `(I, 3, height, width)`): Reference images, row by row, or
            image_features (`torch.FloatTensor` of shape `(I, D)`): their features, not normalised.
            pixel_attention_mask (*optional*): SigLIP 2's further input.
            spatial_shapes (*optional*): SigLIP 2's further input.
            pseudo_tokens (`torch.FloatTensor` of shape `(I, K, H)`, *optional*): From `get_pseudo_tokens`; then no
                images are needed.
            normalize (`bool`): Whether to bring the features to unit norm.

        Returns:
            `torch.FloatTensor` of shape `(B, D)`: Unit L2 norm, unless `normalize=False`.

        Raises:
            ValueError: If the placeholders are not `config.num_pseudo_tokens` times the reference images.
        """
        if pseudo_tokens is None:
            pseudo_tokens = self.get_pseudo_tokens(image_features, pixel_values, pixel_attention_mask, spatial_shapes)
        features = self._encode_prompts(input_ids, attention_mask, pseudo_tokens)  # (B, D)
        return F.normalize(features, dim=-1) if normalize else features

    @property
    def logit_scale(self) -> Tensor:
        """The encoder's own 1 / temperature, frozen: `()`."""
        return self._adapter.logit_scale(self.encoder).detach()

    def get_input_embeddings(self) -> nn.Module:
        """Return the text encoder's token embedding."""
        return self._adapter.text_model(self.encoder).get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the text encoder's token embedding."""
        self._adapter.text_model(self.encoder).set_input_embeddings(value)

    def train(self, mode: bool = True) -> "HyCIRModel":
        """Switch the mapper between training and evaluation; the frozen encoder stays in eval mode."""
        super().train(mode)
        self.encoder.eval()
        for module in self._adapter.text_model(self.encoder).modules():
            # A layer checkpoints only while its own flag says training; its parts (dropout) stay in eval mode.
            if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
                module.training = mode
        return self

    def encoder_fingerprint(self) -> str:
        """Identify the frozen encoder: 16 hex digits of a SHA-256 of its weights and the behaviour of its config.

        Weights are hashed as bfloat16, so that loading the same encoder in float32 or bfloat16 gives the same
        fingerprint, and so does float16 where the file is in float16; casting float32 weights to float16 may change
        it. The mapper has no part in it.

        Raises:
            ValueError: If weights lie on the meta device (offloaded).
        """
        tensors = sorted(self.encoder.state_dict().items())
        state = tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for _, t in tensors if not t.is_meta)
        if self._fingerprint is None or self._fingerprint[0] != state:
            self._fingerprint = (state, _fingerprint_of(self.encoder.config, tensors))
        return self._fingerprint[1]

    def save_pretrained(self, save_directory: str | Path, *, mapper_only: bool = False, **kwargs: Any) -> None:
        """Save the model as safetensors in one folder.

        Args:
            save_directory (`str` or `Path`): The folder.
            mapper_only (`bool`): Leave the encoder out: a few MB. `from_pretrained` then re-reads it from
                `config.encoder_name_or_path` and checks its fingerprint.
            **kwargs: As in `PreTrainedModel.save_pretrained`.

        Raises:
            ValueError: If `mapper_only` is asked for an encoder that came from nowhere.
        """
        if mapper_only and not self.config.encoder_name_or_path:
            raise ValueError(
                "mapper_only needs the encoder's id or folder in config.encoder_name_or_path, but found none. Save the "
                "encoder and set config.encoder_name_or_path to its folder, or save the whole model."
            )
        state_dict = kwargs.pop("state_dict", None) or self.state_dict()
        if mapper_only:
            state_dict = {name: value for name, value in state_dict.items() if name.startswith("mapper.")}
        self.config.encoder_fingerprint = self.encoder_fingerprint() if mapper_only else None
        self.config.mapper_only = mapper_only
        try:
            super().save_pretrained(save_directory, state_dict=state_dict, **kwargs)
        finally:
            self.config.mapper_only = False

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload the whole model with its code; arguments as in `PreTrainedModel.push_to_hub`.

        A new repository is private unless `private=False`, and a local encoder's folder is not told. The processor has
        its own `push_to_hub`.
        """
        kwargs.setdefault("private", True)
        with without_local_encoder(self.config):
            return super().push_to_hub(repo_id, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a model saved whole or with `mapper_only=True`; arguments as in `PreTrainedModel.from_pretrained`.

        `encoder_name_or_path=...` says where a `mapper_only` save's encoder lies now, if it has moved.

        Raises:
            OSError: If a mapper's encoder cannot be read.
            ValueError: If a mapper's encoder is no longer the one that the mapper was trained on.
        """
        hub_kwargs: dict[str, Any] = {k: v for k, v in kwargs.items() if k in HUB_KEYS}
        config = kwargs.get("config")
        if not isinstance(config, PreTrainedConfig) and pretrained_model_name_or_path is not None:
            config = HyCIRConfig.from_pretrained(config or pretrained_model_name_or_path, **hub_kwargs)
        if config is None or not config.mapper_only or pretrained_model_name_or_path is None:
            return _frozen(super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs))
        config = copy.deepcopy(config)
        config.mapper_only = False
        config.encoder_name_or_path = kwargs.pop("encoder_name_or_path", config.encoder_name_or_path)
        kwargs["config"] = config
        kwargs["state_dict"] = _read_split_weights(pretrained_model_name_or_path, config, hub_kwargs)
        if kwargs.setdefault("dtype", kwargs.pop("torch_dtype", "auto")) == "auto":
            kwargs["dtype"] = kwargs["state_dict"]["mapper.output.weight"].dtype
        for name in ("use_safetensors", *hub_kwargs):
            kwargs.pop(name, None)
        loaded = _frozen(super().from_pretrained(None, *args, **kwargs))
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.name_or_path = model.config.name_or_path = str(pretrained_model_name_or_path)
        return loaded

    def _init_weights(self, module: nn.Module) -> None:
        """Leave the mapper's layers at torch's own initialisation, as Pic2Word does."""
        if isinstance(module, nn.Linear) and not getattr(module.weight, "_is_hf_initialized", False):
            module.reset_parameters()

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        """Switch checkpointing on the text side, the only part of the encoder that gradients pass through."""
        self._adapter.text_model(self.encoder)._set_gradient_checkpointing(*args, **kwargs)
        self.train(self.training)

    def _encode_images(
        self,
        pixel_values: Tensor | None,
        pixel_attention_mask: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
    ) -> Tensor:
        """Encode images into the joint space, not normalised: `(I, D)`."""
        if pixel_values is None:
            raise ValueError(
                "HyCIRModel needs the reference images as pixel_values or image_features, but found neither. Make "
                "pixel_values with HyCIRProcessor, or image_features with get_image_features(..., normalize=False)."
            )
        further = {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
        further = {name: value for name, value in further.items() if value is not None}
        return self._adapter.image_features(self.encoder, pixel_values.to(self.dtype), **further)

    @torch.compiler.disable
    def _encode_prompts(self, input_ids: Tensor, attention_mask: Tensor | None, pseudo_tokens: Tensor) -> Tensor:
        """Run the text encoder on prompts whose placeholders become the pseudo tokens, not normalised: `(B, D)`.

        Compiled code would not see the hook that writes the tokens, so this part always runs eagerly.
        """
        is_placeholder = input_ids == self.config.placeholder_token_id  # (B, L)
        expected = pseudo_tokens.shape[0] * pseudo_tokens.shape[1]
        found = int(is_placeholder.sum())
        if found != expected:
            raise ValueError(
                f"The prompts must have {expected} placeholders ({pseudo_tokens.shape[1]} pseudo tokens for each of "
                f"{pseudo_tokens.shape[0]} reference images), but {found} were found. Make the prompts with a "
                f"HyCIRProcessor whose num_pseudo_tokens is {pseudo_tokens.shape[1]}."
            )
        ids = input_ids.masked_fill(is_placeholder, self._filler_id())
        with _write_pseudo_tokens(self.get_input_embeddings(), is_placeholder, pseudo_tokens):
            return self._adapter.text_features(self.encoder, ids, attention_mask)

    def _filler_id(self) -> int:
        """Choose the ordinary id that stands at the placeholders while the library reads ids for its own purposes.

        Its embedding is overwritten, but ids also decide where CLIP pools (at the first EOS or, where `eos_token_id`
        is 2, at the *largest* id) and where RoBERTa counts positions (not at padding). The lowest id that is no special
        token changes neither, whatever the placeholder's own id is.
        """
        text_config = self.config.encoder_config.text_config
        names = ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id")
        special = {getattr(text_config, name, None) for name in names}
        return next(i for i in range(len(special) + 1) if i not in special)


@contextmanager
def _write_pseudo_tokens(embedding: nn.Module, is_placeholder: Tensor, pseudo_tokens: Tensor) -> Iterator[None]:
    """Let the token embedding give pseudo tokens `(I, K, H)` where `is_placeholder` `(B, L)` says so, for one call.

    The library's own masking, positions and pooling stay as they are. Other threads that use the same encoder meanwhile
    are left alone.
    """
    thread = threading.get_ident()

    def overwrite(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if threading.get_ident() != thread:
            return None
        tokens = pseudo_tokens.flatten(0, 1).to(device=output.device, dtype=output.dtype)  # (I * K, H)
        return output.masked_scatter(is_placeholder.to(output.device)[..., None], tokens)  # (B, L, H)

    handle = embedding.register_forward_hook(overwrite)
    try:
        yield
    finally:
        handle.remove()


def contrastive_loss(
    query_features: Tensor, target_features: Tensor, logit_scale: Tensor | float, gather: bool = False
) -> Tensor:
    """Symmetric InfoNCE: the mean of the losses query -> target and target -> query (Eq. 1 and 2).

    Args:
        query_features (`torch.FloatTensor` of shape `(B, D)`): Unit L2 norm.
        target_features (`torch.FloatTensor` of shape `(B, D)`): Row i is the target of query i.
        logit_scale (`torch.FloatTensor` or `float`): 1 / temperature.
        gather (`bool`): Whether to take negatives from every process; all must then have the same B.

    Returns:
        `torch.FloatTensor` of shape `()`; log B where nothing tells the rows apart.

    Raises:
        ValueError: If the shapes differ.
    """
    if query_features.shape != target_features.shape:
        raise ValueError(
            "The contrastive loss needs one target for each query, but the features' shapes are "
            f"{tuple(query_features.shape)} and {tuple(target_features.shape)}. Give as many targets as prompts; rows "
            "with several reference images need target_pixel_values or target_features."
        )
    if gather:
        query_features, target_features = gather_features(query_features), gather_features(target_features)
    # In float32, also under autocast: with half precision's steps close similarities times 100 would fall together.
    with torch.autocast(query_features.device.type, enabled=False):
        logits = logit_scale * query_features.float() @ target_features.float().T  # (B, B)
        labels = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


class _GatherWithGradient(torch.autograd.Function):
    """Concatenate every process's rows; each process gets back the sum of all gradients on its own rows."""

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
    """Gather features `(B, D)` from all W processes into `(W * B, D)`, with gradient; a no-op in a single process."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return features
    return _GatherWithGradient.apply(features)


def _load_encoder(name_or_path: str, dtype: Any = None, attn_implementation: str | None = None, **kwargs: Any) -> Any:
    """Load a pretrained encoder with the class that its config asks for."""
    config = AutoConfig.from_pretrained(name_or_path, **kwargs)
    HyCIRConfig(encoder_config=config)  # refuses unsupported families before the weights are read
    further = {"dtype": dtype, "attn_implementation": attn_implementation}
    kwargs |= {name: value for name, value in further.items() if value is not None}
    encoder, info = _adapter_for(config).model_class.from_pretrained(name_or_path, output_loading_info=True, **kwargs)
    missing = sorted(name for name in info["missing_keys"] if not re.search(_UNUSED_WEIGHTS, name))
    if missing:
        raise ValueError(
            f"Expected all weights of an image-text encoder ({config.model_type}) in {name_or_path}, but "
            f"{len(missing)} are not there, such as {missing[0]!r}. Give a model for retrieval, not one for captions."
        )
    return encoder


def is_hub_id(name: Any) -> bool:
    """Tell whether a name reads as a Hub id, "owner/name", and is no folder here."""
    return isinstance(name, str) and _HUB_ID.fullmatch(name) is not None and not Path(name).exists()


@contextmanager
def without_local_encoder(config: HyCIRConfig) -> Iterator[None]:
    """Take a local encoder's name out of a config while it is written for others."""
    name = config.encoder_name_or_path
    config.encoder_name_or_path = name if is_hub_id(name) else None
    try:
        yield
    finally:
        config.encoder_name_or_path = name


def _frozen(loaded: Any) -> Any:
    """Freeze the encoder of a model, or of the (model, loading info) that `from_pretrained` may give."""
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    model.encoder.requires_grad_(False)
    model.encoder.eval()
    return loaded


def _mark_initialized(encoder: PreTrainedModel) -> None:
    """Tell transformers to leave a given encoder's weights alone when it initialises the mapper's."""
    for module in encoder.modules():
        module._is_hf_initialized = True
    for tensor in (*encoder.parameters(), *encoder.buffers()):
        tensor._is_hf_initialized = True


def _read_split_weights(folder: Any, config: HyCIRConfig, hub_kwargs: dict[str, Any]) -> dict[str, Tensor]:
    """Read a mapper saved alone and the encoder that it was trained on, as one state dict."""
    beside = Path(str(folder)) / str(config.encoder_name_or_path)
    source = str(beside) if beside.is_dir() else str(config.encoder_name_or_path)
    own = {name: value for name, value in hub_kwargs.items() if name not in ("revision", "subfolder")}
    try:
        encoder = _load_encoder(source, **own)
    except OSError as error:
        raise OSError(
            f"The mapper in {folder} was saved without its encoder, which should be at {source}, but cannot be read "
            f"there. Pass its place as from_pretrained(..., encoder_name_or_path=...). ({error})"
        ) from error
    found = _fingerprint_of(encoder.config, sorted(encoder.state_dict().items()))
    if found != config.encoder_fingerprint:
        raise ValueError(
            f"The mapper in {folder} was trained on an encoder with fingerprint {config.encoder_fingerprint}, but the "
            f"one at {source} has {found}. Restore that encoder, or train the mapper again on this one."
        )
    weights = load_file(cached_file(folder, SAFE_WEIGHTS_NAME, **hub_kwargs))
    return weights | {f"encoder.{name}": value for name, value in encoder.state_dict().items()}


def _fingerprint_of(encoder_config: Any, tensors: list[tuple[str, Tensor]]) -> str:
    """Hash an encoder's weights (as bfloat16) and the config values that change features."""
    digest = hashlib.sha256()
    for config in (encoder_config, encoder_config.text_config, encoder_config.vision_config):
        digest.update(repr([(key, getattr(config, key, None)) for key in _BEHAVIOUR_KEYS]).encode())
    for name, tensor in tensors:
        if tensor.is_meta:
            raise ValueError(
                f"The encoder's fingerprint needs all weights in memory, but {name} is offloaded. Load the model "
                "without offloading first."
            )
        value = tensor.detach().cpu()
        value = value.to(torch.bfloat16) if value.is_floating_point() else value
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


AutoModel.register(HyCIRConfig, HyCIRModel, exist_ok=True)
HyCIRModel.register_for_auto_class("AutoModel")
