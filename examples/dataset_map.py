"""Features as columns of a dataset: `dataset.map`, then `datasets`' own faiss index.

    python examples/dataset_map.py

`map` keeps what it computed: the same command again encodes nothing. Queries with texts are mapped the same way.
"""

from pathlib import Path

import faiss
import numpy as np
from datasets import load_dataset

from hycir_hf import HyCIRModel, HyCIRProcessor
from hycir_hf.integrations.columns import ColumnEncoder

EMOJI = Path(__file__).parent / "emoji"

model, processor = HyCIRModel.from_pretrained(EMOJI / "hycir"), HyCIRProcessor.from_pretrained(EMOJI / "hycir")
images = load_dataset(str(EMOJI / "data"), "images", split="heldout_vendor").filter(
    lambda category, name: category == "people-body" and ":" not in name, input_columns=["category", "name"]
)
gallery = images.map(ColumnEncoder(model, processor), batched=True, batch_size=64)  # + column "features"
gallery.add_faiss_index("features", metric_type=faiss.METRIC_INNER_PRODUCT)  # unit vectors: cosines
Path("demo").mkdir(exist_ok=True)
gallery.save_faiss_index("features", "demo/people.faiss")  # load_faiss_index reads it

texts = {"woman firefighter": "make it a man", "man cook": "make it a woman"}
queries = images.filter(lambda name: name in texts, input_columns="name")
queries = queries.map(lambda row: {"query_text": texts[row["name"]]})
queries = queries.map(ColumnEncoder(model, processor, text_column="query_text"), batched=True)

scores, found = gallery.get_nearest_examples_batch("features", np.array(queries["features"][:], np.float32), k=4)
for query, ranking, examples in zip(queries, scores, found, strict=True):
    names = [name for name in examples["name"] if name != query["name"]]
    print(f"{query['name']} + {query['query_text']!r}: {', '.join(names[:3])} (best {ranking.max():.2f})")
