"""A saved folder works in a process that cannot import hycir_hf."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from conftest import NUM_PSEUDO_TOKENS, build_encoder, build_processor, random_picture

from hycir_hf import HyCIRModel, HyCIRProcessor

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
*folders, picture, features, again = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folders[0], trust_remote_code=True)
inputs = processor(images=[Image.open(picture)], text=["make it night"])
found = []
for folder in folders:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        found.append(model.get_composed_features(**inputs))
torch.save(found, features)
model.save_pretrained(again)
assert not any(name.split(".")[0] == "hycir_hf" for name in sys.modules)
"""


EMOJI = Path(__file__).parents[1] / "examples" / "emoji"


def features_without_the_package(tmp_path, *folders):
    """Compose a query with the model of each folder, where hycir_hf cannot be imported."""
    random_picture().save(tmp_path / "picture.png")
    env = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    paths = [*folders, *(tmp_path / name for name in ("picture.png", "features.pt", "again"))]
    command = [sys.executable, "-c", SCRIPT, *map(str, paths)]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return torch.load(tmp_path / "features.pt")


def test_remote_code_reloads_without_the_package(tmp_path):
    build_encoder("clip").save_pretrained(tmp_path / "encoder")
    model, processor = HyCIRModel.from_encoder(tmp_path / "encoder", NUM_PSEUDO_TOKENS), build_processor()
    model.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "mapper_only", mapper_only=True)
    found = features_without_the_package(tmp_path, tmp_path / "whole", tmp_path / "mapper_only")
    with torch.no_grad():
        expected = model.get_composed_features(**processor(images=[random_picture()], text=["make it night"]))
    for features in found:
        # Not bitwise: where a file's weights lie in memory moves the last bit of a product.
        torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)
    assert (tmp_path / "again" / "modeling_hycir.py").is_file()


def test_the_shipped_model_needs_no_package(tmp_path):
    (found,) = features_without_the_package(tmp_path, EMOJI / "hycir")
    model, processor = (one.from_pretrained(EMOJI / "hycir") for one in (HyCIRModel, HyCIRProcessor))
    with torch.no_grad():
        expected = model.get_composed_features(**processor(images=[random_picture()], text=["make it night"]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
