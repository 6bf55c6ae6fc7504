"""A gallery in a vector database: Milvus, embedded in a file (Milvus Lite) or a cluster by its URI.

    pip install "hycir_hf[milvus]"
    python examples/vector_store.py

For a server give its address, "http://milvus:19530", in the place of the file. Filters and exclusions act before top-k.
"""

import shutil
from pathlib import Path

from datasets import load_dataset

from hycir_hf import Gallery, HyCIRModel, HyCIRProcessor
from hycir_hf.retrieval.milvus import MilvusGallery

EMOJI = Path(__file__).parent / "emoji"
STORE = Path("demo/vector_store.db")

model, processor = HyCIRModel.from_pretrained(EMOJI / "hycir"), HyCIRProcessor.from_pretrained(EMOJI / "hycir")
images = load_dataset(str(EMOJI / "data"), "images", split="heldout_vendor").filter(
    lambda category, name: category == "people-body" and ":" not in name, input_columns=["category", "name"]
)
gallery = Gallery.from_images(model, processor, images["image"], ids=images["name"])

STORE.parent.mkdir(exist_ok=True)
shutil.rmtree(STORE, ignore_errors=True)  # a collection is made once; MilvusGallery(STORE) opens one that is there
store = MilvusGallery.from_gallery(gallery, STORE, attributes=[{"kind": kind} for kind in images["subcategory"]])
print(f"{len(store)} images of width {store.dim} in {STORE}")

reference = images["image"][gallery.ids.index("woman firefighter")]
inputs = processor(images=[reference], text=["make it a man"], return_tensors="pt")
features = model.get_composed_features(**inputs)  # (1, D)
for where in ('kind == "person-role"', 'kind == "person-sport"'):
    results = store.search(features, k=3, exclude_ids=["woman firefighter"], where=where)
    print(f"{where}: " + ", ".join(f"{name} ({score:.2f})" for name, score in results[0]))
store.close()
