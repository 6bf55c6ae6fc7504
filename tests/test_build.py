import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build_model, random_picture

from hycir_hf import Gallery
from hycir_hf.files import single_writer
from hycir_hf.images import FeatureEncoder, FeatureStore, encoding, open_source
from hycir_hf.retrieval import index_images


@pytest.fixture
def index(model, processor):
    """Index a folder with the tiny model."""
    encoder = FeatureEncoder(model, processor)
    return lambda folder, output, **options: index_images(
        encoder, open_source(str(folder)), output, **{"progress": False, "encoder_fingerprint": "f"} | options
    )


def write_images(folder, count=10):
    """Images in folders, one broken, one text file, one hidden."""
    for number in range(count):
        path = folder / f"part-{number % 2}" / f"{number:02d}.{('png', 'JPG', 'webp')[number % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        random_picture(number, size=(24, 20)).save(path)
    (folder / "part-0" / "broken.png").write_bytes(b"\x89PNG no image")
    (folder / "part-0" / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def queries_for(gallery):
    return np.random.default_rng(0).standard_normal((4, gallery.dim)).astype(np.float32)


def test_a_broken_file_is_skipped_and_named(index, tmp_path):
    folder, skipped = write_images(tmp_path / "images"), []
    report = index(folder, tmp_path / "gallery", batch_size=4, on_skip=lambda *line: skipped.append(line))
    assert [id_ for id_, _ in skipped] == ["part-0/broken.png"] == [id_ for id_, _ in report.skipped]
    assert len(report.gallery) == 10 == report.num_encoded
    assert report.gallery.ids == sorted(report.gallery.ids) and "part-1/01.JPG" in report.gallery
    assert Gallery.load(tmp_path / "gallery").source == {
        "type": "folder",
        "path": str(folder.resolve()),
        "relative": "../images",
    }


def test_each_image_is_found_by_its_own_features(index, model, processor, tmp_path):
    gallery = index(write_images(tmp_path / "images"), tmp_path / "gallery").gallery
    with torch.no_grad():
        features = model.get_image_features(**processor(images=[random_picture(3, size=(24, 20))]))
    assert gallery.search(features, k=1).ids == [["part-1/03.png"]]


def test_only_what_is_new_or_changed_is_encoded(index, model, processor, tmp_path):
    folder, output = write_images(tmp_path / "images"), tmp_path / "gallery"
    first = index(folder, output)
    again = index(folder, output)
    assert (again.num_encoded, again.num_reused) == (0, 10) and again.skipped == first.skipped
    assert again.gallery.search(queries_for(again.gallery)) == first.gallery.search(queries_for(first.gallery))

    random_picture(50).save(folder / "new.png")
    assert index(folder, output).num_encoded == 1
    (folder / "part-1" / "01.JPG").unlink()
    gone = index(folder, output)
    assert gone.num_encoded == 0 and len(gone.gallery) == 10 and "part-1/01.JPG" not in gone.gallery

    random_picture(99).save(folder / "part-0" / "00.png")  # another image under the same name
    random_picture(98).save(folder / "part-0" / "broken.png")  # mended
    changed = index(folder, output)
    assert (changed.num_encoded, changed.skipped) == (2, [])
    with torch.no_grad():
        features = model.get_image_features(**processor(images=[random_picture(99)]))
    [(id_, score)] = changed.gallery.search(features, k=1)[0]
    assert id_ == "part-0/00.png" and score == pytest.approx(1, abs=1e-5)
    whole = index(folder, tmp_path / "anew")
    assert whole.gallery.ids == changed.gallery.ids
    np.testing.assert_allclose(whole.gallery.features(), changed.gallery.features(), atol=1e-6)


def test_another_encoder_or_preprocessing_starts_afresh(index, model, processor, tmp_path, monkeypatch):
    folder, output = write_images(tmp_path / "images"), tmp_path / "gallery"
    index(folder, output)
    monkeypatch.setattr(model, "encoder_fingerprint", lambda: "another")
    encoder = FeatureEncoder(model, processor)
    report = index_images(encoder, open_source(str(folder)), output, progress=False)
    assert (report.num_encoded, report.num_reused) == (10, 0)


@pytest.mark.parametrize("stopped_after", [1, 2])
def test_a_stopped_index_resumes_and_ends_the_same(stopped_after, index, tmp_path, monkeypatch):
    folder = write_images(tmp_path / "images")
    whole = index(folder, tmp_path / "a", batch_size=3)
    encode, calls = FeatureEncoder.encode, []

    def stop(self, prepared):
        if len(calls) == stopped_after:
            raise KeyboardInterrupt
        calls.append(len(prepared))
        return encode(self, prepared)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureEncoder, "encode", stop)
        with pytest.raises(KeyboardInterrupt):
            index(folder, tmp_path / "b", batch_size=3)
    resumed = index(folder, tmp_path / "b", batch_size=3)
    assert resumed.num_encoded == 10 - sum(calls)
    queries = queries_for(whole.gallery)
    assert resumed.gallery.search(queries) == whole.gallery.search(queries)


def test_a_damaged_block_is_encoded_again(index, tmp_path):
    folder, output = write_images(tmp_path / "images"), tmp_path / "gallery"
    whole = index(folder, output).gallery
    [block] = (output / "features" / "blocks").glob("*.arrow")
    content = bytearray(block.read_bytes())
    content[len(content) // 2] ^= 1
    block.write_bytes(content)
    report = index(folder, output)
    assert report.num_encoded == 10 and report.gallery.search(queries_for(whole)) == whole.search(queries_for(whole))


def test_the_features_of_a_gallery_can_be_used_elsewhere(index, model, processor, tmp_path):
    """A gallery is a feature store, and a store makes a gallery without encoding."""
    gallery = index(write_images(tmp_path / "images"), tmp_path / "gallery").gallery
    features = FeatureStore.open(tmp_path / "gallery", model.encoder_fingerprint())
    assert features.ids == gallery.ids and features.num_views == 1
    encoder = FeatureEncoder(model, processor)
    made = index_images(encoder, features, tmp_path / "made", encoder_fingerprint="f", model_path="m", progress=False)
    assert (made.num_encoded, made.num_reused) == (0, 10)
    loaded = Gallery.load(tmp_path / "made")
    assert loaded.search(queries_for(gallery)) == gallery.search(queries_for(gallery))
    assert loaded.model_path == "m" and loaded.source["type"] == "folder"
    again = index(tmp_path / "images", tmp_path / "made")  # over it, from the images: it encodes into its own folder
    assert again.num_encoded == 10 and (tmp_path / "made" / "features" / "manifest.json").is_file()
    index_images(encoder, features, tmp_path / "made", encoder_fingerprint="f", progress=False)
    assert not (tmp_path / "made" / "features" / "manifest.json").exists()
    other = FeatureEncoder(build_model("clip_legacy"), processor)
    with pytest.raises(ValueError, match=other.settings["encoder"]):
        index_images(other, features, tmp_path / "other", progress=False)


def test_nothing_readable_is_an_error(index, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 images.*a\.png"):
        index(tmp_path / "images", tmp_path / "gallery")
    assert not (tmp_path / "gallery" / "manifest.json").exists()


def test_two_writers_are_refused(index, tmp_path):
    folder, output = write_images(tmp_path / "images"), tmp_path / "gallery"
    with single_writer(output / ".lock", output), pytest.raises(ValueError, match=r"pid \d+.*gallery"):
        index(folder, output)
    shutil.rmtree(folder)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_process_ended_while_indexing_resumes(end, model, processor, tmp_path):
    folder = write_images(tmp_path / "images", count=30)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    arguments = ["index", str(folder), "--model", str(tmp_path / "model"), "--batch-size", "4", "--output"]
    script = (
        "import sys, time\nfrom hycir_hf.cli import main\n"
        "from hycir_hf.images import FeatureEncoder, encoding\n"
        "encode = FeatureEncoder.encode\n"
        "def slow(*args):\n    time.sleep(0.3)\n    return encode(*args)\n"
        "FeatureEncoder.encode, encoding.FLUSH_SECONDS = slow, 0\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    output = tmp_path / "gallery"
    command = [sys.executable, "-c", script, *arguments, str(output)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300  # on a busy machine the imports alone take minutes
    while len(list(output.glob("features/blocks/*.arrow"))) < 2 and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(end)
    _, errors = process.communicate(timeout=600)
    assert not (output / "manifest.json").exists()
    if end == signal.SIGINT:
        assert process.returncode == 130 and "same command" in errors and "Traceback" not in errors
    else:
        assert process.returncode == -signal.SIGKILL
    encoder = FeatureEncoder(model, processor)
    resumed = index_images(encoder, open_source(str(folder)), output, batch_size=4, progress=False)
    whole = index_images(encoder, open_source(str(folder)), tmp_path / "whole", batch_size=4, progress=False)
    assert resumed.num_reused >= 7 and resumed.num_encoded + resumed.num_reused == 30
    assert resumed.gallery.ids == whole.gallery.ids
    queries = queries_for(whole.gallery)
    assert resumed.gallery.search(queries) == whole.gallery.search(queries)


def test_blocks_are_small_while_the_encoder_is_slow(index, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "FLUSH_SECONDS", 0)
    index(write_images(tmp_path / "images"), tmp_path / "gallery", batch_size=2)
    assert len(list((tmp_path / "gallery" / "features" / "blocks").glob("*.arrow"))) >= 5
    assert Path(tmp_path / "gallery" / "manifest.json").is_file()
