"""Features of a dataset's columns: what `datasets.Dataset.map` calls."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..images import FeatureEncoder, encode_list
from ..images.features import unit_rows
from ..modeling_hycir import HyCIRModel
from ..processing_hycir import HyCIRProcessor


class ColumnEncoder:
    """Turns batches of columns into features: `dataset.map(ColumnEncoder(model, processor), batched=True)`.

    Images alone give image features, as in a gallery. With `text_column`, each row gives a composed query's features.

    Input columns: `image_column`, and `text_column` if it is given.
    Output columns: `features`, rows of D float32 values, unit L2 norm.

    Args:
        model (`HyCIRModel`): The model, on the device where it should run. It is put into eval mode.
        processor (`HyCIRProcessor`): The model's processor.
        image_column (`str`): Column of images, paths or bytes. For composed queries, a row may hold a list of them.
        text_column (`str`, *optional*): Column of query texts. "" means the image alone.
    """

    def __init__(
        self,
        model: HyCIRModel,
        processor: HyCIRProcessor,
        *,
        image_column: str = "image",
        text_column: str | None = None,
    ) -> None:
        self.model, self.processor = model.eval(), processor
        self.image_column, self.text_column = image_column, text_column

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Encode a batch of B rows.

        Raises:
            ValueError: If a column is missing, the batch is a single row, or an image is broken.
        """
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
                f"There is no column {name!r}, only {list(batch)}. Name another as image_column or text_column."
            )
        values = batch[name]
        if not isinstance(values, list):
            raise ValueError(
                f"Expected a list as a batch of the column {name!r}, but found {type(values).__name__}. Map with "
                "batched=True, and without a format: dataset.with_format(None)."
            )
        return values
