"""Features of a data set's columns: what `datasets.Dataset.map` calls."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..images import FeatureEncoder, encode_list
from ..images.features import unit_rows


class ColumnEncoder:
    """Turns column batches into features: `dataset.map(ColumnEncoder(model, processor), batched=True)`.

    Images alone give the gallery's features; with `text_column`, image and query text give the composed query's.

    Input columns: `image_column`, and `text_column` where it is given.
    Output columns: `features`, rows of D float32 values, unit L2 norm.

    Args:
        model (`HyCIRModel`): On the device where it should run; put in eval mode.
        processor (`HyCIRProcessor`): The model's.
        image_column (`str`): Column of images (or paths, or bytes); composed queries may hold a list in each row.
        text_column (`str`, *optional*): Column of query texts; "" is the image alone.
    """

    def __init__(
        self, model: Any, processor: Any, *, image_column: str = "image", text_column: str | None = None
    ) -> None:
        self.model, self.processor = model.eval(), processor
        self.image_column, self.text_column = image_column, text_column

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Encode a batch of B rows.

        Raises:
            ValueError: If a column is missing, the batch is a single row, or an image is broken.
        """
        import torch

        images = self._column(batch, self.image_column)
        if self.text_column is None:
            features = encode_list(images, FeatureEncoder(self.model, self.processor), progress=False)  # (B, 1, D)
            return {"features": unit_rows(features[:, 0])}
        texts = self._column(batch, self.text_column)
        rows = [image if isinstance(image, list) else [image] for image in images]
        inputs = self.processor(images=rows, text=texts, return_tensors="pt").to(self.model.device)
        with torch.inference_mode():
            return {"features": self.model.get_composed_features(**inputs).float().cpu().numpy()}  # (B, D)

    def _column(self, batch: Mapping[str, Any], name: str) -> list[Any]:
        if name not in batch:
            raise ValueError(
                f"Expected the column {name!r}, but found {list(batch)}. Name another as image_column or text_column."
            )
        values = batch[name]
        if not isinstance(values, list):
            raise ValueError(
                f"Expected a batch of column {name!r} as a list, but found {type(values).__name__}. Map with "
                "batched=True, and without a format (dataset.with_format(None))."
            )
        return values
