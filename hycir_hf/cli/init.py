"""`hycir init`: an untrained model on disk."""

from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.types import PositiveInt

import hycir_hf

from ..files import atomic_folder
from ..names import naming_model, resolve_model
from .models import quiet
from .options import Common, NewFolder, Report, Switch

app = App(
    name="init",
    help_epilogue="""\
Example:
  hycir init openai/clip-vit-large-patch14 --output model""",
)


@app.default
def init(
    encoder: str,
    /,
    *,
    output: NewFolder,
    num_pseudo_tokens: Annotated[PositiveInt, Parameter(alias="-k")] = 4,
    prompt: str = "a photo of {image}, {text}",
    save_encoder: Switch = False,
    common: Common | None = None,
) -> Report:
    """Make an untrained HyCIR model from an encoder.

    It can index, and search by the image or the text alone. Composed queries need training: `hycir train --model`.

    Args:
        encoder: CLIP, BLIP, SigLIP or SigLIP 2: folder or Hub id.
        output: Folder of the HyCIR model. It must be new or empty.
        num_pseudo_tokens: K, the number of pseudo tokens of an image.
        prompt: Prompt template with {image} and {text}.
        save_encoder: Save the encoder with the model. By default the model names where it is.
    """
    from ..training.report import save_model

    resolve_model(encoder, "encoder")
    quiet()
    with naming_model(encoder):
        model = hycir_hf.HyCIRModel.from_encoder(encoder, num_pseudo_tokens, prompt=prompt)
        processor = hycir_hf.HyCIRProcessor.from_encoder(encoder, num_pseudo_tokens, prompt=prompt)
    with atomic_folder(output) as folder:
        save_model(model, processor, folder, save_encoder)
    lines = [
        f"{output}: an untrained model with {num_pseudo_tokens} pseudo tokens. Train it with `hycir train --model`."
    ]
    return Report({"output": output, "encoder": encoder, "num_pseudo_tokens": num_pseudo_tokens}, lines)
