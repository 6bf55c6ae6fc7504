"""Which image files are decoded, how large they may be, and how much memory many readers take."""

import subprocess
import threading
import time
import warnings

import numpy as np
import pytest
from conftest import random_picture
from PIL import Image

from hycir_hf import images_hycir
from hycir_hf.images import FolderSource, encode_images, encoding
from hycir_hf.images.features import augment
from hycir_hf.images_hycir import load_image

LOSSLESS = ("apng", "bmp", "dib", "png", "ppm", "qoi", "tga", "tif", "webp")


def save(path, seed=0, size=(40, 30)):
    options = {"apng": {"format": "PNG"}, "webp": {"lossless": True}}.get(path.suffix[1:], {})
    random_picture(seed, size=size).resize(size, Image.Resampling.BICUBIC).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [*LOSSLESS, "avif", "gif", "heic", "heif", "ico", "jfif", "jp2", "jpg", "mpo"])
def test_the_formats_of_images(suffix, tmp_path):
    loaded = load_image(save(tmp_path / f"a.{suffix}"))
    expected = random_picture(0, size=(40, 30))
    assert loaded.mode == "RGB" and loaded.size == ((40, 30) if suffix != "ico" else loaded.size)
    if suffix in LOSSLESS:
        assert np.array_equal(np.asarray(loaded), np.asarray(expected))


def test_a_turned_heic_stands_upright(tmp_path):
    """libheif turns it; it is not turned twice."""
    exif = Image.Exif()
    exif[0x0112] = 6
    random_picture(size=(40, 30)).save(tmp_path / "a.heic", exif=exif.tobytes())
    assert load_image(tmp_path / "a.heic").size == (30, 40)


def test_postscript_is_never_run(tmp_path, monkeypatch):
    """Under any name, as bytes, or opened by Pillow before."""
    random_picture().save(tmp_path / "a.eps")
    content = (tmp_path / "a.eps").read_bytes()
    (tmp_path / "a.png").write_bytes(content)

    def run(*args, **kwargs):
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", run)
    monkeypatch.setattr(subprocess, "check_call", run)
    binary = b"\xc5\xd0\xd3\xc6" + bytes(28) + content
    for image in (
        tmp_path / "a.eps",
        tmp_path / "a.png",
        content,
        binary,
        {"bytes": content},
        Image.open(tmp_path / "a.eps"),
    ):
        with pytest.raises(ValueError, match="PostScript"):
            load_image(image)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<svg xmlns='x'/>", "SVG"),
        (b"\xef\xbb\xbf\n<?xml version='1.0'?><svg/>", "SVG"),
        (b"%PDF-1.7 ...", "PDF"),
        (b"", "damaged"),
        (b"text", "damaged"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (b"8BPS" + bytes(30), "damaged"),
        (b"DDS " + bytes(200), "damaged"),
    ],
)
def test_other_files_say_what_they_are(content, reason):
    with pytest.raises(ValueError, match=reason):
        load_image(content)


def test_without_pillow_heif_the_message_names_it(tmp_path, monkeypatch):
    path = save(tmp_path / "a.heic")
    monkeypatch.delitem(Image.OPEN, "HEIF")
    with pytest.raises(ValueError, match=r"pillow-heif.*hycir_hf\[heif\]"):
        load_image(path)


def test_todays_cameras_fit_and_a_limit_is_named(tmp_path, monkeypatch):
    """102 megapixels: without a warning, and cropped for a view too. The file is small, as it is of one colour."""
    path = tmp_path / "camera.jpg"
    Image.new("L", (11_664, 8750)).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = load_image(path)
        assert image.size == (11_664, 8750)
        assert min(augment(image, [0, 1], "x").size) > 8000
    monkeypatch.setattr(images_hycir, "MAX_PIXELS", 100_000_000)
    with pytest.raises(ValueError, match=r"102 megapixels.*100.*HYCIR_MAX_MEGAPIXELS"):
        load_image(path)


@pytest.mark.parametrize("value", ["none", "0", "-1", "inf", ""])
def test_the_limit_is_set_by_the_environment(value, monkeypatch):
    monkeypatch.setenv("HYCIR_MAX_MEGAPIXELS", "0.5")
    assert images_hycir._read_max_pixels() == 500_000
    monkeypatch.setenv("HYCIR_MAX_MEGAPIXELS", value)
    with pytest.raises(ValueError, match=f"HYCIR_MAX_MEGAPIXELS.*{value!r}"):
        images_hycir._read_max_pixels()


def test_many_readers_share_bounded_memory(tmp_path, monkeypatch):
    """At most so many pixels are decoded at once, a larger image alone; and all of them are read."""
    for number in range(24):
        Image.new("RGB", (100, 100) if number % 4 else (300, 100)).save(tmp_path / f"{number:02d}.png")
    monkeypatch.setattr(encoding, "MAX_PIXELS", 20_000)
    lock, now, most = threading.Lock(), [], []

    class Watch:
        settings = {"encoder": "watch"}  # noqa: RUF012

        def prepare(self, image_id, image):
            with lock:
                now.append(image.size)
                most.append(sum(width * height for width, height in now))
            time.sleep(0.005)
            with lock:
                now.remove(image.size)
            return np.zeros(1, np.float32)

        def encode(self, prepared):
            return np.stack(prepared)

    store, report = encode_images(
        FolderSource(tmp_path), Watch(), tmp_path / "store", num_workers=8, progress=False, batch_size=24
    )
    assert len(store.ids) == 24 and not report.skipped
    assert max(most) <= 30_000 and 20_000 in most and 10_000 in most
