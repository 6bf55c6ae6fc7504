import datasets
import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from hycir_hf.schemas import GALLERY, QUERY, TRIPLET, UNLABELED

ROWS = {
    "unlabeled": (UNLABELED, {"image_id": "a", "image": Image.new("RGB", (4, 4)), "caption": "a cat"}),
    "triplet": (
        TRIPLET,
        {
            "reference_id": "a",
            "target_id": "b",
            "query_text": "make it night",
            "reference_caption": "a cat",
            "target_caption": "a cat at night",
            "similarity": 0.75,
            "group_id": 3,
        },
    ),
    "query": (
        QUERY,
        {
            "query_id": "q",
            "reference_id": "a",
            "query_text": "make it night",
            "target_ids": ["b", "c"],
            "subset_ids": [],
            "hard_negative_ids": ["a"],
            "rule": "time",
            "wording": 2,
            "split": "val",
        },
    ),
    "gallery": (
        GALLERY,
        {"image_id": "a", "image": Image.new("RGB", (4, 4)), "name": "cat", "vendor": "noto", "concept": "cat"},
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_survives_parquet(name, tmp_path):
    features, row = ROWS[name]
    path = tmp_path / "rows.parquet"
    Dataset.from_list([row], features=features).to_parquet(path)
    read = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert read.features == features
    for key, value in row.items():
        same = np.array_equal(read[0][key], value) if key == "image" else read[0][key] == value
        assert same, key
