"""The search page as a Hugging Face Space, or on this machine: `python examples/space/app.py`.

HYCIR_GALLERY names a gallery that `hycir index` made, by default `gallery` beside this file; HYCIR_MODEL the model's
folder or Hub id, by default the one that made the gallery. In a clone without a gallery, the emoji world's is made
first.
"""

import logging
import os
from pathlib import Path

from hycir_hf import Gallery, HyCIRModel, HyCIRProcessor
from hycir_hf.app import build_app, launch_app
from hycir_hf.cli import main as hycir

HERE = Path(__file__).resolve().parent
EMOJI = HERE.parent / "emoji"
logging.basicConfig(level=logging.WARNING)
logging.getLogger("hycir_hf.app").setLevel(logging.INFO)

folder = Path(os.environ.get("HYCIR_GALLERY", HERE / "gallery"))
if "HYCIR_GALLERY" not in os.environ and not folder.exists() and EMOJI.exists():
    pictures = [f"{EMOJI / 'data'}:images", "--split", "heldout_vendor"]
    if hycir(["index", *pictures, "--model", str(EMOJI / "hycir"), "--output", str(folder)]):
        raise SystemExit(1)

gallery = Gallery.load(folder)
model_path = os.environ.get("HYCIR_MODEL") or gallery.model_path
model, processor = HyCIRModel.from_pretrained(model_path).eval(), HyCIRProcessor.from_pretrained(model_path)
launch_app(build_app(model, processor, gallery, folder))
