"""R@K of composed image retrieval as an `evaluate` module."""

from typing import Any

import datasets
import evaluate

from .hits import check_ks, find_hits
from .scoring import recall_per_query

_DESCRIPTION = """\
R@K: the share of queries with at least one target among the first K of their ranking.

Convention: a query counts 1 if any of its targets is found, however many it has. This is CIRR's and FashionIQ's
"Recall@K"; elsewhere it is called hit rate, hit@K, success@K or top-K accuracy. With several targets a query it is not
the "recall" of information retrieval (targets found / all targets); with one target the two are the same.

What may be found is the caller's to say, by what the rankings hold: CIRR leaves the reference image out of each one;
with rankings of a query's subset alone (without the reference) this metric is CIRR's R_subset@K.
"""

_KWARGS_DESCRIPTION = """\
Args:
    predictions (list of lists of ids): For each query the gallery's ids, best first, each once. Strings or integers.
    references (list of lists of ids): For each query its targets, at least one, each once.
    k (int or list of int): The ranks. Defaults to [1, 5, 10, 50].
    per_query (bool): Also return each query's value. Defaults to False.
Returns:
    dict: "recall@K" for each K, a fraction in [0, 1]; with per_query also "recall@K_per_query", a list.
Examples:
    >>> recall = evaluate.load("hycir_hf/metrics/recall_at_k")
    >>> recall.compute(predictions=[["a", "b", "c"], ["d", "a", "b"]], references=[["c", "b"], ["b"]], k=[1, 2, 3])
    {'recall@1': 0.0, 'recall@2': 0.5, 'recall@3': 1.0}
"""

_CITATION = """\
@inproceedings{liu2021cirr,
  title={Image Retrieval on Real-life Images with Pre-trained Vision-and-Language Models},
  author={Liu, Zheyuan and Rodriguez-Opazo, Cristian and Teney, Damien and Gould, Stephen},
  booktitle={ICCV},
  year={2021}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class RecallAtK(evaluate.Metric):
    """R@K, the hit rate."""

    def _info(self) -> evaluate.MetricInfo:
        """Describe the metric: all ids are strings, or all are integers."""
        kinds = [datasets.Sequence(datasets.Value(kind)) for kind in ("string", "int64")]
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=[datasets.Features({"predictions": ids, "references": ids}) for ids in kinds],
            reference_urls=["https://github.com/Cuberick-Orion/CIRR"],
        )

    def _compute(
        self, predictions: Any, references: Any, k: Any = (1, 5, 10, 50), per_query: bool = False
    ) -> dict[str, Any]:
        """Compute R@K for each K."""
        ks = check_ks(k)
        hits = find_hits(predictions, references, max(ks))
        values = {f"recall@{one}": recall_per_query(hits, one) for one in ks}
        means = {name: float(value.mean()) for name, value in values.items()}
        return means | ({f"{name}_per_query": value.tolist() for name, value in values.items()} if per_query else {})
