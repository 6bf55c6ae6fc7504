"""From images to a searchable gallery, and from features to ranked ids.

results.py  RetrievalResults, the checked value between search and metrics
indexes.py  the five faiss index types: sizes that grow with N, filtered search
gallery.py  Gallery: search, add, remove, save, load
ranking.py  whole galleries ranked for many queries at once: what benchmarks need
build.py    encoding a source into a gallery, resumable
changes.py  images added to a gallery's folder, or taken out of it
queries.py  query features: the mapper, and the ways that need no training
terms.py    weighted and negative terms of a query
references.py  the reference images of a query, by path or gallery id
milvus.py, milvus_client.py  a gallery in a vector database (extra `milvus`; not imported from here)
"""

from .build import IndexReport, index_images
from .changes import add_images, read_features, remove_images
from .gallery import Gallery
from .ranking import rank_candidates, rank_gallery
from .references import References, moved_source, open_gallery_images, read_references
from .results import RetrievalResults

__all__ = [
    "Gallery",
    "IndexReport",
    "References",
    "RetrievalResults",
    "add_images",
    "index_images",
    "moved_source",
    "open_gallery_images",
    "rank_candidates",
    "rank_gallery",
    "read_features",
    "read_references",
    "remove_images",
]
