"""HyCIR as a `SentenceTransformer`: its `encode`, `semantic_search` and evaluators take composed queries.

    pip install "hycir_hf[sentence-transformers]"
    python examples/use_sentence_transformers.py

Queries are pairs of an image and a text, the corpus images alone; both land in one space.
"""

from pathlib import Path

from datasets import load_dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.util import semantic_search

from hycir_hf import HyCIRModel, HyCIRProcessor
from hycir_hf.integrations.sentence_transformer import as_sentence_transformer

EMOJI = Path(__file__).parent / "emoji"
SAVED = "demo/sentence_transformer"

model, processor = HyCIRModel.from_pretrained(EMOJI / "hycir"), HyCIRProcessor.from_pretrained(EMOJI / "hycir")
as_sentence_transformer(model, processor).save_pretrained(SAVED)  # its own format: modules.json beside the weights
encoder = SentenceTransformer(SAVED, trust_remote_code=True)

pictures = load_dataset(str(EMOJI / "data"), "images", split="heldout_vendor").filter(
    lambda category, name: category == "people-body" and ":" not in name, input_columns=["category", "name"]
)
names = list(pictures["name"])
picture_of = dict(zip(names, pictures["image"], strict=True))

query = {"image": picture_of["woman firefighter"], "text": "make it a man"}
corpus = encoder.encode(list(picture_of.values()), convert_to_tensor=True)  # (N, D)
hits = semantic_search(encoder.encode([query], convert_to_tensor=True), corpus, top_k=5)[0]
found = [(names[hit["corpus_id"]], hit["score"]) for hit in hits]
print("woman firefighter + 'make it a man': " + ", ".join(f"{name} ({score:.2f})" for name, score in found))

evaluator = InformationRetrievalEvaluator(
    queries={"0": query}, corpus=picture_of, relevant_docs={"0": {"man firefighter"}}, accuracy_at_k=[5]
)
print(f"accuracy@5: {evaluator(encoder)['cosine_accuracy@5']:.2f}")
