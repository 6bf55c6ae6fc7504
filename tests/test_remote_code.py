"""A saved folder works in a process that cannot import hycir_hf."""

import os
import subprocess
import sys

import torch
from conftest import NUM_PSEUDO_TOKENS, build_encoder, build_processor, random_picture

from hycir_hf import HyCIRModel

SCRIPT = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hycir_hf":
            raise ImportError("hycir_hf is blocked in this test")

sys.meta_path.insert(0, Blocker())
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor
whole, mapper_only, picture, features, again = sys.argv[1:]
processor = AutoProcessor.from_pretrained(whole, trust_remote_code=True)
inputs = processor(images=[Image.open(picture)], text=["make it night"])
found = []
for folder in (whole, mapper_only):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        found.append(model.get_composed_features(**inputs))
torch.save(found, features)
model.save_pretrained(again)
assert not any(name.split(".")[0] == "hycir_hf" for name in sys.modules)
"""


def test_remote_code_reloads_without_the_package(tmp_path):
    build_encoder("clip").save_pretrained(tmp_path / "encoder")
    model, processor = HyCIRModel.from_encoder(tmp_path / "encoder", NUM_PSEUDO_TOKENS), build_processor()
    model.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "mapper_only", mapper_only=True)
    random_picture().save(tmp_path / "picture.png")
    env = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    paths = [str(tmp_path / name) for name in ("whole", "mapper_only", "picture.png", "features.pt", "again")]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *paths], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = model.get_composed_features(**processor(images=[random_picture()], text=["make it night"]))
    for features in torch.load(tmp_path / "features.pt"):
        # Not bitwise: where a file's weights lie in memory moves the last bit of a product.
        torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)
    assert (tmp_path / "again" / "modeling_hycir.py").is_file()
