"""`hycir convert`: checkpoints of the originals' code."""

from typing import Annotated

from cyclopts import App, Parameter

from .options import Common, OutputFolder, Report

app = App(
    name="convert",
    help_epilogue="""\
Examples:
  hycir convert SEARLE_ViT-L14.pt --encoder openai/clip-vit-large-patch14 \\
      --output searle
  hycir convert blip_coco_retrieval.pth \\
      --encoder Salesforce/blip-itm-base-coco --output blip""",
)


@app.default
def convert(
    checkpoint: str,
    /,
    *,
    encoder: Annotated[str, Parameter(alias="-e")],
    output: OutputFolder,
    prompt: str | None = None,
    common: Common | None = None,
) -> Report:
    """Convert a Pic2Word, SEARLE, LinCIR or BLIP checkpoint to HyCIR.

    Args:
        checkpoint: The .pt or .pth file.
        encoder: CLIP or BLIP that the checkpoint belongs to: folder or Hub id.
        output: Folder of the HyCIR model. It must be new.
        prompt: Prompt template with {image} and {text}. By default the original's.
    """
    from ..integrations.conversion import convert_checkpoint

    layout = convert_checkpoint(checkpoint, output, encoder, prompt)
    lines = [f"{output}: converted from the layout {layout!r}"]
    if layout == "blip":
        lines.append("A BLIP checkpoint has no mapper. The model got a fresh one: train it.")
    return Report({"output": output, "layout": layout}, lines)
