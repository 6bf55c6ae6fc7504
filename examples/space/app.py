"""The search page as a Hugging Face Space, or on this machine: `python examples/space/app.py`.

HYCIR_GALLERY names a gallery that `hycir index` made; the default is `gallery` beside this file. HYCIR_MODEL names the
model's folder or Hub id; the default is the model that made the gallery. In a clone without a gallery, the emoji world
is indexed first.
"""

import logging
import os
from pathlib import Path

from hycir_hf import ImageRetriever
from hycir_hf.app import build_app, launch_app

HERE = Path(__file__).resolve().parent
EMOJI = HERE.parent / "emoji"
logging.basicConfig(level=logging.WARNING)
logging.getLogger("hycir_hf.app").setLevel(logging.INFO)

folder = Path(os.environ.get("HYCIR_GALLERY", HERE / "gallery"))
try:
    if "HYCIR_GALLERY" not in os.environ and not folder.exists() and EMOJI.exists():
        emoji = ImageRetriever.from_pretrained(str(EMOJI / "hycir"))
        emoji.index(f"{EMOJI / 'data'}:images", folder, split="heldout_vendor")
    page = build_app(ImageRetriever.load(folder, model=os.environ.get("HYCIR_MODEL")))
except (ValueError, OSError) as error:
    raise SystemExit(
        f"{' '.join(str(error).split())} Set HYCIR_GALLERY to a gallery that `hycir index` made, and HYCIR_MODEL to "
        "the Hub id or folder of its model."
    ) from None
launch_app(page)
