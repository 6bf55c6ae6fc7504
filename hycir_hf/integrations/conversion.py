"""Checkpoints of the original Pic2Word, SEARLE, LinCIR and BLIP code, converted to HyCIR folders.

| layout | written by | what it holds |
|---|---|---|
| pic2word | google-research/composed_image_retrieval | the mapper (IM2TEXT), most often also CLIP in OpenAI's layout |
| phi | miccunifi/SEARLE, navervision/lincir | the mapper (Phi) alone |
| blip | salesforce/LAVIS, salesforce/BLIP | BLIP for image-text retrieval, without a mapper. A fresh one is added |
"""

import math
import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, BlipForImageTextRetrieval, CLIPModel

from ..files import check_new_folder
from ..modeling_hycir import HyCIRModel
from ..names import resolve_model
from ..processing_hycir import HyCIRProcessor

_PROMPT_OF_LAYOUT = {"phi": "a photo of {image} that {text}"}  # SEARLE's and LinCIR's wording

_CLIP_NAMES = (
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
    (r"\.attn\.", ".self_attn."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
_CLIP_LEFT_OUT = r"^(input_resolution|context_length|vocab_size)$"

_BLIP_NAMES = (
    (r"^visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^visual_encoder\.pos_embed$", "vision_model.embeddings.position_embedding"),
    (r"^visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual_encoder\.norm\.", "vision_model.post_layernorm."),
    (r"^visual_encoder\.blocks\.", "vision_model.encoder.layers."),
    (r"\.attn\.qkv\.", ".self_attn.qkv."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
    (r"\.norm([12])\.", r".layer_norm\1."),
)
# Momentum copies, queues and buffers serve only the original's training.
_BLIP_LEFT_OUT = (
    r"^(visual_encoder_m|text_encoder_m|vision_proj_m|text_proj_m)\.|_queue$|^queue_ptr$|^temp$|position_ids$"
)
_BLIP_EPSILONS = (1e-6, 1e-12)  # of LAVIS' image and text encoders; transformers' default for the first is 1e-5


def convert_checkpoint(
    checkpoint: str | os.PathLike, output: str | os.PathLike, encoder: str | os.PathLike, prompt: str | None = None
) -> str:
    """Convert a checkpoint of the original Pic2Word, SEARLE, LinCIR or BLIP code to a HyCIR folder.

    The checkpoint is read with `weights_only=True`, so no code in it runs.

    Args:
        checkpoint (`str` or `Path`): The `.pt` or `.pth` file.
        output (`str` or `Path`): Folder to write model and processor to. It must be new or empty.
        encoder (`str` or `Path`): Hub id or folder of the encoder in transformers' format, such as
            "openai/clip-vit-large-patch14" or "Salesforce/blip-itm-base-coco". It gives the config, tokenizer and image
            processor, and also the encoder's weights if the checkpoint holds none.
        prompt (`str`, *optional*): Prompt template. The default is the original's.

    Returns:
        `str`: The layout that was found: "pic2word", "phi" or "blip". The mapper of a "blip" checkpoint is untrained.
        Do not convert a phi that LinCIR trained with `--l2_normalize`: this model does not normalise, and the file does
        not tell.

    Raises:
        ValueError: If the file has none of the layouts, it was trained with another encoder, or `output` is not empty.
    """
    check_new_folder(output)
    resolve_model(str(encoder), "encoder")
    stored = _read(checkpoint)
    layout = find_layout(stored)
    prompt = prompt or _PROMPT_OF_LAYOUT.get(layout, "a photo of {image}, {text}")
    if layout == "blip":
        model = HyCIRModel.from_encoder(_blip_encoder(stored.get("model", stored), encoder), prompt=prompt)
    else:
        mapper = _mapper_weights(stored, layout)
        source = _clip_encoder(stored["state_dict"], encoder) if stored.get("state_dict") else str(encoder)
        model = HyCIRModel.from_encoder(source, num_pseudo_tokens=1, prompt=prompt, **_mapper_fields(mapper, layout))
        _load(model.mapper, mapper, f"mapper of {checkpoint}", encoder)
    processor = HyCIRProcessor.from_encoder(
        str(encoder), num_pseudo_tokens=model.config.num_pseudo_tokens, prompt=prompt
    )
    model.save_pretrained(Path(output))
    processor.save_pretrained(output)
    return layout


def find_layout(stored: dict[str, Any]) -> str:
    """Tell which layout a checkpoint's content has: "pic2word", "phi" or "blip".

    Raises:
        ValueError: If it is none of them.
    """
    if "state_dict_img2text" in stored:
        return "pic2word"
    if "Phi" in stored:
        return "phi"
    inner = stored.get("model", stored)
    if isinstance(inner, dict) and "visual_encoder.cls_token" in inner:
        return "blip"
    raise ValueError(
        "Expected a checkpoint of Pic2Word ('state_dict_img2text'), SEARLE or LinCIR ('Phi'), or BLIP retrieval "
        f"('visual_encoder.cls_token'), but found the keys {sorted(map(str, stored))[:8]}. Give the file that the "
        "original code saved."
    )


def _read(checkpoint: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint without running any code in it."""
    if not Path(checkpoint).is_file():
        raise ValueError(f"There is no checkpoint file {checkpoint}. Check the path.")
    try:
        stored = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # unpicklers raise nearly everything
        raise ValueError(
            f"{checkpoint} is damaged, or holds more than tensors and plain values ({type(error).__name__}). Give the "
            "file that the original code saved. If you trust the file, load it yourself and save its state dicts again "
            "with torch.save."
        ) from error
    if not isinstance(stored, dict):
        raise ValueError(
            f"Expected a dict in {checkpoint}, but found {type(stored).__name__}. Give the file that the original code "
            "saved."
        )
    return stored


def _mapper_weights(stored: dict[str, Any], layout: str) -> dict[str, Tensor]:
    """The weights of the original mapper under `PseudoTokenMapper`'s names, in float32."""
    key = "state_dict_img2text" if layout == "pic2word" else "Phi"
    if not isinstance(stored[key], dict) or not all(isinstance(value, Tensor) for value in stored[key].values()):
        raise ValueError(
            f"Expected a mapper's weights under {key!r}, but found {type(stored[key]).__name__}. Give the file that "
            "the original code saved."
        )
    state = _plain(stored[key])
    if layout == "pic2word":
        renamed = {}
        for name, value in state.items():
            block = re.fullmatch(r"layers\.(\d+)\.0\.(weight|bias)", name)
            renamed[f"blocks.{3 * int(block[1])}.{block[2]}" if block else name.replace("fc_out", "output")] = value
        return renamed
    last = max((int(name.split(".")[1]) for name in state if re.match(r"layers\.\d+\.", name)), default=0)
    return {name.replace(f"layers.{last}.", "output.").replace("layers.", "blocks."): v for name, v in state.items()}


def _mapper_fields(mapper: dict[str, Tensor], layout: str) -> dict[str, Any]:
    """The config fields of a mapper with these weights."""
    blocks = [value for name, value in mapper.items() if name.startswith("blocks.") and name.endswith(".weight")]
    return {
        "mapper_num_layers": len(blocks),
        "mapper_hidden_size": blocks[0].shape[0] if blocks else 1,
        "mapper_activation": "relu" if layout == "pic2word" else "gelu",
        "mapper_dropout": 0.1 if layout == "pic2word" else 0.5,  # the originals' own, for further training
    }


def _clip_encoder(state: dict[str, Tensor], encoder: str | os.PathLike) -> CLIPModel:
    """Build CLIP from weights in the layout of OpenAI's code."""
    weights: dict[str, Tensor] = {}
    for name, value in _plain(state).items():
        if re.search(_CLIP_LEFT_OUT, name):
            continue
        renamed = _rename(name, _CLIP_NAMES)
        if renamed.endswith("_projection.weight"):
            value = value.T.contiguous()
        if ".in_proj_" in renamed:  # queries, keys and values in one matrix
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                weights[renamed.replace("in_proj_", f"{part}_proj.")] = rows.contiguous()
        else:
            weights[renamed] = value
    model = CLIPModel(_config(encoder, "clip"))
    _load(model, weights, "CLIP", encoder)
    return model


def _blip_encoder(state: dict[str, Tensor], encoder: str | os.PathLike) -> BlipForImageTextRetrieval:
    """Build BLIP for image-text retrieval from LAVIS' weights. The trained temperature goes into the config."""
    config = _config(encoder, "blip")
    config.vision_config.layer_norm_eps, config.text_config.layer_norm_eps = _BLIP_EPSILONS
    if "temp" in state:
        config.logit_scale_init_value = -math.log(float(state["temp"]))
    kept = {name: value for name, value in _plain(state).items() if not re.search(_BLIP_LEFT_OUT, name)}
    model = BlipForImageTextRetrieval(config)
    _load(model, {_rename(name, _BLIP_NAMES): value for name, value in kept.items()}, "BLIP", encoder)
    return model


def _config(encoder: str | os.PathLike, model_type: str) -> Any:
    """Read the encoder's config and check its family."""
    config = AutoConfig.from_pretrained(str(encoder))
    if config.model_type != model_type:
        raise ValueError(
            f"The checkpoint holds a {model_type} encoder, but {encoder} is a {config.model_type!r} model. Give the "
            f"{model_type} model in transformers' format that has the checkpoint's sizes."
        )
    return config


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop the "module." that parallel training puts before each name, and make floating values float32."""
    return {
        name.removeprefix("module."): value.float() if value.is_floating_point() else value
        for name, value in state.items()
    }


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _load(module: torch.nn.Module, weights: dict[str, Tensor], what: str, encoder: str | os.PathLike) -> None:
    """Load weights that must fit exactly."""
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"The weights of the {what} do not fit {encoder}. Give the encoder that the checkpoint was trained with. "
            f"({error})"
        ) from error
