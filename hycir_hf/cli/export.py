"""`hycir export`: ONNX graphs of a model."""

from cyclopts import App

from .models import quiet
from .options import Common, OutputFolder, Report, Switch

app = App(
    name="export",
    help_epilogue="""\
The folder works wherever a model is named. onnxruntime then runs it.

Examples:
  hycir export path/to/model --output model-onnx
  hycir export OWNER/MODEL --output model-int8 --int8""",
)


@app.default
def export(
    model: str,
    /,
    *,
    output: OutputFolder,
    int8: Switch = False,
    common: Common | None = None,
) -> Report:
    """Export a model to ONNX, for onnxruntime. The graphs are compared with the model, and refused if they differ.

    Args:
        model: HyCIR model: folder or Hub id.
        output: Folder of the graphs. It must be new.
        int8: Store the weights as 8-bit integers: a quarter of the size, and slightly different features.
    """
    quiet()
    from ..integrations.export import export_model

    found = export_model(model, output, int8)
    lines = [f"{output}: ONNX graphs for images and queries, with the processor"]
    lines += [f"least cosine similarity of {name} to the model's: {value:.6f}" for name, value in found.items()]
    return Report({"output": output, "int8": int8, "cosine": found}, lines)
