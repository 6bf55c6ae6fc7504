"""From images to a searchable gallery, and from features to ranked ids.

results.py   RetrievalResults, the checked value between search and metrics
indexes.py   the five faiss index kinds: sizes that grow with N, filtered search
gallery.py   Gallery: search, add, remove, save, load
ranking.py   whole galleries ranked for many queries at once: what benchmarks need
sources.py   where a gallery's images lie: a folder or a `datasets` path
indexing.py  encoding a source into a gallery, resumable
searching.py composed search: reference images and a text against a gallery
columns.py   features of a data set's columns, for `dataset.map`
milvus.py    a gallery in a vector database (extra `milvus`; not imported from here)
"""

from .columns import ColumnEncoder
from .gallery import Gallery
from .indexing import IndexReport, index_images
from .ranking import rank_candidates, rank_gallery
from .results import RetrievalResults
from .searching import References, open_gallery_pictures, read_references, search_composed
from .sources import DatasetSource, FileSource, FolderSource, ImageSource, open_source

__all__ = [
    "ColumnEncoder",
    "DatasetSource",
    "FileSource",
    "FolderSource",
    "Gallery",
    "ImageSource",
    "IndexReport",
    "References",
    "RetrievalResults",
    "index_images",
    "open_gallery_pictures",
    "open_source",
    "rank_candidates",
    "rank_gallery",
    "read_references",
    "search_composed",
]
