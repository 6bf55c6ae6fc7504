"""The one loop and the one store: parallel, resumable, shared, and honest about what is broken and what is not."""

import contextlib
import errno
import gc
import json
import os
import pickle
import signal
import time
import weakref
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from children import exit_status, start
from conftest import random_picture
from PIL import Image

from hycir_hf.files import passing_error
from hycir_hf.images import FolderSource, ImageStore, ImageStream, ListSource, encode_images, encode_list, encoding
from hycir_hf.images_hycir import load_image


class Pixels:
    """An encoder whose value is the image's first pixel, `(1, 3)`."""

    settings = MappingProxyType({"encoder": "pixels"})

    def __init__(self):
        self.batches = []

    def prepare(self, image_id, image):
        return np.asarray(image)[0, 0]

    def encode(self, prepared):
        self.batches.append(len(prepared))
        return np.stack(prepared).astype(np.float32)[:, None]


class Texts(Pixels):
    settings = MappingProxyType({"encoder": "texts"})

    def encode(self, prepared):
        return [f"pixel {pixel.tolist()} é" for pixel in prepared]


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "images"
    path.mkdir()
    for number in range(20):
        Image.new("RGB", (8, 8), (number, 2 * number, 0)).save(path / f"{number:02d}.png")
    return path


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(encoding, "BLOCK_SIZE", 8)


def encode(source, place, encoder=None, **options):
    return encode_images(source, encoder or Pixels(), place, **{"progress": False, "batch_size": 4} | options)


def expected(numbers):
    return np.array([[number, 2 * number, 0] for number in numbers], np.float32)


def test_values_come_back_in_the_order_of_the_source(folder, tmp_path, small_blocks):
    store, report = encode(FolderSource(folder), tmp_path / "store")
    assert store.is_complete and report.num_encoded == 20 and len(store.ids) == 20
    np.testing.assert_array_equal(store.read(range(20)), expected(range(20)))
    opened = ImageStore.open(tmp_path / "store")
    assert opened.ids == store.ids and opened.value_shape == (1, 3)
    np.testing.assert_array_equal(opened.read([19, 0, 7, 7]), expected([19, 0, 7, 7]))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(opened)).read([3]), expected([3]))
    assert len(list((tmp_path / "store" / "blocks").iterdir())) == 3


def test_values_are_mapped_not_copied(folder, tmp_path):
    store, _ = encode(FolderSource(folder), tmp_path / "store")
    [block] = (tmp_path / "store" / "blocks").iterdir()
    vectors = store._vectors(0)
    assert not vectors.flags.owndata and not vectors.flags.writeable
    if Path("/proc/self/maps").exists():
        assert block.name in Path("/proc/self/maps").read_text(encoding="utf-8")


def test_texts_can_be_stored(folder, tmp_path):
    store, _ = encode(FolderSource(folder), tmp_path / "store", Texts())
    assert store.texts()["07.png"] == "pixel [7, 14, 0] é"
    assert list(ImageStore.open(tmp_path / "store").texts()) == store.ids


def test_ids_of_any_name_survive(tmp_path):
    ids = ["ä/ö ü.png", "日本.jpg", "bad-\udcff.png", "with\nnewline", "😀"]
    images = [Image.new("RGB", (2, 2), (number, 0, 0)) for number in range(5)]
    encode(ListSource(images, ids), tmp_path / "store")
    opened = ImageStore.open(tmp_path / "store")
    assert opened.ids == ids and opened.read([4])[0, 0] == 4


@pytest.mark.parametrize("name", ["EIO", "ESTALE", "EMFILE", "ENFILE", "ENOSPC", "ENOMEM", "ETIMEDOUT"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_failing_storage_stops_the_run_and_is_never_noted(name, wrapped, folder, tmp_path, monkeypatch):
    source, place = FolderSource(folder), tmp_path / "store"
    load = source.load

    def fail(row):
        if row != 9:
            return load(row)
        error = OSError(getattr(errno, name), "from the file server")
        if wrapped:
            raise ValueError("the image cannot be read") from error
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(source, "load", fail)
        with pytest.raises(OSError, match=r"09\.png.*from the file server"):
            encode(source, place)
    store, report = encode(source, place)
    assert store.skipped == [] and report.num_reused >= 4
    np.testing.assert_array_equal(store.read(range(20)), expected(range(20)))


def test_a_failing_storage_is_noticed_while_files_are_listed(folder, tmp_path, monkeypatch):
    source = FolderSource(folder)

    def fail(self, **options):
        raise OSError(errno.ESTALE, "stale file handle")

    monkeypatch.setattr(Path, "stat", fail)
    with pytest.raises(OSError, match="stale file handle"):
        source.stamp(0)


def test_an_image_without_permission_is_read_once_it_may_be_read(folder, tmp_path, monkeypatch):
    source = FolderSource(folder)
    with monkeypatch.context() as patch:
        patch.setattr(FolderSource, "load", refuse_third)
        assert len(encode(source, tmp_path / "store")[1].skipped) == 1
    store, report = encode(source, tmp_path / "store")
    assert report.num_encoded == 1 and report.skipped == store.skipped == [] and store.ids == source.ids
    assert encode(source, tmp_path / "store")[1].num_encoded == 0


def refuse_third(source, row):
    if row == 2:
        raise PermissionError(errno.EACCES, "Permission denied", "02.png")
    return Image.new("RGB", (8, 8), (row, 0, 0))


def test_broken_images_are_skipped_named_and_noted(folder, tmp_path):
    (folder / "05.png").write_bytes(b"no image")
    (folder / "06.png").write_bytes((folder / "06.png").read_bytes()[:50])
    said = []
    store, _ = encode(FolderSource(folder), tmp_path / "store", on_skip=lambda *line: said.append(line))
    assert [id_ for id_, _ in store.skipped] == ["05.png", "06.png"] == [id_ for id_, _ in said]
    assert all(reason for _, reason in store.skipped) and len(store.ids) == 18
    again, report = encode(FolderSource(folder), tmp_path / "store")
    assert again.skipped == store.skipped == report.skipped and report.num_encoded == 0
    assert ImageStore.open(tmp_path / "store").skipped == store.skipped
    Image.new("RGB", (8, 8), (5, 10, 0)).save(folder / "05.png")
    mended, report = encode(FolderSource(folder), tmp_path / "store")
    assert report.num_encoded == 1 and [id_ for id_, _ in mended.skipped] == ["06.png"]


def test_what_is_gone_leaves_no_file(folder, tmp_path, small_blocks):
    encode(FolderSource(folder), tmp_path / "store", batch_size=8)
    for number in range(8):
        (folder / f"{number:02d}.png").unlink()
    store, report = encode(FolderSource(folder), tmp_path / "store", batch_size=8)
    assert report.num_encoded == 0 and len(store.ids) == 12
    assert len(list((tmp_path / "store" / "blocks").iterdir())) == 2
    assert len(list((tmp_path / "store").glob("rows-*.arrow"))) == 1
    np.testing.assert_array_equal(store.read([0]), expected([8]))


@pytest.mark.parametrize("count", [2, 3])
def test_shards_complete_one_store(count, folder, tmp_path, small_blocks):
    source, place = FolderSource(folder), tmp_path / "store"
    reports = []
    for index in reversed(range(count)):
        store, report = encode(source, place, num_shards=count, shard_index=index)
        assert store.is_complete == (index == 0)
        reports.append(report.num_encoded)
    assert sum(reports) == 20
    np.testing.assert_array_equal(store.read(range(20)), expected(range(20)))
    with pytest.raises(FileNotFoundError, match="other"):
        encode(source, tmp_path / "other", num_shards=2, shard_index=1)
        ImageStore.open(tmp_path / "other")


def _encode_and_die(folder, place):
    encoding.BLOCK_SIZE = 8
    append = ImageStore.append

    def append_and_die(self, *values):
        append(self, *values)
        signal.raise_signal(signal.SIGKILL)

    ImageStore.append = append_and_die
    encode(FolderSource(folder), place)


def test_a_killed_run_resumes_with_the_same_batches(folder, tmp_path, small_blocks):
    whole, _ = encode(FolderSource(folder), tmp_path / "whole")
    assert exit_status(start(_encode_and_die, folder, tmp_path / "killed")) == -signal.SIGKILL
    encoder = Pixels()
    resumed, report = encode(FolderSource(folder), tmp_path / "killed", encoder)
    assert (report.num_reused, encoder.batches) == (8, [4, 4, 4])
    np.testing.assert_array_equal(resumed.read(range(20)), whole.read(range(20)))
    names = [sorted(path.name for path in (tmp_path / name / "blocks").iterdir()) for name in ("whole", "killed")]
    assert names[0] == names[1]


@pytest.mark.parametrize("pattern", ["blocks/*.arrow", "rows-*.arrow", "manifest.json"])
def test_a_damaged_file_is_named_or_made_again(pattern, folder, tmp_path):
    place = tmp_path / "store"
    encode(FolderSource(folder), place)
    [path] = place.glob(pattern)
    content = path.read_bytes()
    for damaged in (content[:-5], content[: len(content) // 2], b"", content[:60] + b"\xff" + content[61:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=path.name):
            ImageStore.open(place).read([0])
    path.write_bytes(content)
    np.testing.assert_array_equal(ImageStore.open(place).read([0]), expected([0]))


def test_other_settings_and_other_folders_are_refused(folder, tmp_path):
    encode(FolderSource(folder), tmp_path / "store")
    with pytest.raises(ValueError, match=r"store.*encoder.*pixels.*texts"):
        encode(FolderSource(folder), tmp_path / "store", Texts())
    with pytest.raises(ValueError, match=r"images.*00\.png|images.*\.png"):
        encode(FolderSource(folder), folder)
    (tmp_path / "store" / "manifest.json").write_text(json.dumps({"format": "other", "format_version": 1}))
    with pytest.raises(ValueError, match=r"manifest\.json.*other"):
        ImageStore.open(tmp_path / "store")


def test_decoded_images_do_not_pile_up(folder, tmp_path):
    """A batch of 64 photographs of 12 megapixels takes 2 GB decoded: only what `prepare` gives is kept."""
    decoded, alive = [], []

    class Watching(Pixels):
        def prepare(self, image_id, image):
            decoded.append(weakref.ref(image))
            return super().prepare(image_id, image).copy()

        def encode(self, prepared):
            gc.collect()
            alive.append(sum(image() is not None for image in decoded))
            return super().encode(prepared)

    encode(FolderSource(folder), tmp_path / "store", Watching(), batch_size=10, num_workers=4)
    assert len(decoded) == 20 and max(alive) <= 4


def test_a_list_is_encoded_in_order_and_a_broken_image_is_named():
    images = [random_picture(seed) for seed in range(5)]
    values = encode_list(images, Pixels(), batch_size=2, progress=False)
    assert values.shape == (5, 1, 3) and values[3, 0].tolist() == list(images[3].getpixel((0, 0)))
    with pytest.raises(ValueError, match="image two"):
        encode_list([images[0], b"no image"], Pixels(), ["one", "two"], progress=False)
    with pytest.raises(ValueError, match="no images"):
        encode_list([], Pixels())


class Doubled(Pixels):
    """Another model: its values are twice as large."""

    settings = MappingProxyType({"encoder": "doubled"})

    def encode(self, prepared):
        return 2 * super().encode(prepared)


def test_values_of_another_model_are_never_taken(folder, tmp_path, monkeypatch):
    """Also where the removal of the old ones was killed at any moment."""
    for number in range(4):
        place = tmp_path / str(number)
        encode(FolderSource(folder), place)
        unlink, calls = Path.unlink, []

        def die(path, missing_ok=False, unlink=unlink, calls=calls, number=number):
            if len(calls) == number:
                raise KeyboardInterrupt
            calls.append(path)
            unlink(path, missing_ok=missing_ok)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", die)
            with contextlib.suppress(KeyboardInterrupt):
                ImageStore.remove(place)
        if (place / "manifest.json").exists():
            ImageStore.remove(place)
        store, report = encode(FolderSource(folder), place, Doubled())
        assert report.num_encoded == 20
        np.testing.assert_array_equal(store.read(range(20)), 2 * expected(range(20)))


def test_blocks_without_a_manifest_are_not_trusted(folder, tmp_path):
    encode(FolderSource(folder), tmp_path / "store")
    (tmp_path / "store" / "manifest.json").unlink()
    store, report = encode(FolderSource(folder), tmp_path / "store", Doubled())
    assert report.num_encoded == 20
    np.testing.assert_array_equal(store.read(range(20)), 2 * expected(range(20)))


def _encode_shard(folder, place, index, moment):
    time.sleep(max(0.0, moment - time.time()))
    encoding.BLOCK_SIZE = 8
    encode(FolderSource(folder), place, num_shards=2, shard_index=index)


def test_shards_that_finish_at_once_leave_a_readable_store(folder, tmp_path):
    for trial in range(8):
        place = tmp_path / str(trial)
        moment = time.time() + 0.2
        children = [start(_encode_shard, folder, place, index, moment) for index in (0, 1)]
        assert [exit_status(child) for child in children] == [0, 0]
        np.testing.assert_array_equal(ImageStore.open(place).read(range(20)), expected(range(20)))


def test_another_source_in_the_folder_is_noticed(tmp_path):
    one, other = (ImageStore.begin(tmp_path / "store", Pixels.settings) for _ in range(2))
    one.append(["a"], ["1"], np.ones((1, 1, 3), np.float32), [])
    other.append(["b"], ["1"], np.zeros((1, 1, 3), np.float32), [])
    assert one.finish(["a"], ["1"])
    assert not other.finish(["b"], ["1"])  # its block was removed, and it says so
    assert ImageStore.open(tmp_path / "store").ids == ["a"]


def test_values_of_other_images_can_be_kept(tmp_path):
    images = [Image.new("RGB", (2, 2), (number, 0, 0)) for number in range(4)]
    for rows, encoded in (((0, 1), 2), ((2, 3), 2), ((0, 1), 0)):
        source = ListSource([images[row] for row in rows], [str(row) for row in rows])
        store, report = encode(source, tmp_path / "store", prune=False)
        assert report.num_encoded == encoded and store.read([0, 1])[:, 0].tolist() == list(rows)


def test_a_store_that_changed_is_not_opened_in_a_worker(folder, tmp_path):
    encode(FolderSource(folder), tmp_path / "store")
    sent = pickle.dumps(ImageStore.open(tmp_path / "store"))
    Image.new("RGB", (8, 8), (99, 0, 0)).save(folder / "00.png")
    encode(FolderSource(folder), tmp_path / "store")
    with pytest.raises(ValueError, match="changed"):
        pickle.loads(sent)


def test_a_changed_image_in_memory_is_encoded_again(tmp_path):
    for red in (10, 20):
        images = [Image.new("RGB", (4, 4), (red, 0, 0)), b"", np.full((4, 4, 3), red, np.uint8)]
        store, report = encode(ListSource(images, ["a", "broken", "b"]), tmp_path / "store")
        assert report.num_encoded == 2 and store.read([0, 1])[:, 0].tolist() == [red, red]


def test_a_changed_image_of_a_stream_of_paths_is_encoded_again(folder, tmp_path):
    rows = tmp_path / "rows.jsonl"
    for names, encoded in ((["00", "01"], 2), (["02", "00", "01"], 3)):
        rows.write_text("".join(json.dumps({"image": str(folder / f"{name}.png")}) + "\n" for name in names))
        encoder = PathPixels()
        store, report = encode(ImageStream(str(rows)), tmp_path / "store", encoder)
        assert report.num_encoded == encoded
        np.testing.assert_array_equal(store.read(range(len(names))), expected(map(int, names)))


def test_a_stream_that_holds_an_id_twice_is_refused(folder, tmp_path):
    rows = tmp_path / "rows.jsonl"
    lines = [{"image_id": "same", "image": str(folder / f"0{i}.png")} for i in range(2)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match="same"):
        encode(ImageStream(str(rows)), tmp_path / "store", PathPixels())


class PathPixels(Pixels):
    def prepare(self, image_id, image):
        return super().prepare(image_id, load_image(image))


def test_a_folder_that_cannot_be_listed_for_a_moment_stops_the_run(folder, monkeypatch):
    scandir = os.scandir

    def fail(path):
        if str(path) == str(folder):
            raise OSError(errno.ESTALE, "stale file handle")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(OSError, match="stale file handle"):
        FolderSource(folder)


def test_a_truncated_image_in_a_list_is_skipped(folder, tmp_path):
    (tmp_path / "cut.png").write_bytes((folder / "05.png").read_bytes()[:50])
    images = [Image.open(folder / "04.png"), Image.open(tmp_path / "cut.png")]
    store, _ = encode(ListSource(images, ["whole", "cut"]), tmp_path / "store")
    assert store.ids == ["whole"] and [id_ for id_, _ in store.skipped] == ["cut"]


def test_an_empty_source_is_refused(tmp_path):
    with pytest.raises(ValueError, match="empty"):
        encode(ListSource([], []), tmp_path / "store")


def test_only_passing_errors_pass():
    assert passing_error(OSError(errno.ESTALE, "stale")) is not None
    assert passing_error(FileNotFoundError(errno.ENOENT, "gone")) is None
    assert passing_error(PermissionError(errno.EACCES, "no")) is None
    assert passing_error(OSError("cannot identify image file")) is None
    assert passing_error(ValueError("broken")) is None
