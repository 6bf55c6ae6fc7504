"""The search page as a Hugging Face Space, or on this machine: `python examples/space/app.py`.

HYCIR_GALLERY names a gallery that `hycir index` made; the default is `gallery` beside this file. HYCIR_MODEL names the
model's folder or Hub id; the default is the model that made the gallery. In a clone without a gallery, the emoji world
is indexed first.
"""

import logging
import os
from pathlib import Path

import torch

from hycir_hf import Gallery, HyCIRModel, HyCIRProcessor
from hycir_hf.app import build_app, launch_app
from hycir_hf.cli.main import main as hycir
from hycir_hf.names import is_hub_id

HERE = Path(__file__).resolve().parent
EMOJI = HERE.parent / "emoji"
logging.basicConfig(level=logging.WARNING)
logging.getLogger("hycir_hf.app").setLevel(logging.INFO)

folder = Path(os.environ.get("HYCIR_GALLERY", HERE / "gallery"))
if "HYCIR_GALLERY" not in os.environ and not folder.exists() and EMOJI.exists():
    images = [f"{EMOJI / 'data'}:images", "--split", "heldout_vendor"]
    if hycir(["index", *images, "--model", str(EMOJI / "hycir"), "--output", str(folder)]):
        raise SystemExit(1)


def load():
    """Load the gallery, the model and its processor."""
    gallery = Gallery.load(folder)
    name = os.environ.get("HYCIR_MODEL") or gallery.model_path
    if name is None or not (Path(name).is_dir() or is_hub_id(name)):
        raise ValueError(f"The gallery names {name} as its model, which is neither a Hub id nor a folder here.")
    model = HyCIRModel.from_pretrained(name).eval().to("cuda" if torch.cuda.is_available() else "cpu")
    return gallery, model, HyCIRProcessor.from_pretrained(name)


try:
    gallery, model, processor = load()
    page = build_app(model, processor, gallery, folder)
except (ValueError, OSError) as error:
    raise SystemExit(
        f"{' '.join(str(error).split())} Set HYCIR_GALLERY to a gallery that `hycir index` made, and HYCIR_MODEL to "
        "the Hub id or folder of its model."
    ) from None
launch_app(page)
