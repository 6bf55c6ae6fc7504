"""Configuration of HyCIR: the frozen encoder's config and the mapper's sizes (paper: Model architecture)."""

import copy
import dataclasses
import difflib
import inspect
import os
from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from .names import is_hub_id, without_secrets

SUPPORTED_ENCODERS = (
    "clip",
    "blip",
    "siglip",
    "siglip2",
    "altclip",
    "chinese_clip",
    "metaclip_2",
    "vision-text-dual-encoder",
)
"""`model_type` of the encoders that HyCIR can read."""

MAPPER_ACTIVATIONS = ("relu", "gelu")
"""The activations of the mapper's blocks."""

RESERVED_PLACEHOLDER_ID = -1
"""An id that no tokenizer has. So no query text can contain it, and the encoder never looks it up."""

HUB_KEYS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
"""The arguments of `from_pretrained` that say where files are."""

LOADING_KEYS = (
    *(*HUB_KEYS, "allow_all_kernels", "attn_implementation", "device_map", "device_mesh", "disable_mmap"),
    *("distributed_config", "dtype", "experts_implementation", "fusion_config", "ignore_mismatched_sizes"),
    *("kernel_config", "key_mapping", "low_cpu_mem_usage", "max_memory", "offload_buffers", "offload_folder"),
    *("offload_state_dict", "quantization_config", "torch_dtype", "tp_plan", "tp_size", "tqdm_class"),
    *("trust_remote_code", "use_kernels", "use_safetensors", "variant", "weights_only"),
)
"""The arguments of `from_pretrained` that say how an encoder is loaded."""


class PrivateByDefault:
    """Makes a new repository private, whichever way it is pushed to."""

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload, as transformers does. A new repository is private unless `private=False`."""
        return super().push_to_hub(repo_id, **({"private": True} | kwargs))  # type: ignore[misc]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> Any:
        """Save, as transformers does. With `push_to_hub`, a new repository is private unless `private=False`."""
        further = {"private": True} if kwargs.get("push_to_hub") else {}
        return super().save_pretrained(str(save_directory), **(further | kwargs))  # type: ignore[misc]


class HyCIRConfig(PrivateByDefault, PreTrainedConfig):
    """Configuration of a `HyCIRModel`.

    It never stores a credential, such as a `token`. Arguments that only say where files are (`HUB_KEYS`) are dropped.

    Args:
        encoder_config (`PreTrainedConfig` or `dict`): The frozen encoder's config. Its `model_type` must be one of
            `SUPPORTED_ENCODERS`. `None` means CLIP ViT-B/32's.
        num_pseudo_tokens (`int`): K, the pseudo-word tokens of one reference image. At least 1 (paper: 4).
        placeholder_token_id (`int`): Id that marks a pseudo token's place in `input_ids`. No query text can contain the
            default, -1. An id of the encoder's vocabulary works as well.
        mapper_hidden_size (`int`): Width of the mapper's blocks.
        mapper_num_layers (`int`): Number of Linear-Dropout-ReLU blocks before the mapper's output layer.
        mapper_activation (`str`): Activation of the mapper's blocks: "relu" (Pic2Word) or "gelu" (SEARLE, LinCIR).
        mapper_dropout (`float`): Dropout rate of the mapper's blocks, in [0, 1).
        prompt (`str`): Template with exactly one `{image}` and one `{text}`.
        encoder_name_or_path (`str`, *optional*): Hub id or folder that the encoder came from. `mapper_only` saves read
            it again from there. A relative folder is looked up from the saved model's folder first.
        encoder_fingerprint (`str`, *optional*): The encoder's fingerprint when the mapper was saved alone.
        mapper_only (`bool`): Whether the weights beside this config are the mapper's alone.

    Raises:
        ValueError: If a value is outside its range, or the encoder's family is not supported.
    """

    model_type = "hycir"
    # The names and forms that transformers reads. Its Trainer does not collect the second's outputs.
    sub_configs = {"encoder_config": AutoConfig}  # noqa: RUF012
    keys_to_ignore_at_inference = ["pseudo_tokens", "hidden_states", "attentions"]  # noqa: RUF012
    attribute_map = {"projection_dim": "feature_size"}  # noqa: RUF012 - the name that other libraries ask for

    def __init__(
        self,
        encoder_config: PreTrainedConfig | dict[str, Any] | None = None,
        num_pseudo_tokens: int = 4,
        placeholder_token_id: int = RESERVED_PLACEHOLDER_ID,
        mapper_hidden_size: int = 512,
        mapper_num_layers: int = 2,
        mapper_dropout: float = 0.1,
        mapper_activation: str = "relu",
        prompt: str = "a photo of {image}, {text}",
        encoder_name_or_path: str | None = None,
        encoder_fingerprint: str | None = None,
        mapper_only: bool = False,
        **kwargs: Any,
    ) -> None:
        self.encoder_config = _as_encoder_config(encoder_config)
        self.num_pseudo_tokens = num_pseudo_tokens
        self.placeholder_token_id = placeholder_token_id
        self.mapper_hidden_size = mapper_hidden_size
        self.mapper_num_layers = mapper_num_layers
        self.mapper_dropout = mapper_dropout
        self.mapper_activation = mapper_activation
        self.prompt = prompt
        self.encoder_name_or_path = encoder_name_or_path
        self.encoder_fingerprint = encoder_fingerprint
        self.mapper_only = mapper_only
        further = {name: value for name, value in without_secrets(kwargs).items() if name not in HUB_KEYS}
        super().__init__(**(further | {"tie_word_embeddings": False}))
        self._check()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build from a dictionary, as `PreTrainedConfig.from_dict` does.

        Raises:
            ValueError: If a value is outside its range, or it is another model's config. An encoder's would give a new
                mapper on a default CLIP.
        """
        found = config_dict.get("model_type", cls.model_type)
        if found != cls.model_type:
            raise ValueError(
                f"This is a {found!r} model, not a HyCIR model. An encoder alone has no mapper: train one with "
                "`hycir train --encoder`, or put a new one on it with HyCIRModel.from_encoder."
            )
        built = super().from_dict(config_dict, **kwargs)
        (built[0] if isinstance(built, tuple) else built)._check()  # `kwargs` are set after `__init__`
        return built

    def to_dict(self) -> dict[str, Any]:
        """Return the values as a dictionary, without credentials."""
        return without_secrets(super().to_dict())

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save, as transformers does. Only a mapper that is saved alone needs, and keeps, a local encoder's folder."""
        name = self.encoder_name_or_path
        self.encoder_name_or_path = name if self.mapper_only or is_hub_id(name) else None
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.encoder_name_or_path = name

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """Return the config of the encoder's text side. Arguments are as in `PreTrainedConfig.get_text_config`."""
        return self.encoder_config.text_config

    @property
    def text_hidden_size(self) -> int:
        """H, the width of the text encoder's token embeddings."""
        text_config = self.encoder_config.text_config
        return getattr(text_config, "embedding_size", None) or text_config.hidden_size

    @property
    def feature_size(self) -> int:
        """D, the width of the joint space of image and text features."""
        config = self.encoder_config
        if config.model_type == "blip":
            return config.image_text_hidden_size
        if config.model_type in ("siglip", "siglip2"):
            return config.vision_config.hidden_size
        return config.projection_dim

    def _check(self) -> None:
        """Collect all complaints about the values, then raise once."""
        vocab_size = self.encoder_config.text_config.vocab_size
        complaints = [
            f"{name} must be {expected}, but it is {getattr(self, name)!r}"
            for name, expected, is_good in (
                ("num_pseudo_tokens", "an integer of at least 1", _is_int(self.num_pseudo_tokens, 1)),
                ("mapper_hidden_size", "an integer of at least 1", _is_int(self.mapper_hidden_size, 1)),
                ("mapper_num_layers", "an integer of at least 0", _is_int(self.mapper_num_layers, 0)),
                ("mapper_dropout", "in [0, 1)", 0 <= self.mapper_dropout < 1),
                ("mapper_activation", f"one of {MAPPER_ACTIVATIONS}", self.mapper_activation in MAPPER_ACTIVATIONS),
                (
                    "placeholder_token_id",
                    f"{RESERVED_PLACEHOLDER_ID} or an id of the encoder's vocabulary (0 to {vocab_size - 1})",
                    _is_int(self.placeholder_token_id, RESERVED_PLACEHOLDER_ID)
                    and self.placeholder_token_id < vocab_size,
                ),
                ("prompt", "a template with exactly one {image} and one {text}", is_prompt(self.prompt)),
            )
            if not is_good
        ]
        if complaints:
            raise ValueError(f"HyCIRConfig: {'; '.join(complaints)}. Correct these values.")


def is_prompt(prompt: str) -> bool:
    """Tell whether a prompt template has exactly one `{image}` and one `{text}`."""
    return isinstance(prompt, str) and prompt.count("{image}") == 1 and prompt.count("{text}") == 1


def _is_int(value: Any, minimum: int) -> bool:
    """Tell whether a value is an integer (not a bool) of at least `minimum`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def _as_encoder_config(encoder_config: PreTrainedConfig | dict[str, Any] | None) -> PreTrainedConfig:
    """Build the encoder's config from what was given, without its `trust_remote_code`.

    A saved `trust_remote_code: true` would ask everyone who loads the model for trust that it does not need.
    """
    if encoder_config is None:
        encoder_config = AutoConfig.for_model("clip")
    values = copy.deepcopy(encoder_config) if isinstance(encoder_config, dict) else encoder_config.to_dict()
    model_type = values.pop("model_type", None)
    if model_type not in SUPPORTED_ENCODERS:
        raise ValueError(
            f"HyCIR cannot read an encoder whose model_type is {model_type!r}. Choose one of "
            f"{list(SUPPORTED_ENCODERS)}, or join an image model and a text model with "
            "transformers.VisionTextDualEncoderModel."
        )
    is_dict = isinstance(encoder_config, dict)
    config: Any = AutoConfig.for_model(model_type, **values) if is_dict else copy.deepcopy(encoder_config)
    for part in (config, config.text_config, config.vision_config):
        part.__dict__.pop("trust_remote_code", None)
        part._name_or_path = ""  # `encoder_name_or_path` says it. A private folder must not be part of every save
    return config


def config_fields() -> set[str]:
    """Name the fields of `HyCIRConfig` that a user may set."""
    names = {*inspect.signature(HyCIRConfig.__init__).parameters, *(f.name for f in dataclasses.fields(HyCIRConfig))}
    return (names | {"output_attentions"}) - {"self", "kwargs", "dtype", "encoder_fingerprint", "mapper_only"}


def split_arguments(arguments: Mapping[str, Any], own: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Split the further arguments of a `from_encoder` by where they go.

    Args:
        arguments (`Mapping`): The arguments by name.
        own (`Mapping`, *optional*): Its keys are the caller's own arguments.

    Returns:
        `list[dict]`: The caller's own, those of the encoder's `from_pretrained`, and the fields of `HyCIRConfig`.

    Raises:
        TypeError: If a name is none of them.
    """
    groups = [set(own or ()), set(LOADING_KEYS), config_fields()]
    known = set().union(*groups)
    for name in arguments:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), 1)
            remedy = f"Did you mean {near[0]!r}?" if near else "Give a field of HyCIRConfig or a loading argument."
            raise TypeError(f"from_encoder() got an unexpected keyword argument {name!r}. {remedy}")
    return [{name: value for name, value in arguments.items() if name in group} for group in groups]


AutoConfig.register("hycir", HyCIRConfig, exist_ok=True)
HyCIRConfig.register_for_auto_class()
