"""What training reads: images, triplets and texts, their batches, and the feature cache.

images.py         unlabeled images: folder, `datasets` path, tar shards, TSV, stream
triplets.py       SynCir, LaSCo, CIRR and FashionIQ train
texts.py          texts without images
feature_cache.py  each image encoded once, memory-mapped
batches.py        global batches by seed and step, shared over processes, exactly resumable
"""

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
from .feature_cache import FeatureCache, build_feature_cache, check_pictures, preprocessing_fingerprint
from .images import ImageStream, open_images
from .texts import read_phrases, read_texts
from .triplets import Triplets, open_triplets

__all__ = [
    "Batch",
    "FeatureCache",
    "ImageBatch",
    "ImageStream",
    "RowOrder",
    "Share",
    "TextRows",
    "TrainingBatches",
    "TripletRows",
    "Triplets",
    "UnlabeledRows",
    "UnlabeledStream",
    "build_feature_cache",
    "check_pictures",
    "open_images",
    "open_triplets",
    "preprocessing_fingerprint",
    "read_phrases",
    "read_texts",
]
