"""The metrics of composed retrieval, a folder each, which `evaluate.load(folder)` reads and the Hub takes as it is.

recall_at_k/  R@K, the hit rate; with restricted candidates it is R_subset@K
map_at_k/     CIRCO's mAP@K, divided by min(targets, K)

In each, `scoring.py` holds the arithmetic, numpy alone, for the package's own evaluation; `<metric>.py` wraps it for
`evaluate`. A pushed folder stands alone, so `hits.py` is in both, the same to the letter (a test).
"""

from .map_at_k.scoring import average_precision_per_query
from .recall_at_k.hits import find_hits
from .recall_at_k.scoring import recall_per_query

__all__ = ["average_precision_per_query", "find_hits", "recall_per_query"]
