"""What `import hycir_hf` gives, and what it does not load."""

import subprocess
import sys
from pathlib import Path

import pytest

import hycir_hf

EMOJI = Path(__file__).parents[1] / "examples" / "emoji" / "hycir"


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
    "imports",
    [
        "import hycir_hf",
        "import transformers; import hycir_hf",
        "import hycir_hf; from transformers import AutoTokenizer",
        "import hycir_hf; from transformers import Trainer, BlipModel",
        "import hycir_hf; from transformers.generation.utils import GenerationMixin",
        "from hycir_hf.configuration_hycir import HyCIRConfig",
        "import hycir_hf.weights_hycir",
    ],
)
def test_the_auto_classes_are_registered(imports):
    code = f"""{imports}
from transformers import CONFIG_MAPPING, MODEL_MAPPING, PROCESSOR_MAPPING
import sys
config = CONFIG_MAPPING["hycir"]
assert not [finder for finder in sys.meta_path if type(finder).__module__.startswith("hycir_hf")]
print(MODEL_MAPPING[config].__name__, PROCESSOR_MAPPING[config].__name__)"""
    assert run(code) == "HyCIRModel HyCIRProcessor"


def test_a_folder_loads_where_hycir_is_imported_first():
    code = f"""import hycir_hf
from transformers import AutoConfig, AutoModel, AutoProcessor
loaded = [one.from_pretrained({str(EMOJI)!r}) for one in (AutoProcessor, AutoConfig, AutoModel)]
print(*[type(one).__name__ for one in loaded], {{type(one).__module__.split(".")[0] for one in loaded}})"""
    assert run(code) == "HyCIRProcessor HyCIRConfig HyCIRModel {'hycir_hf'}"


def test_help_and_failed_imports_are_left_alone():
    code = "import hycir_hf\ntry:\n import transformers.no_such\nexcept ImportError as e: print(e.name)"
    assert run(code) == "transformers.no_such"
