"""`dataset.map` with the encoder, and the faiss index of the mapped dataset."""

import faiss
import numpy as np
import pytest
import torch
from conftest import build_model, build_processor, random_picture
from datasets import Dataset, List, load_dataset
from datasets import Image as ImageFeature

from hycir_hf import Gallery
from hycir_hf.integrations.columns import ColumnEncoder

PICTURES = [random_picture(seed) for seed in range(7)]
TEXTS = ["make it night", "", "red", "a hat", "night", "more dog", "snow"]


def pictures(**columns):
    return Dataset.from_dict({"image": PICTURES, **columns}).cast_column("image", ImageFeature())


def test_images_give_the_gallerys_features_whatever_the_batch():
    model, processor = build_model().train(), build_processor()
    mapped = pictures().map(ColumnEncoder(model, processor), batched=True, batch_size=3)
    expected = Gallery.from_images(model, processor, PICTURES, progress=False).features()
    np.testing.assert_allclose(np.array(mapped["features"][:]), expected, atol=1e-6)
    assert isinstance(mapped.features["features"], List)
    assert mapped.features["features"].feature.dtype == "float32" and mapped.column_names == ["image", "features"]


def test_images_and_texts_give_the_composed_features():
    model, processor = build_model(), build_processor()
    encoder = ColumnEncoder(model, processor, image_column="picture", text_column="change")
    rows = pictures(change=TEXTS).rename_column("image", "picture")
    found = rows.map(encoder, batched=True, batch_size=4, remove_columns="picture")
    with torch.no_grad():
        expected = model.get_composed_features(**processor(images=PICTURES, text=TEXTS))
    np.testing.assert_allclose(np.array(found["features"][:]), expected, atol=1e-5)
    both = encoder({"picture": [[PICTURES[0], PICTURES[1]]], "change": ["red"]})["features"]
    with torch.no_grad():
        expected = model.get_composed_features(**processor(images=[[PICTURES[0], PICTURES[1]]], text=["red"]))
    np.testing.assert_allclose(both, expected, atol=1e-5)


def test_the_faiss_index_of_a_mapped_dataset_is_the_gallery():
    model, processor = build_model(), build_processor()
    mapped = pictures().map(ColumnEncoder(model, processor), batched=True, batch_size=3)
    mapped.add_faiss_index("features", metric_type=faiss.METRIC_INNER_PRODUCT)
    queries = pictures(query_text=TEXTS).map(
        ColumnEncoder(model, processor, text_column="query_text"), batched=True, remove_columns="image"
    )
    queries = np.array(queries["features"][:], dtype=np.float32)
    scores, rows = mapped.search_batch("features", queries, k=4)
    results = Gallery.from_images(model, processor, PICTURES, progress=False).search(queries, k=4)
    assert [[str(row) for row in ranking] for ranking in rows] == results.ids
    np.testing.assert_allclose(scores, results.scores, atol=1e-5)


def test_a_second_map_reads_what_the_first_wrote(tmp_path):
    pictures().to_parquet(tmp_path / "pictures.parquet")
    loaded = load_dataset("parquet", data_files=str(tmp_path / "pictures.parquet"), cache_dir=tmp_path, split="train")
    first, again = (
        loaded.map(ColumnEncoder(build_model(), build_processor()), batched=True, batch_size=3) for _ in range(2)
    )
    assert first._fingerprint == again._fingerprint and first.cache_files == again.cache_files
    other = build_model()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    changed = loaded.map(ColumnEncoder(other, build_processor()), batched=True, batch_size=3)
    assert changed._fingerprint != first._fingerprint


def test_what_cannot_be_encoded_is_refused():
    encoder = ColumnEncoder(build_model(), build_processor(), text_column="query_text")
    with pytest.raises(ValueError, match=r"'query_text'.*\['image'\]"):
        encoder({"image": PICTURES})
    with pytest.raises(ValueError, match="batched=True"):
        encoder({"image": PICTURES[0], "query_text": "red"})
    formatted = pictures(query_text=TEXTS).with_format("numpy")
    with pytest.raises(ValueError, match=r"ndarray.*with_format\(None"):
        formatted.map(encoder, batched=True)
