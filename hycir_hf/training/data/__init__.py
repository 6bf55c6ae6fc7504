"""What training reads: triplets and texts, and global batches by seed and step, resumable exactly."""

from .batches import (
    Batch,
    ImageBatch,
    RowOrder,
    Share,
    TextRows,
    TrainingBatches,
    TripletRows,
    UnlabeledRows,
    UnlabeledStream,
)
from .texts import read_phrases, read_texts
from .triplets import Triplets, open_triplets

__all__ = [
    "Batch",
    "ImageBatch",
    "RowOrder",
    "Share",
    "TextRows",
    "TrainingBatches",
    "TripletRows",
    "Triplets",
    "UnlabeledRows",
    "UnlabeledStream",
    "open_triplets",
    "read_phrases",
    "read_texts",
]
