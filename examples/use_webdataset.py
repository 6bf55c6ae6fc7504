"""WebDataset tar shards, as img2dataset writes them: index them, and train from them without unpacking.

    python examples/use_webdataset.py

img2dataset makes such shards from a list of URLs: `img2dataset --url_list cc3m.tsv --output_format webdataset ...`.
Here two are written from emoji. `hycir train` takes the same paths: `unlabeled: "shards/*.tar"`.
"""

import io
import json
import tarfile
from pathlib import Path

from datasets import load_dataset

from hycir_hf import HyCIRModel, HyCIRProcessor
from hycir_hf.images import FeatureEncoder, open_images
from hycir_hf.retrieval import index_images
from hycir_hf.training import HybridTrainer, HybridTrainingArguments

EMOJI, SHARDS = Path(__file__).parent / "emoji", Path("demo/shards")

images = load_dataset(str(EMOJI / "data"), "images", split="train").select(range(128))
SHARDS.mkdir(parents=True, exist_ok=True)
for shard in range(2):
    with tarfile.open(SHARDS / f"{shard:05d}.tar", "w") as tar:
        for number, row in enumerate(images.select(range(64 * shard, 64 * shard + 64))):
            image = io.BytesIO()
            row["image"].save(image, "jpeg")
            record = json.dumps({"key": f"{shard:05d}{number:04d}", "caption": row["name"], "status": "success"})
            files = {"jpg": image.getvalue(), "txt": row["name"].encode(), "json": record.encode()}
            for suffix, content in files.items():
                member = tarfile.TarInfo(f"{shard:05d}{number:04d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))

model, processor = HyCIRModel.from_pretrained(EMOJI / "hycir"), HyCIRProcessor.from_pretrained(EMOJI / "hycir")
source = open_images(str(SHARDS))  # read by place, in any order; a glob works too
gallery = index_images(FeatureEncoder(model, processor), source, "demo/shards_gallery").gallery
print(f"{len(gallery)} images of {SHARDS} indexed, {gallery.ids[0]} to {gallery.ids[-1]}")
results = gallery.search(model.get_image_features(**processor(images=[source.load(70)])), k=1)
print(f"image 70 is found as {results.ids[0][0]} ({results.scores[0][0]:.3f})")

arguments = HybridTrainingArguments(
    output_dir="demo/shards_training",
    encoder=str(EMOJI / "encoder"),
    objective="zs",
    unlabeled=str(SHARDS / "*.tar"),
    steps=5,
    unlabeled_batch_size=32,
    learning_rate=1e-3,
    log_steps=1,
)
log = HybridTrainer(arguments).train().log
print(f"L_ZS after 1 and 5 steps: {log[0]['loss']:.3f}, {log[-1]['loss']:.3f}")
