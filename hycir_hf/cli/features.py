"""`hycir features`: each image encoded once, for training."""

from typing import Literal

from cyclopts import App
from cyclopts.types import PositiveInt

from .models import quiet
from .options import Columns, Common, Device, Model, OutputFolder, Report, Switch, shown

app = App(
    name="features",
    help_epilogue="""\
If the command is interrupted, run it again to resume.

Examples:
  hycir features photos --model openai/clip-vit-large-patch14 \\
      --output features/photos
  hycir features 'cc3m/*.tar' --model openai/clip-vit-large-patch14 \\
      --output features/cc3m --views 4""",
)


@app.default
def features(
    images: str,
    /,
    *,
    model: Model,
    output: OutputFolder,
    views: PositiveInt = 1,
    dtype: Literal["float16", "float32"] = "float16",
    batch_size: PositiveInt = 64,
    seed: int = 0,
    streaming: Switch = False,
    num_shards: PositiveInt | None = None,
    shard_index: int | None = None,
    columns: Columns | None = None,
    device: Device = None,
    common: Common | None = None,
) -> Report:
    """Encode images once into a feature cache, for training.

    Args:
        images: Folder of images, PATH[:CONFIG] of a dataset, .tar shards or a .tsv.
        model: HyCIR model or encoder: folder or Hub id.
        output: Folder of the feature cache.
        views: Views of each image. The first is the image itself, the others are random crops.
        dtype: Precision of the stored features.
        batch_size: Images that are encoded at once.
        seed: Random seed for the views.
        streaming: Read the dataset in order, without downloading it first.
        num_shards: Number of jobs that share the work. By default all launched processes.
        shard_index: Which of these jobs this is, from 0. By default this process.
    """
    from ..images.features import encode_features

    quiet()
    columns = columns or Columns()
    cache = encode_features(
        images,
        model,
        output,
        columns=(columns.split, columns.image_column, columns.id_column),
        is_streaming=streaming,
        num_shards=num_shards,
        shard_index=shard_index,
        device=device,
        num_views=views,
        dtype=dtype,
        batch_size=batch_size,
        seed=seed,
    )
    if cache is None:
        lines = [f"This job's part of {output} is done. The last job to finish completes the cache."]
        return Report({"features": output, "is_complete": False, "shape": None, "skipped": []}, lines)
    skipped = cache.manifest["skipped"]
    lines = [f"{len(cache)} images in {output} (views, width: {cache.features.shape[1:]})"]
    if skipped:
        lines.append(f"Skipped as unreadable: {len(skipped)}; first: {shown(': '.join(skipped[0]))}")
    shape = list(cache.features.shape)
    return Report({"features": output, "is_complete": True, "shape": shape, "skipped": skipped}, lines)
