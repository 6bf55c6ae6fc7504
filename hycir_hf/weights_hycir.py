"""A model's weights: saving and loading with or without the encoder, freezing, and the encoder's fingerprint."""

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file

from .configuration_hycir import HUB_KEYS, HyCIRConfig
from .encoders_hycir import load_encoder
from .names import is_hub_id

_BEHAVIOUR_KEYS = ("model_type", "hidden_act", "num_attention_heads", "patch_size", "image_size", "eos_token_id")
"""Config values that change features but no weight. They are part of an encoder's fingerprint."""


class HyCIRPreTrainedModel(PreTrainedModel):
    """How `HyCIRModel` is saved and loaded: whole, or the mapper alone beside its encoder's name."""

    config_class = HyCIRConfig
    base_model_prefix = "hycir"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    # What really runs is the encoder, which checks the asked-for attention for itself.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _fingerprint: tuple[Any, str] | None = None

    def encoder_fingerprint(self) -> str:
        """Identify the frozen encoder: 16 hex digits of a SHA-256 of its weights and the behaviour of its config.

        Weights are hashed as bfloat16. So the same encoder has one fingerprint in float32 and bfloat16, and in float16
        if its file is in float16. Casting float32 weights to float16 may change it. The mapper has no part in it.

        Raises:
            ValueError: If weights lie on the meta device (offloaded).
        """
        tensors = sorted(self.encoder.state_dict().items())
        state = tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for _, t in tensors if not t.is_meta)
        if self._fingerprint is None or self._fingerprint[0] != state:
            self._fingerprint = (state, fingerprint_of(self.encoder.config, tensors))
        return self._fingerprint[1]

    def save_pretrained(self, save_directory: str | Path, *, mapper_only: bool = False, **kwargs: Any) -> None:
        """Save the model as safetensors in one folder.

        Args:
            save_directory (`str` or `Path`): The folder.
            mapper_only (`bool`): Leave the encoder out: a few MB. `from_pretrained` then reads the encoder again from
                `config.encoder_name_or_path` and checks its fingerprint.
            **kwargs: As in `PreTrainedModel.save_pretrained`.

        Raises:
            ValueError: With `mapper_only`, if `config.encoder_name_or_path` is not set.
        """
        if mapper_only and not self.config.encoder_name_or_path:
            raise ValueError(
                "mapper_only=True needs the encoder's Hub id or folder in config.encoder_name_or_path, which is not "
                "set. Save the encoder and set it to that folder, or save the whole model."
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
        """Upload the whole model with its code. Arguments are as in `PreTrainedModel.push_to_hub`.

        A new repository is private unless `private=False`. The name of a local encoder's folder is not uploaded. The
        processor has its own `push_to_hub`.
        """
        kwargs.setdefault("private", True)
        with without_local_encoder(self.config):
            return super().push_to_hub(repo_id, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a model that was saved whole or with `mapper_only=True`.

        Args:
            pretrained_model_name_or_path (`str` or `Path`): Folder or Hub id.
            *args: As in `PreTrainedModel.from_pretrained`.
            **kwargs: As in `PreTrainedModel.from_pretrained`. `encoder_name_or_path` says where the encoder of a
                `mapper_only` save lies now, if it has moved.

        Raises:
            OSError: If a mapper's encoder cannot be read.
            ValueError: If a mapper's encoder is not the one that the mapper was trained on.
        """
        hub_kwargs: dict[str, Any] = {k: v for k, v in kwargs.items() if k in HUB_KEYS}
        config = kwargs.get("config")
        if not isinstance(config, PreTrainedConfig) and pretrained_model_name_or_path is not None:
            config = HyCIRConfig.from_pretrained(config or pretrained_model_name_or_path, **hub_kwargs)
        if config is None or not config.mapper_only or pretrained_model_name_or_path is None:
            return frozen(super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs))
        config = copy.deepcopy(config)
        config.mapper_only = False
        config.encoder_name_or_path = kwargs.pop("encoder_name_or_path", config.encoder_name_or_path)
        kwargs["config"] = config
        kwargs["state_dict"] = _read_split_weights(pretrained_model_name_or_path, config, hub_kwargs)
        if kwargs.setdefault("dtype", kwargs.pop("torch_dtype", "auto")) == "auto":
            kwargs["dtype"] = kwargs["state_dict"]["mapper.output.weight"].dtype
        for name in ("use_safetensors", *hub_kwargs):
            kwargs.pop(name, None)
        loaded = frozen(super().from_pretrained(None, *args, **kwargs))
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.name_or_path = model.config.name_or_path = str(pretrained_model_name_or_path)
        return loaded

    def _init_weights(self, module: nn.Module) -> None:
        """Leave the mapper's layers at torch's own initialisation, as Pic2Word does."""
        if isinstance(module, nn.Linear) and not getattr(module.weight, "_is_hf_initialized", False):
            module.reset_parameters()


def frozen(loaded: Any) -> Any:
    """Freeze the encoder of a model, or of the (model, loading info) that `from_pretrained` may give."""
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    model.encoder.requires_grad_(False)
    model.encoder.eval()
    return loaded


def mark_initialized(encoder: PreTrainedModel) -> PreTrainedModel:
    """Tell transformers not to touch a given encoder's weights when it initialises the mapper's."""
    for part in (*encoder.modules(), *encoder.parameters(), *encoder.buffers()):
        part._is_hf_initialized = True
    return encoder


@contextmanager
def without_local_encoder(config: HyCIRConfig) -> Iterator[None]:
    """Hide `encoder_name_or_path` where it is a local folder, while a config is written for others."""
    name = config.encoder_name_or_path
    config.encoder_name_or_path = name if is_hub_id(name) else None
    try:
        yield
    finally:
        config.encoder_name_or_path = name


def fingerprint_of(encoder_config: Any, tensors: list[tuple[str, Tensor]]) -> str:
    """Hash an encoder's weights (as bfloat16) and the config values that change features: 16 hex digits.

    Raises:
        ValueError: If a weight lies on the meta device (offloaded). The message names it.
    """
    digest = hashlib.sha256()
    for config in (encoder_config, encoder_config.text_config, encoder_config.vision_config):
        digest.update(repr([(key, getattr(config, key, None)) for key in _BEHAVIOUR_KEYS]).encode())
    for name, tensor in tensors:
        if tensor.is_meta:
            raise ValueError(
                f"The encoder's fingerprint needs all weights in memory, but {name} is offloaded. Load the model "
                "without offloading."
            )
        value = tensor.detach().cpu()
        value = value.to(torch.bfloat16) if value.is_floating_point() else value
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _read_split_weights(folder: Any, config: HyCIRConfig, hub_kwargs: dict[str, Any]) -> dict[str, Tensor]:
    """Read a mapper that was saved alone, and the encoder that it was trained on, as one state dict.

    Args:
        folder (`str` or `Path`): The mapper's folder or Hub id. A relative encoder folder is looked up from there.
        config (`HyCIRConfig`): The mapper's.
        hub_kwargs (`dict`): The arguments of `HUB_KEYS` that `from_pretrained` was given.

    Raises:
        OSError: If the encoder cannot be read.
        ValueError: If the encoder is not the one that the mapper was trained on.
    """
    beside = Path(str(folder)) / str(config.encoder_name_or_path)
    source = str(beside) if beside.is_dir() else str(config.encoder_name_or_path)
    shared = {name: value for name, value in hub_kwargs.items() if name not in ("revision", "subfolder")}
    try:
        encoder = load_encoder(source, **shared)
    except OSError as error:
        raise OSError(
            f"The encoder of the mapper in {folder} cannot be read. The mapper was saved without it, and expects it at "
            f"{source}. Pass its place: from_pretrained(..., encoder_name_or_path=...). ({error})"
        ) from error
    found = fingerprint_of(encoder.config, sorted(encoder.state_dict().items()))
    if found != config.encoder_fingerprint:
        raise ValueError(
            f"The mapper in {folder} was trained on an encoder with the fingerprint {config.encoder_fingerprint}, but "
            f"the encoder at {source} has {found}. Restore that encoder, or train the mapper again on this one."
        )
    weights = load_file(cached_file(folder, SAFE_WEIGHTS_NAME, **hub_kwargs))
    return weights | {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
