"""Validation on your own benchmark while a model is trained."""

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from ..metrics.intervals import MAPPER
from ..modeling_hycir import HyCIRModel
from ..processing_hycir import HyCIRProcessor
from ..retrieval.queries import Combiner
from .benchmarks import read_table
from .evaluate import evaluate_benchmark
from .methods import combiner_method, encode_images

_COMBINER = "combiner"


class TableValidation:
    """What `hycir train --validation queries.csv` calls: figures of the mapper, or of the combiner that is trained.

    Args:
        queries (`str` or `Path`): The table.
        images (`str` or `Path`, *optional*): See `read_table`; by default the table's folder.
        options: Further arguments of `read_table`.

    Raises:
        FileNotFoundError: If a file is missing, or images are.
        ValueError: With all complaints about the table.
    """

    def __init__(self, queries: str | os.PathLike, images: str | os.PathLike | None = None, **options: Any) -> None:
        self.data = read_table(queries, Path(queries).parent if images is None else images, **options)
        self._features: Tensor | None = None

    def prepare(self, model: HyCIRModel, processor: HyCIRProcessor) -> None:
        """Encode the images, before the first step: the encoder is frozen, so their features stay.

        Raises:
            ValueError: If an image is broken.
        """
        model.eval()
        self._features = encode_images(model, processor, self.data.images, label="Validation images")  # (N, D)

    def __call__(self, model: HyCIRModel, processor: HyCIRProcessor, head: Combiner | None = None) -> dict[str, float]:
        """Evaluate: metric -> mean in [0, 1]; with several parts "PART METRIC" and "average METRIC"."""
        if self._features is None:
            self.prepare(model, processor)
        further = {} if head is None else {_COMBINER: combiner_method(model, processor, head)}
        name = MAPPER if head is None else _COMBINER
        found = evaluate_benchmark(
            model, processor, self.data, {}, further, methods=[name], image_features=self._features
        )
        results: Any = found.results  # a table has targets
        parts = results.intervals()[name]
        return {
            metric if len(parts) == 1 else f"{part} {metric}": interval.mean
            for part, metrics in parts.items()
            for metric, interval in metrics.items()
        }
