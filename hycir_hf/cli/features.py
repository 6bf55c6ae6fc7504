"""`hycir features`: each image encoded once, for training."""

import os
from typing import Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.types import PositiveInt

import hycir_hf

from ..settings import ParameterError
from .models import load_model
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
    images: Annotated[list[str], Parameter(negative=())],
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
    """Encode images once into a folder of features, for training.

    Args:
        images: Folder of images, PATH[:CONFIG] of a dataset, .tar shards (several, or a pattern), or a .tsv.
        model: HyCIR model or encoder: folder or Hub id.
        output: Folder of the features.
        views: Views of each image. The first is the image itself, the others are random crops.
        dtype: Precision of the stored features.
        batch_size: Images that are encoded at once.
        seed: Random seed for the views.
        streaming: Read the dataset in order, without downloading it first.
        num_shards: Number of jobs that share the work. By default all launched processes.
        shard_index: Which of these jobs this is, from 0. By default this process.
    """
    if (num_shards is None) != (shard_index is None):
        raise ParameterError("num_shards and shard_index go together. Give both, or neither.", "num_shards")
    if num_shards is None or shard_index is None:  # torchrun's and accelerate's names
        num_shards, shard_index = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    columns = columns or Columns()
    places = (columns.split, columns.image_column, columns.id_column)
    path = "::".join(images)
    source = hycir_hf.images.ImageStream(path, *places) if streaming else hycir_hf.images.open_images(path, *places)
    stored, report = hycir_hf.images.build_features(
        *load_model(model, device, takes_encoder=True),
        source,
        output,
        num_shards=num_shards,
        shard_index=shard_index,
        num_views=views,
        dtype=dtype,
        batch_size=batch_size,
        seed=seed,
    )
    values = {"features": output, "is_complete": stored is not None, "encoded": report.num_encoded}
    if stored is None:
        lines = [f"This job's part of {output} is done. The last job to finish completes the features."]
        return Report({**values, "shape": None, "skipped": report.skipped}, lines)
    skipped = [*getattr(source, "skipped", ()), *stored.store.skipped]
    lines = [f"{len(stored)} images in {output} (views, width: {stored.shape[1:]}), {report.num_encoded} encoded now"]
    if skipped:
        lines.append(f"Skipped as unreadable: {len(skipped)}; first: {shown(': '.join(skipped[0]))}")
    return Report({**values, "shape": list(stored.shape), "skipped": skipped}, lines)
