"""What training reads: triplets, texts, and the global batch of each step."""

from .batches import (
    Batch,
    ImageBatch,
    RowOrder,
    Share,
    Stream,
    TextRows,
    TrainingBatches,
    TripletRows,
    UnlabeledRows,
    UnlabeledStream,
)
from .texts import read_phrases, read_texts
from .triplets import Triplets, TripletSource, open_triplets

__all__ = [
    "Batch",
    "ImageBatch",
    "RowOrder",
    "Share",
    "Stream",
    "TextRows",
    "TrainingBatches",
    "TripletRows",
    "TripletSource",
    "Triplets",
    "UnlabeledRows",
    "UnlabeledStream",
    "open_triplets",
    "read_phrases",
    "read_texts",
]
