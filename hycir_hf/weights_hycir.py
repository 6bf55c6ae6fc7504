"""A model's weights: saving and loading with or without the encoder, freezing, and the encoder's fingerprint."""

import contextlib
import copy
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from .configuration_hycir import HUB_KEYS, HyCIRConfig, PrivateByDefault, config_fields
from .encoders_hycir import full_tensor, load_encoder
from .names import is_hub_id

_BEHAVIOUR_KEYS = ("model_type", "hidden_act", "num_attention_heads", "patch_size", "image_size", "eos_token_id")
"""Config values that change features but no weight. They are part of an encoder's fingerprint."""


class HyCIRPreTrainedModel(PrivateByDefault, PreTrainedModel):
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
            ValueError: If weights lie on the meta device, and accelerate has not offloaded them.
        """
        if self._fingerprint is not None and (_is_quantized(self) or _is_quantized(self.encoder)):
            return self._fingerprint[1]
        tensors = [t for t in self.encoder.state_dict().values() if torch.is_tensor(t) and not t.is_meta]
        state = tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)
        if self._fingerprint is None or self._fingerprint[0] != state:
            self._fingerprint = (state, fingerprint_of(self.encoder.config, _full_state_dict(self.encoder)))
        return self._fingerprint[1]

    def save_pretrained(self, save_directory: str | os.PathLike, *, mapper_only: bool = False, **kwargs: Any) -> None:
        """Save the model as safetensors in one folder.

        Args:
            save_directory (`str` or `Path`): The folder.
            mapper_only (`bool`): Leave the encoder out: a few MB. `from_pretrained` then reads the encoder again from
                `config.encoder_name_or_path` and checks its fingerprint.
            **kwargs: As in `PreTrainedModel.save_pretrained`.

        Raises:
            ValueError: With `mapper_only`, if `config.encoder_name_or_path` is not set, or is a local folder and the
                save is pushed, or the model is quantized. Without, if the encoder alone is quantized.
        """
        name = self.config.encoder_name_or_path
        if mapper_only and (not name or (kwargs.get("push_to_hub") and not is_hub_id(name))):
            raise ValueError(
                "mapper_only=True needs the encoder's Hub id or folder in config.encoder_name_or_path (for a push, its "
                f"Hub id), but that is {name!r}. Save the encoder and set it to that place, or save the whole model."
            )
        if _is_quantized(self.encoder) or (mapper_only and _is_quantized(self)):
            raise ValueError(
                "The encoder is quantized, so what is saved here could not be loaded. Load the model or encoder "
                "without quantization_config, give it this mapper's state dict, and save that."
            )
        state_dict = kwargs.pop("state_dict", None) or _full_state_dict(self)
        if mapper_only:
            state_dict = {name: value for name, value in state_dict.items() if name.startswith("mapper.")}
        self.config.encoder_fingerprint = self.encoder_fingerprint() if mapper_only else None
        self.config.mapper_only = mapper_only
        try:
            super().save_pretrained(save_directory, state_dict=state_dict, **kwargs)
        finally:
            self.config.mapper_only = False
        if kwargs.get("is_main_process", True):
            _follow_umask(Path(save_directory))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a model that was saved whole or with `mapper_only=True`.

        Args:
            pretrained_model_name_or_path (`str` or `Path`): Folder or Hub id.
            *args: As in `PreTrainedModel.from_pretrained`.
            **kwargs: As in `PreTrainedModel.from_pretrained`. `encoder_name_or_path` says where the encoder of a
                `mapper_only` save lies now, if it has moved. Other fields of `HyCIRConfig` override the saved ones.

        Raises:
            OSError: If a mapper's encoder cannot be read.
            ValueError: If a mapper's encoder is not the one that the mapper was trained on.
        """
        hub_kwargs: dict[str, Any] = {k: v for k, v in kwargs.items() if k in HUB_KEYS}
        config, fields = kwargs.get("config"), {}
        if not isinstance(config, PreTrainedConfig) and pretrained_model_name_or_path is not None:
            fields = {k: v for k, v in kwargs.items() if k in config_fields()}
            config = HyCIRConfig.from_pretrained(config or pretrained_model_name_or_path, **hub_kwargs, **fields)
        if config is None or not config.mapper_only or pretrained_model_name_or_path is None:
            return frozen(super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs))
        config = copy.deepcopy(config)
        config.mapper_only = False
        config.encoder_name_or_path = kwargs.pop("encoder_name_or_path", config.encoder_name_or_path)
        kwargs["config"] = config
        variant = kwargs.pop("variant", None)
        kwargs["state_dict"] = _read_split_weights(pretrained_model_name_or_path, config, variant, hub_kwargs)
        if kwargs.setdefault("dtype", kwargs.pop("torch_dtype", "auto")) == "auto":
            kwargs["dtype"] = kwargs["state_dict"]["mapper.output.weight"].dtype
        for name in ("use_safetensors", *hub_kwargs, *fields):
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
    if _is_quantized(model) or _is_quantized(model.encoder):
        # Now, and never again: after a forward pass, bitsandbytes' 4-bit layers give and keep wrong scales (0.50, CPU).
        model.encoder_fingerprint()
    return loaded


def _is_quantized(module: nn.Module) -> bool:
    return getattr(module, "hf_quantizer", None) is not None


def mark_initialized(encoder: PreTrainedModel) -> PreTrainedModel:
    """Tell transformers not to touch a given encoder's weights when it initialises the mapper's."""
    for part in (*encoder.modules(), *encoder.parameters(), *encoder.buffers()):
        part._is_hf_initialized = True
    return encoder


def fingerprint_of(encoder_config: Any, state_dict: dict[str, Any]) -> str:
    """Hash an encoder's weights (as bfloat16) and the config values that change features: 16 hex digits."""
    digest = hashlib.sha256()
    for config in (encoder_config, encoder_config.text_config, encoder_config.vision_config):
        digest.update(repr([(key, getattr(config, key, None)) for key in _BEHAVIOUR_KEYS]).encode())
    for name, value in sorted(state_dict.items()):
        for part in value if isinstance(value, tuple) else (value,):  # dynamic quantization's weight and bias
            tensor = (
                part if torch.is_tensor(part) else torch.frombuffer(bytearray(repr(part), "utf-8"), dtype=torch.uint8)
            )
            tensor = tensor.dequantize() if tensor.is_quantized else tensor.detach().cpu()
            tensor = tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _full_state_dict(module: nn.Module) -> dict[str, Any]:
    """Return a module's state dict. Weights that accelerate has offloaded are read back."""
    state = module.state_dict()
    return {
        name: full_tensor(module, name, value) if torch.is_tensor(value) else value for name, value in state.items()
    }


def _follow_umask(folder: Path) -> None:
    """Give weights the mode of the config beside them. safetensors writes files that no other user may read."""
    for path in folder.glob("*.safetensors"):
        with contextlib.suppress(PermissionError):  # another user's, from an earlier save
            shutil.copymode(folder / CONFIG_NAME, path)


def _read_split_weights(
    folder: Any, config: HyCIRConfig, variant: str | None, hub_kwargs: dict[str, Any]
) -> dict[str, Tensor]:
    """Read a mapper that was saved alone, and the encoder that it was trained on, as one state dict.

    Args:
        folder (`str` or `Path`): The mapper's folder or Hub id. A relative encoder folder is looked up from there.
        config (`HyCIRConfig`): The mapper's.
        variant (`str`, *optional*): As in `from_pretrained`, of the mapper's files.
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
    found = fingerprint_of(encoder.config, encoder.state_dict())
    if found != config.encoder_fingerprint:
        raise ValueError(
            f"The mapper in {folder} was trained on an encoder with the fingerprint {config.encoder_fingerprint}, but "
            f"the encoder at {source} has {found}. Restore that encoder, or train the mapper again on this one."
        )
    weights = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    for path in _find_weights(folder, variant, hub_kwargs):
        weights |= load_file(path)
    return weights


def _find_weights(folder: Any, variant: str | None, hub_kwargs: dict[str, Any]) -> list[str]:
    """Find the file of weights in a folder or repository, or its shards."""
    whole, index = (_with_variant(name, variant) for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))
    path = cached_file(folder, whole, _raise_exceptions_for_missing_entries=False, **hub_kwargs)
    if path is not None:
        return [path]
    return get_checkpoint_shard_files(folder, cached_file(folder, index, **hub_kwargs), **hub_kwargs)[0]


def _with_variant(name: str, variant: str | None) -> str:
    stem, _, suffix = name.rpartition(".")
    return name if variant is None else f"{stem}.{variant}.{suffix}"
