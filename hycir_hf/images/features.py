"""`hycir features`: from paths to a feature cache, in one process, under `accelerate launch`, or as a job array."""

import os
from pathlib import Path
from typing import Any

import torch

from ..modeling_hycir import HyCIRModel
from ..processing_hycir import HyCIRProcessor
from .feature_cache import FeatureCache, build_feature_cache
from .streams import ImageStream, open_images


def encode_features(
    images: str,
    model: str,
    output: str,
    *,
    columns: tuple[str | None, str | None, str | None] = (None, None, None),
    is_streaming: bool = False,
    num_shards: int | None = None,
    shard_index: int | None = None,
    device: str | None = None,
    **options: Any,
) -> FeatureCache | None:
    """Encode images into a feature cache.

    Args:
        images (`str`): As `open_images` takes them, or as `ImageStream` does.
        model (`str`): Folder or Hub id of a HyCIR model or of an encoder.
        output (`str`): The cache's folder.
        columns (`tuple`): Split, image column and id column of a data set.
        is_streaming (`bool`): Whether to read the data set in order.
        num_shards (`int`, *optional*): Among how many the work is shared; by default all launched processes.
        shard_index (`int`, *optional*): Which of them this is; by default this process.
        device (`str`, *optional*): By default a GPU where there is one.
        **options: Of `build_feature_cache`.

    Returns:
        `FeatureCache`, or `None` where others have still to finish.

    Raises:
        ValueError: If images or model are not there, or only one of the shard options is given.
    """
    if (num_shards is None) != (shard_index is None):
        raise ValueError(
            "Expected both --num-shards and --shard-index, but found one of them. Give both, or none to share the work "
            "among the launched processes."
        )
    source = ImageStream(images, *columns) if is_streaming else open_images(images, *columns)
    if num_shards is None or shard_index is None:  # torchrun's and accelerate's names
        num_shards, shard_index = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    loaded, processor = _load(model)
    if device is None:
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    loaded.to(device).eval()
    return build_feature_cache(
        loaded, processor, source, output, num_shards=num_shards, shard_index=shard_index, **options
    )


def _load(path: str) -> tuple[Any, Any]:
    """A HyCIR model, or an encoder with a fresh mapper (which features do not depend on); and the processor."""
    from transformers import AutoConfig

    if not Path(path).exists() and (path.startswith((".", "/")) or path.count("/") != 1):
        raise ValueError(f"Expected a model in {path}, but found nothing there. Give its folder or its Hub id.")
    if Path(path).exists() and not (Path(path) / "config.json").is_file():
        raise ValueError(f"Expected a model in {path}, but found no config.json. Give the folder it was saved in.")
    if AutoConfig.from_pretrained(path).model_type == "hycir":
        return HyCIRModel.from_pretrained(path), HyCIRProcessor.from_pretrained(path)
    return HyCIRModel.from_encoder(path), HyCIRProcessor.from_encoder(path)
