"""CIRCO's mAP@K as an `evaluate` module."""

from typing import Any

import datasets
import evaluate
import numpy as np

from .hits import check_ks, find_hits
from .scoring import average_precision_per_query

_DESCRIPTION = """\
mAP@K: the mean over queries of the average precision among the first K of the ranking, divided by min(targets, K).

Convention: CIRCO's. On six targets with hits at ranks 1, 2 and 5 and K = 5 it is (1/1 + 2/2 + 3/5) / min(6, 5) = 0.520.
Others divide by all targets (0.433: the plain average precision cut at K; trec_eval, ranx) or by the targets found
among the first K (0.867: torchmetrics); those figures are not comparable with this one.
"""

_KWARGS_DESCRIPTION = """\
Args:
    predictions (list of lists of ids): For each query the gallery's ids, best first, each once. Strings or integers.
    references (list of lists of ids): For each query all its targets, at least one, each once.
    k (int or list of int): The ranks. Defaults to [5, 10, 25, 50].
    per_query (bool): Also return each query's value. Defaults to False.
Returns:
    dict: "map@K" for each K, a fraction in [0, 1]; with per_query also "map@K_per_query", a list.
Examples:
    >>> mean_ap = evaluate.load("hycir_hf/metrics/map_at_k")
    >>> mean_ap.compute(predictions=[[1, 2, 8, 9, 5]], references=[[1, 2, 3, 4, 5, 6]], k=5)
    {'map@5': 0.52}
"""

_CITATION = """\
@inproceedings{baldrati2023circo,
  title={Zero-Shot Composed Image Retrieval with Textual Inversion},
  author={Baldrati, Alberto and Agnolucci, Lorenzo and Bertini, Marco and Del Bimbo, Alberto},
  booktitle={ICCV},
  year={2023}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class MapAtK(evaluate.Metric):
    """mAP@K, divided by min(targets, K)."""

    def _info(self) -> evaluate.MetricInfo:
        """Describe the metric: all ids are strings, or all are integers."""
        kinds = [datasets.Sequence(datasets.Value(kind)) for kind in ("string", "int64")]
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=[datasets.Features({"predictions": ids, "references": ids}) for ids in kinds],
            reference_urls=["https://github.com/miccunifi/CIRCO"],
        )

    def _compute(
        self, predictions: Any, references: Any, k: Any = (5, 10, 25, 50), per_query: bool = False
    ) -> dict[str, Any]:
        """Compute mAP@K for each K."""
        ks = check_ks(k)
        hits = find_hits(predictions, references, max(ks))
        num_targets = np.array([len(targets) for targets in references])
        values = {f"map@{one}": average_precision_per_query(hits, num_targets, one) for one in ks}
        means = {name: float(value.mean()) for name, value in values.items()}
        return means | ({f"{name}_per_query": value.tolist() for name, value in values.items()} if per_query else {})
