"""HyCIR's model: a frozen image-text encoder and a mapper from image features to pseudo-word tokens.

Paper: Model architecture. The mapper turns a reference image's feature into K pseudo-word tokens. They take the places
of the prompt's placeholders ("a photo of [$ $ $ $], query text") before the frozen text encoder runs.

Shapes: B rows, I reference images (B unless rows have several), K pseudo tokens, L text length, D joint width, H text
hidden width.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from .configuration_hycir import RESERVED_PLACEHOLDER_ID, HyCIRConfig, split_arguments
from .encoders_hycir import adapter_for, image_inputs_of, load_encoder
from .losses import triplet_loss, zero_shot_loss
from .mapper_hycir import PseudoTokenMapper
from .outputs_hycir import HyCIROutput, features_of, further_outputs
from .weights_hycir import HyCIRPreTrainedModel, frozen, mark_initialized

logger = logging.getLogger(__name__)


class HyCIRModel(HyCIRPreTrainedModel):
    """A frozen image-text encoder with a trainable mapper (paper: Model architecture).

    SigLIP 2's images have two further inputs, `pixel_attention_mask` and `spatial_shapes`. Pass them as the processor
    gives them, by name, wherever `pixel_values` go. The methods take them as `**image_inputs`.

    Args:
        config (`HyCIRConfig`): Configuration.
        encoder (`PreTrainedModel`, *optional*): The encoder to use. By default, one with random weights is built from
            `config.encoder_config`.
    """

    def __init__(self, config: HyCIRConfig, encoder: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self._adapter = adapter_for(config.encoder_config)
        self.encoder = self._adapter.build(config.encoder_config) if encoder is None else mark_initialized(encoder)
        self.mapper = PseudoTokenMapper(config)
        self._adapter.allow_tracing(self.encoder)
        self.post_init()
        frozen(self)

    @classmethod
    def from_encoder(
        cls,
        encoder: str | Path | PreTrainedModel,
        num_pseudo_tokens: int = 4,
        *,
        dtype: torch.dtype | str | None = None,
        attn_implementation: str | None = None,
        **kwargs: Any,
    ) -> "HyCIRModel":
        """Build a model from a pretrained encoder and a fresh mapper, to be trained.

        The first composed query logs a warning if the mapper was neither trained nor loaded until then.

        Args:
            encoder (`str`, `Path` or `PreTrainedModel`): Hub id, folder, or the encoder itself, which is frozen.
            num_pseudo_tokens (`int`): K.
            dtype (`torch.dtype`, *optional*): Precision of encoder and mapper. By default the dtype of an encoder that
                is given itself, and otherwise float32, in which a mapper trains best.
            attn_implementation (`str`, *optional*): The encoder's attention, for example "sdpa".
            **kwargs: Further fields of `HyCIRConfig`, and arguments of the encoder's `from_pretrained`: `revision`,
                `token`, `cache_dir`, `device_map`, `quantization_config` and so on.

        Returns:
            `HyCIRModel`: In eval mode.

        Raises:
            TypeError: If an argument is unknown, or says how to load an encoder that is given itself.
        """
        _, loading, fields = split_arguments(kwargs)
        dtype = loading.pop("torch_dtype", None) if dtype is None else dtype
        if not isinstance(encoder, PreTrainedModel):
            loading |= {} if attn_implementation is None else {"attn_implementation": attn_implementation}
            encoder = load_encoder(str(encoder), dtype=dtype or torch.float32, **loading)
        elif loading:
            raise TypeError(f"from_encoder() got a loaded encoder, so it cannot use {sorted(loading)}. Leave them out.")
        else:
            encoder = encoder if dtype is None else encoder.to(dtype)
            if attn_implementation is not None:
                encoder.set_attn_implementation(attn_implementation)
        place = encoder.name_or_path
        if loading.get("subfolder"):  # a Hub id cannot name it, so a mapper_only save is refused
            place = str(Path(place, loading["subfolder"])) if Path(place).is_dir() else None
        fields.setdefault("encoder_name_or_path", place or None)
        config = HyCIRConfig(encoder.config, num_pseudo_tokens, **fields)
        model = cls(config, encoder=encoder)
        model.mapper.is_fresh = True
        model.mapper.to(device=None if encoder.device.type == "meta" else encoder.device, dtype=encoder.dtype)
        return model.eval()

    @can_return_tuple
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
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> HyCIROutput:
        """Compose the queries and, with `return_loss`, score them against their targets.

        With targets the loss is L_triplet (Eq. 3). Without targets it is L_ZS (Eq. 2): the reference images' own
        features are then the targets of their prompts.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, L)`): Prompts with K placeholders for each reference image.
            attention_mask (`torch.LongTensor` of shape `(B, L)`, *optional*): 1 for tokens, 0 for padding.
            pixel_values (`torch.FloatTensor` of shape `(I, 3, height, width)`): The reference images, or
            image_features (`torch.FloatTensor` of shape `(I, D)`): their features, not normalised.
            target_pixel_values (`torch.FloatTensor` of shape `(B, 3, height, width)`, *optional*): The targets, or
            target_features (`torch.FloatTensor` of shape `(B, D)`): their features. They are normalised here.
            pixel_attention_mask (*optional*): SigLIP 2's further input for the reference images.
            spatial_shapes (*optional*): Likewise. Both are named: transformers' trainer drops columns that are not.
            return_loss (`bool`): Whether to compute the loss.
            output_hidden_states (`bool`, *optional*): Whether to return the text encoder's hidden states of the
                prompts. The images' come from `get_image_features`. The default is the config's.
            output_attentions (`bool`, *optional*): Likewise its attentions, which "eager" attention alone gives.
            return_dict (`bool`, *optional*): `False` gives the output as a tuple. The default is the config's.

        Raises:
            ValueError: If inputs are missing, or placeholders, images and targets do not match in number.
        """
        if input_ids is None:
            raise ValueError("HyCIRModel needs composed prompts as input_ids. Make them with HyCIRProcessor.")
        if image_features is None:
            image_inputs = image_inputs_of(pixel_attention_mask, spatial_shapes)
            image_features = self._encode_images(pixel_values, **image_inputs).pooler_output  # (I, D)
        pseudo_tokens = self.get_pseudo_tokens(image_features=image_features)  # (I, K, H)
        wanted = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        further = {name: getattr(self.config, name) if value is None else value for name, value in wanted.items()}
        prompts = self._encode_prompts(input_ids, attention_mask, pseudo_tokens, **further)
        query_features = F.normalize(prompts.pooler_output, dim=-1)  # (B, D)
        if target_features is None and target_pixel_values is not None:
            target_features = self._encode_images(target_pixel_values).pooler_output  # (B, D)
        loss_function = zero_shot_loss if target_features is None else triplet_loss
        targets = image_features if target_features is None else target_features
        targets = F.normalize(targets.to(query_features), dim=-1)  # (B, D)
        logits, loss = None, None
        logit_scale = self.logit_scale.to(query_features.device)
        if targets.shape[0] == query_features.shape[0]:
            logits = logit_scale * query_features @ targets.T  # (B, B)
        if return_loss:
            # In evaluation the processes' last batches may differ in size, and a gather would wait forever.
            loss = loss_function(query_features, targets, logit_scale, gather=self.training)
        states = (prompts.hidden_states, prompts.attentions)
        return HyCIROutput(loss, logits, query_features, targets, pseudo_tokens, *states)

    def get_image_features(
        self,
        pixel_values: Tensor,
        normalize: bool = True,
        return_dict: bool | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        **image_inputs: Tensor | None,
    ) -> Tensor | BaseModelOutputWithPooling:
        """Encode images (paper: f_img).

        transformers' own models return an output object. This returns the features alone, unless more is asked for.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(I, 3, height, width)`): Images from the processor.
            normalize (`bool`): `False` gives the features that `get_pseudo_tokens` takes as `image_features`.
            return_dict (`bool`, *optional*): `True` gives the encoder's output object with the features as its
                `pooler_output`, `False` gives it as a tuple.
            output_hidden_states (`bool`): Whether to return the object, with the hidden states of all layers.
            output_attentions (`bool`): Likewise with the attentions, which "eager" attention alone gives.
            **image_inputs: SigLIP 2's further inputs.

        Returns:
            `torch.FloatTensor` of shape `(I, D)`: Unit L2 norm, unless `normalize=False`.
        """
        further = further_outputs(output_hidden_states, output_attentions)
        output = self._encode_images(pixel_values, **image_inputs_of(**image_inputs), **further)
        return features_of(output, normalize, True if further and return_dict is None else return_dict)

    def get_text_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        normalize: bool = True,
        return_dict: bool | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Tensor | BaseModelOutputWithPooling:
        """Encode plain texts, `(B, L)`, into `(B, D)`. The further arguments are those of `get_image_features`.

        Raises:
            ValueError: If the texts hold placeholders. Those are for `get_composed_features`.
        """
        if self.config.placeholder_token_id == RESERVED_PLACEHOLDER_ID and not torch.compiler.is_compiling():
            found = int((input_ids == RESERVED_PLACEHOLDER_ID).sum())
            if found:
                raise ValueError(
                    f"get_text_features takes plain texts, but input_ids holds {found} placeholders. Make the texts "
                    "with processor(text=..., compose=False), or call get_composed_features."
                )
        further = further_outputs(output_hidden_states, output_attentions)
        output = self._adapter.text_output(self.encoder, input_ids, attention_mask, **further)
        return features_of(output, normalize, True if further and return_dict is None else return_dict)

    def get_pseudo_tokens(
        self, image_features: Tensor | None = None, pixel_values: Tensor | None = None, **image_inputs: Tensor | None
    ) -> Tensor:
        """Map reference images to pseudo-word tokens (paper: M(f_ref_img)).

        Args:
            image_features (`torch.FloatTensor` of shape `(I, D)`): From `get_image_features(normalize=False)`, or
            pixel_values (`torch.FloatTensor` of shape `(I, 3, height, width)`): the images themselves.
            **image_inputs: SigLIP 2's further inputs.

        Returns:
            `torch.FloatTensor` of shape `(I, K, H)`.
        """
        further = image_inputs_of(**image_inputs)
        if image_features is None:
            image_features = self._encode_images(pixel_values, **further).pooler_output  # (I, D)
        return self.mapper(image_features)  # (I, K, H)

    def get_composed_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        pseudo_tokens: Tensor | None = None,
        normalize: bool = True,
        **image_inputs: Tensor | None,
    ) -> Tensor:
        """Compose reference images and query texts into retrieval features (paper: f_composed).

        Args:
            input_ids (`torch.LongTensor` of shape `(B, L)`): Prompts with K placeholders for each reference image.
            attention_mask (`torch.LongTensor` of shape `(B, L)`, *optional*): 1 for tokens, 0 for padding.
            pixel_values (`torch.FloatTensor` of shape `(I, 3, height, width)`): Reference images, row by row, or
            image_features (`torch.FloatTensor` of shape `(I, D)`): their features, not normalised, or
            pseudo_tokens (`torch.FloatTensor` of shape `(I, K, H)`): what `get_pseudo_tokens` made of them.
            normalize (`bool`): Whether to bring the features to unit norm.
            **image_inputs: SigLIP 2's further inputs.

        Returns:
            `torch.FloatTensor` of shape `(B, D)`: Unit L2 norm, unless `normalize=False`.

        Raises:
            ValueError: If the placeholders are not `config.num_pseudo_tokens` times the reference images.
        """
        further = image_inputs_of(**image_inputs)
        if pseudo_tokens is None:
            pseudo_tokens = self.get_pseudo_tokens(image_features, pixel_values, **further)  # (I, K, H)
        features = self._encode_prompts(input_ids, attention_mask, pseudo_tokens).pooler_output  # (B, D)
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
        self._adapter.allow_tracing(self.encoder)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resize, as transformers does. Then `config.encoder_name_or_path` is `None`: no such encoder is saved yet."""
        before = self.get_input_embeddings().weight.shape[0]
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        if (size := embeddings.weight.shape[0]) != before:
            self._adapter.text_model(self.encoder).config.vocab_size = size
            self.encoder.config.text_config.vocab_size = size
            self.config.encoder_name_or_path = None
        return embeddings

    def train(self, mode: bool = True) -> "HyCIRModel":
        """Switch the mapper between training and evaluation. The frozen encoder stays in eval mode."""
        super().train(mode)
        self.encoder.eval()
        for module in self._adapter.text_model(self.encoder).modules():
            # A layer checkpoints only if its own flag says training. Its parts (dropout) stay in eval mode.
            if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
                module.training = mode
        return self

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        """Switch checkpointing. It acts on the text side, the only part of the encoder that gradients pass through."""
        super()._set_gradient_checkpointing(*args, **kwargs)
        self._adapter.text_model(self.encoder)._set_gradient_checkpointing(*args, **kwargs)
        self.train(self.training)

    def _encode_images(self, pixel_values: Tensor | None, **further: Any) -> BaseModelOutputWithPooling:
        """Encode images: features `(I, D)` as `pooler_output`, not normalised."""
        if pixel_values is None:
            raise ValueError(
                "HyCIRModel needs the reference images as pixel_values or image_features. Make pixel_values with "
                "HyCIRProcessor, or image_features with get_image_features(..., normalize=False)."
            )
        return self._adapter.image_output(self.encoder, pixel_values.to(self.dtype), **further)

    def _encode_prompts(
        self, input_ids: Tensor, attention_mask: Tensor | None, pseudo_tokens: Tensor, **further: Any
    ) -> BaseModelOutputWithPooling:
        """Run the text encoder on prompts whose placeholders become the pseudo tokens: features as `pooler_output`."""
        is_placeholder = input_ids == self.config.placeholder_token_id  # (B, L)
        if not torch.compiler.is_compiling():
            self._check_prompts(is_placeholder, pseudo_tokens)
        return self._adapter.prompt_output(
            self.encoder, input_ids, attention_mask, is_placeholder, pseudo_tokens, **further
        )

    def _check_prompts(self, is_placeholder: Tensor, pseudo_tokens: Tensor) -> None:
        """Warn of a fresh mapper. Raise ValueError if prompts `(B, L)` and pseudo tokens `(I, K, H)` do not match."""
        if self.mapper.is_fresh:
            self.mapper.is_fresh = False  # once is enough
            logger.warning(
                "The mapper has random weights, so composed features are meaningless. Train it (`hycir train`), or "
                "load a trained model with HyCIRModel.from_pretrained."
            )
        found, expected = int(is_placeholder.sum()), pseudo_tokens.shape[:2].numel()
        if found != expected:
            raise ValueError(
                f"input_ids holds {found} placeholders, but {pseudo_tokens.shape[0]} reference images need {expected}. "
                "Give each prompt its images, and make the prompts with a HyCIRProcessor whose num_pseudo_tokens is "
                f"{pseudo_tokens.shape[1]}."
            )


AutoModel.register(HyCIRConfig, HyCIRModel, exist_ok=True)
HyCIRModel.register_for_auto_class("AutoModel")
