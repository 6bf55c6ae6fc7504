"""Push a model and a SynCir dataset to the Hub, and load the model back as its users will.

    hf auth login                             # or HF_TOKEN; HF_ENDPOINT names another Hub
    python examples/push.py OWNER/NAME        # on the command line: hycir push FOLDER OWNER/NAME

Repositories are private. The model travels with its code, so that its users need not install this package; results that
`hycir evaluate run --output` left in its folder are on its card. Files that hold keys are refused, local paths
taken out.
"""

import sys
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

from hycir_hf import HyCIRModel
from hycir_hf.hub import push_folder

EMOJI = Path(__file__).parent / "emoji"

if len(sys.argv) != 2:
    raise SystemExit("usage: python examples/push.py OWNER/NAME")
repo_id = sys.argv[1]
for folder, name in ((EMOJI / "hycir", repo_id), (EMOJI / "syncir", f"{repo_id}-triplets")):
    report = push_folder(folder, name)
    print(f"{report.url} ({'private' if report.is_private else 'public'}): {len(report.uploaded)} files")

model = AutoModel.from_pretrained(repo_id, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(repo_id, trust_remote_code=True)
inputs = processor(images=[Image.new("RGB", (64, 64), "red")], text=["make it blue"], return_tensors="pt")
with torch.inference_mode():
    pulled = model.get_composed_features(**inputs)
    pushed = HyCIRModel.from_pretrained(EMOJI / "hycir").get_composed_features(**inputs)
print(f"largest difference of the features: {(pulled - pushed).abs().max():.1e}")
