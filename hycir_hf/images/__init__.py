"""The one way from images to features.

sources.py   images with an id and a stamp each: a folder, a list; a gallery's images by id
tables.py    datasets with an image column; CSV, TSV and JSON files whose texts stay as they are
shards.py    WebDataset tar shards
streams.py   TSV files, and datasets that are read in order
stamps.py    what identifies an image's content, and where files lie
encoding.py  the loop: decode in parallel, skip what is broken, resume, share the work
store.py     features or captions on disk, in blocks that are whole or absent
blocks.py    the store's files
features.py  a HyCIR model's features, and how training and galleries read them
"""

from .encoding import EncodingReport, ImageEncoder, encode_images, encode_list
from .features import FeatureEncoder, FeatureStore, build_features, check_images
from .sources import FileSource, FolderSource, ImageSource, ListSource, open_source
from .store import ImageStore
from .streams import ImageStream, open_images
from .tables import DatasetSource

__all__ = [
    "DatasetSource",
    "EncodingReport",
    "FeatureEncoder",
    "FeatureStore",
    "FileSource",
    "FolderSource",
    "ImageEncoder",
    "ImageSource",
    "ImageStore",
    "ImageStream",
    "ListSource",
    "build_features",
    "check_images",
    "encode_images",
    "encode_list",
    "open_images",
    "open_source",
]
