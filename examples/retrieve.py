"""Composed retrieval: a reference image and a text find another image.

    python examples/retrieve.py

Indexes 315 people by an emoji vendor that no training has seen, asks three composed queries, and prints what was found.
For images of your own give `Gallery.from_images` a list of paths.
"""

from pathlib import Path

from datasets import load_dataset

from hycir_hf import Gallery, HyCIRModel, HyCIRProcessor

EMOJI = Path(__file__).parent / "emoji"
QUERIES = (
    ("woman firefighter", "make it a man"),
    ("man cook", "make it a woman"),
    ("woman astronaut", "change her job to a judge"),
)

model, processor = HyCIRModel.from_pretrained(EMOJI / "hycir"), HyCIRProcessor.from_pretrained(EMOJI / "hycir")
images = load_dataset(str(EMOJI / "data"), "images", split="heldout_vendor").filter(
    lambda category, name: category == "people-body" and ":" not in name, input_columns=["category", "name"]
)

gallery = Gallery.from_images(model, processor, images["image"], ids=images["name"])
gallery.save("demo/retrieve/gallery")  # Gallery.load(...) opens it again
image_of = dict(zip(gallery.ids, images["image"], strict=True))

references, texts = zip(*QUERIES, strict=True)
inputs = processor(images=[image_of[name] for name in references], text=list(texts), return_tensors="pt")
features = model.get_composed_features(**inputs)  # (Q, D)
results = gallery.search(features, k=3, exclude_ids=[[name] for name in references])
for (reference, text), ranking in zip(QUERIES, results, strict=True):
    print(f"{reference} + {text!r}: " + ", ".join(f"{name} ({score:.2f})" for name, score in ranking))
