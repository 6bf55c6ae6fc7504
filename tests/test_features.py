"""Features of a model: as the model gives them, in views, stored, checked and compared with their images."""

import os
import resource
import shutil
import signal

import numpy as np
import pytest
import torch
from children import exit_status, start
from conftest import build_model, build_processor, random_picture

from hycir_hf.images import FeatureStore, ImageStream, build_features, check_images, encoding, open_images
from hycir_hf.training.data import Share, UnlabeledRows


@pytest.fixture
def build(model, processor):
    """Build the features of a folder, tar shards or a stream."""

    def run(images, place, **options):
        source = images if isinstance(images, ImageStream) else open_images(str(images))
        return build_features(model, processor, source, place, **{"progress": False} | options)[0]

    return run


def test_features_equal_the_models(build, model, processor, picture_folder, tmp_path):
    features = build(picture_folder, tmp_path / "f", batch_size=3, dtype="float32")
    images = open_images(str(picture_folder))
    assert features.ids == images.ids and features.shape == (20, 1, 24)
    with torch.no_grad():
        inputs = processor(images=[images.load(row) for row in range(3)], return_tensors="pt")
        expected = model.get_image_features(**inputs, normalize=False)
    torch.testing.assert_close(features.read([0, 1, 2]), expected, atol=0, rtol=0)
    torch.testing.assert_close(build(picture_folder, tmp_path / "h").read([2]), expected[2:], atol=1e-3, rtol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(features.read_unit(), axis=1), 1, atol=1e-6)


def test_broken_images_are_left_out_and_named(build, picture_folder, tmp_path):
    folder = shutil.copytree(picture_folder, tmp_path / "images")
    (folder / "zz.png").write_bytes(b"broken")
    features = build(folder, tmp_path / "f")
    assert features.skipped_ids() == ["zz.png"] and len(features) == 20


def test_features_of_a_stream(build, syncir_folder, tmp_path):
    features = build(ImageStream(f"{syncir_folder}:images"), tmp_path / "f")
    assert features.ids == [f"{number:02d}.png" for number in range(20)]
    again = build(ImageStream(f"{syncir_folder}:images"), tmp_path / "f")
    assert torch.equal(again.read(range(20)), features.read(range(20)))


def test_views_differ_and_are_drawn_by_step(build, processor, picture_folder, tmp_path):
    features = build(picture_folder, tmp_path / "f", num_views=3, dtype="float32")
    stored = features.store.read(range(20), views=None)
    assert stored.shape == (20, 3, 24) == features.shape
    assert all(np.abs(stored[:, 0] - stored[:, view]).max() > 1e-3 for view in (1, 2))
    rows = UnlabeledRows(features, processor, 8, 0, Share())
    batch = rows.batch(3)
    views = (batch.draws[:, 0] * 3).astype(int)
    assert len(set(views)) > 1
    assert np.array_equal(batch.images.features.numpy(), stored[rows.order.rows(3), views])


@pytest.mark.parametrize(
    ("first", "second", "fact"),
    [
        ({"num_views": 2, "seed": 0}, {"num_views": 2, "seed": 1}, r"seed 0.* 1"),
        ({}, {"dtype": "float32"}, r"dtype 'float16'.*'float32'"),
        ({}, {"num_views": 2}, r"num_views 1.* 2"),
    ],
)
def test_another_option_is_named(first, second, fact, build, picture_folder, tmp_path):
    build(picture_folder, tmp_path / "f", **first)
    with pytest.raises(ValueError, match=fact):
        build(picture_folder, tmp_path / "f", **second)


@pytest.mark.parametrize("option", [{"batch_size": 0}, {"dtype": "int8"}, {"num_views": 0}, {"shard_index": 1}])
def test_options_out_of_range_are_named(option, build, picture_folder, tmp_path):
    with pytest.raises(ValueError, match=next(iter(option))):
        build(picture_folder, tmp_path / "f", **option)


def test_new_images_are_added(build, picture_folder, tmp_path):
    folder = shutil.copytree(picture_folder, tmp_path / "images")
    build(folder, tmp_path / "f")
    random_picture(77).save(folder / "00-new.png")
    features = build(folder, tmp_path / "f")
    assert len(features) == 21 and features.ids == sorted(features.ids)
    whole = build(folder, tmp_path / "whole")
    torch.testing.assert_close(features.read(range(21)), whole.read(range(21)), atol=1e-3, rtol=1e-3)


def test_incomplete_or_foreign_features_are_not_opened(build, model, picture_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "BLOCK_SIZE", 8)
    assert build(picture_folder, tmp_path / "part", batch_size=8, num_shards=2, shard_index=0) is None
    with pytest.raises(FileNotFoundError, match="part"):
        FeatureStore.open(tmp_path / "part")
    with pytest.raises(FileNotFoundError, match="nothing"):
        FeatureStore.open(tmp_path / "nothing")
    features = build(picture_folder, tmp_path / "part", batch_size=8, num_shards=2, shard_index=1)
    assert len(features) == 20
    with pytest.raises(ValueError, match=rf"{model.encoder_fingerprint()}.*another"):
        FeatureStore.open(tmp_path / "part", "another")
    with pytest.raises(ValueError, match=r"preprocessing.*another"):
        features.check("preprocessing", "another")


def _build_on_a_small_disk(picture_folder, place, limit):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    source = open_images(str(picture_folder))
    with pytest.raises(OSError, match=rf"{place}.*same command"):
        build_features(build_model(), build_processor(), source, place, num_views=8, progress=False)


def test_a_full_disk_is_one_clear_line_and_loses_nothing(build, picture_folder, tmp_path):
    place = tmp_path / "f"
    assert exit_status(start(_build_on_a_small_disk, picture_folder, place, 3_000)) == 0
    assert not [path for path in place.rglob("*") if path.suffix == ".tmp"]
    assert len(build(picture_folder, place, num_views=8)) == 20


def test_moved_images_are_the_same_and_others_are_not(build, model, processor, picture_folder, tmp_path):
    """A copy has other modification times: then ids and some features decide."""
    features = build(picture_folder, tmp_path / "f")
    moved = shutil.copytree(picture_folder, tmp_path / "moved")
    for path in moved.iterdir():
        os.utime(path, (1, 1))
    check = lambda folder, same: check_images(features, model, processor, open_images(str(folder)), same)  # noqa: E731
    check(moved, True)
    (moved / "00.png").unlink()
    check(moved, False)
    with pytest.raises(ValueError, match=r"00\.png"):
        check(moved, True)
    random_picture(50).save(moved / "00.png")
    with pytest.raises(ValueError, match=r"00\.png"):
        check(moved, True)
    random_picture(51).save(moved / "more.png")
    with pytest.raises(ValueError, match=r"more\.png"):
        check(moved, True)
