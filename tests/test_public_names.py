"""What `import hycir_hf` gives, and what it does not load."""

import subprocess
import sys

import pytest

import hycir_hf


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_every_public_name_is_there():
    assert all(getattr(hycir_hf, name).__name__ == name for name in hycir_hf.__all__)
    assert set(hycir_hf.__all__) <= set(dir(hycir_hf))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'HyCIRModle'"):
        _ = hycir_hf.HyCIRModle


def test_importing_loads_neither_torch_nor_transformers():
    code = "import sys, hycir_hf; print([name for name in ('torch', 'transformers', 'faiss') if name in sys.modules])"
    assert run(code) == "[]"


@pytest.mark.parametrize(
    "imports", ["from hycir_hf import HyCIRConfig; import transformers", "import transformers; import hycir_hf"]
)
def test_the_auto_classes_are_registered(imports):
    code = f"""{imports}
from transformers import CONFIG_MAPPING, MODEL_MAPPING, PROCESSOR_MAPPING
config = CONFIG_MAPPING["hycir"]
print(MODEL_MAPPING[config].__name__, PROCESSOR_MAPPING[config].__name__)"""
    assert run(code) == "HyCIRModel HyCIRProcessor"
