"""HyCIRProcessor: prompts, cuts, padding; and pictures of every kind."""

import errno
import io
import json
import logging
import os
import re
import struct

import numpy as np
import pytest
import torch
from conftest import (
    BOS,
    EOS,
    IMAGE_SIZE,
    MAX_LENGTH,
    NUM_PSEUDO_TOKENS,
    PAD,
    build_encoder,
    build_image_processor,
    build_processor,
    build_tokenizer,
    random_picture,
)
from PIL import Image, ImageOps
from transformers import AutoProcessor

import hycir_hf.processing_hycir as processing
from hycir_hf import HyCIRModel, HyCIRProcessor
from hycir_hf.images_hycir import load_image

HOLES = [-1] * NUM_PSEUDO_TOKENS


def ids_of(words):
    return build_tokenizer()(words, add_special_tokens=False)["input_ids"]


def rows_of(batch):
    """Token rows without padding."""
    return [
        [int(i) for i, m in zip(ids, mask, strict=True) if m]
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


# --- prompts


def test_composed_prompt(processor):
    batch = processor(images=[random_picture()], text=["make it night"])
    assert rows_of(batch) == [[BOS, *ids_of("a photo of"), *HOLES, *ids_of(", make it night"), EOS]]
    assert batch["pixel_values"].shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_empty_text_means_the_image_alone(processor, text):
    assert rows_of(processor(text=[text])) == [[BOS, *ids_of("a photo of"), *HOLES, EOS]]


@pytest.mark.parametrize(
    ("prompt", "with_text", "without_text"),
    [
        ("a photo of {image} that {text}", "a photo of <> that red", "a photo of <> that"),
        ("{text}, a photo of {image}", "red, a photo of <>", "a photo of <>"),
        ("{image}: {text}.", "<>: red.", "<>."),
        ("{image}{text}", "<>red", "<>"),
    ],
)
def test_other_prompts(prompt, with_text, without_text):
    processor = build_processor(prompt=prompt)
    for text, expected in (("red", with_text), ("", without_text)):
        before, after = (ids_of(part) for part in expected.split("<>"))
        assert rows_of(processor(text=text)) == [[BOS, *before, *HOLES, *after, EOS]]


@pytest.mark.parametrize("prompt", ["{text}", "a photo", "{image} {image} {text}"])
def test_bad_prompts_are_refused(prompt):
    with pytest.raises(ValueError, match=re.escape(repr(prompt))):
        build_processor(prompt=prompt)


def test_several_images_a_row(processor):
    pictures = [random_picture(i) for i in range(3)]
    batch = processor(images=[pictures[:2], pictures[2]], text=["the hat of the second on the first", ""])
    first, second = rows_of(batch)
    assert first[: 4 + 2 * NUM_PSEUDO_TOKENS + 1] == [BOS, *ids_of("a photo of"), *HOLES, *ids_of("and"), *HOLES]
    assert second == [BOS, *ids_of("a photo of"), *HOLES, EOS]
    assert len(batch["pixel_values"]) == 3
    for i, picture in enumerate(pictures):
        assert torch.equal(batch["pixel_values"][i], processor(images=picture)["pixel_values"][0])


@pytest.mark.parametrize("text", ["costs 5 $, $ $ $", "[$]", "{image} and {text}", "<pad>", "\\1 {0}"])
def test_no_text_makes_or_breaks_a_placeholder(processor, text):
    (row,) = rows_of(processor(text=[text]))
    assert row.count(-1) == NUM_PSEUDO_TOKENS
    assert row[4 : 4 + NUM_PSEUDO_TOKENS] == HOLES


def test_in_vocabulary_placeholder():
    dollar = ids_of("$")[0]
    processor = build_processor(placeholder_token_id=dollar)
    assert rows_of(processor(text=["red"]))[0].count(dollar) == NUM_PSEUDO_TOKENS
    with pytest.raises(ValueError, match=rf"'costs 5 \$'.*id {dollar}\b"):
        processor(text=["costs 5 $"])
    assert rows_of(processor(text=["costs 5 $"], compose=False))[0].count(dollar) == 1


def test_plain_text_is_the_tokenizers_own(processor):
    texts = ["a red hat", "", "the dog in the snow!"]
    expected = build_tokenizer()(texts, padding=True, return_tensors="pt")
    batch = processor(text=texts, compose=False)
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])


def test_padding_goes_to_the_longest_of_the_batch(processor):
    batch = processor(text=["make it night", ""])
    assert batch["input_ids"].shape == (2, 4 + NUM_PSEUDO_TOKENS + 4 + 1)
    assert (batch["input_ids"][1][-4:] == PAD).all() and not batch["attention_mask"][1][-4:].any()


def test_siglip_is_padded_to_its_full_length_without_mask():
    batch = build_processor(pad_to_max_length=True)(text=["make it night"])
    assert batch["input_ids"].shape == (1, MAX_LENGTH)
    assert "attention_mask" not in batch


@pytest.mark.parametrize("prompt", ["a photo of {image}, {text}", "{text}: a photo of {image}"])
def test_long_texts_are_cut_and_reported_once(prompt, caplog):
    processor = build_processor(prompt=prompt)
    with caplog.at_level(logging.WARNING, logger=processing.__name__):
        rows = rows_of(processor(text=["red " * 200, "", "blue " * 300]))
    assert [len(row) for row in rows] == [MAX_LENGTH, 5 + NUM_PSEUDO_TOKENS, MAX_LENGTH]
    assert all(row[0] == BOS and row[-1] == EOS and row.count(-1) == NUM_PSEUDO_TOKENS for row in rows)
    assert len(caplog.records) == 1 and "cut" in caplog.text
    assert len(rows_of(processor(text=["red " * 200], compose=False))[0]) == MAX_LENGTH


def test_too_many_images_for_a_prompt(processor):
    with pytest.raises(ValueError, match=rf"\b{MAX_LENGTH} tokens"):
        processor(images=[[random_picture()] * 30], text=["red"])


def test_wrong_calls_are_explained(processor):
    with pytest.raises(ValueError, match=r"images.*text"):
        processor()
    for name in ("images", "text"):
        with pytest.raises(ValueError, match=rf"\b{name}\b.*empty"):
            processor(**{name: []})
    with pytest.raises(ValueError, match=r"\b2 rows.*\b1 text"):
        processor(images=[random_picture(), random_picture(1)], text=["red"])
    for texts in (["red", " "], None):
        with pytest.raises(ValueError, match=r"rows \[1\]"):
            processor(images=[[random_picture()], []], text=texts)
    for wrong in ({"composed": True}, {"text_kwargs": {"return_offsets_mapping": True}}):
        with pytest.raises(TypeError, match=r"composed|return_offsets_mapping"):
            processor(text="red", **wrong)
    with pytest.raises(ValueError, match="padding"):
        processor(text="red", padding=True, text_kwargs={"padding": False})
    with pytest.raises(TypeError, match="text 1 is None"):
        processor(text=["red", None])


def test_return_tensors(processor):
    assert isinstance(processor(text="red", return_tensors=None)["input_ids"][0], list)
    assert isinstance(processor(text="red", return_tensors="np")["input_ids"], np.ndarray)


# --- the library's arguments


@pytest.mark.parametrize("compose", [True, False])
@pytest.mark.parametrize("form", ["flat", "sorted"])
def test_text_arguments_are_the_librarys(processor, compose, form):
    def call(texts, **kwargs):
        return processor(text=texts, compose=compose, **(kwargs if form == "flat" else {"text_kwargs": kwargs}))

    texts = ["red hat", "red " * 30]
    longest = max(map(len, rows_of(call(texts))))
    assert call(texts, padding="longest")["input_ids"].shape == (2, longest)
    assert call(texts, padding="max_length")["input_ids"].shape == (2, MAX_LENGTH)
    assert call(texts, padding="max_length", max_length=40)["input_ids"].shape == (2, 40)
    assert call(texts, pad_to_multiple_of=16)["input_ids"].shape == (2, -(-longest // 16) * 16)
    cut = rows_of(call(texts, max_length=20, truncation=True))[1]
    assert len(cut) == 20 and cut[-1] == EOS and cut.count(-1) == NUM_PSEUDO_TOKENS * compose
    ragged = call(["red", "red hat"], padding=False, return_tensors=None)["input_ids"]
    assert len(ragged[1]) == len(ragged[0]) + 1
    assert len(call(["red " * 200], truncation=False)["input_ids"][0]) > 200
    left = call(["red", "red hat"], padding_side="left")
    assert left["input_ids"][0, 0] == PAD and left["attention_mask"][0].tolist()[:2] == [0, 1]
    assert "attention_mask" not in call(texts, return_attention_mask=False)


def test_image_arguments_are_the_librarys(processor):
    picture = random_picture()
    scaled = processor(images=picture, text="red", do_rescale=True, rescale_factor=-1.0)["pixel_values"]
    assert scaled.mean() < 0
    for given in ({"do_normalize": False}, {"images_kwargs": {"do_normalize": False}}):
        plain = processor(images=picture, text="red", **given)
        assert plain["pixel_values"].min() >= 0 and "input_ids" in plain
    size = {"height": 8, "width": 8}
    assert processor(images=picture, size=size)["pixel_values"].shape == (1, 3, 8, 8)


def test_arguments_of_both_kinds(processor):
    picture = random_picture()
    both = processor(images=picture, text="red", common_kwargs={"return_tensors": "np"}, text_kwargs={})
    assert all(isinstance(value, np.ndarray) for value in both.values())
    moved = processor(images=picture, text="red", device="meta")
    assert {value.device.type for value in moved.values()} == {"meta"}
    assert processor(text="red", device="meta")["input_ids"].is_meta


def test_none_is_the_default(processor):
    names = ("prompt", "max_length", "padding_side", "pad_to_multiple_of", "return_attention_mask", "device")
    batch = processor(text="red", **dict.fromkeys(names))
    assert {name: value.tolist() for name, value in batch.items()} == {
        name: value.tolist() for name, value in processor(text="red").items()
    }


def test_a_tokenizers_own_padding_counts_and_a_lone_length_does_not():
    for saved, length in (({"max_length": 30, "padding": "max_length"}, 30), ({"max_length": 5}, 10)):
        processor = build_processor()
        processor.tokenizer.init_kwargs |= saved
        assert processor(text="red")["input_ids"].shape == (1, length)


def test_siglips_length_is_not_the_callers_to_choose():
    batch = build_processor(pad_to_max_length=True)(text=["red"], padding=True, truncation="longest_first")
    assert batch["input_ids"].shape == (1, MAX_LENGTH) and "attention_mask" not in batch


def test_a_row_without_images_is_a_text(processor, model):
    picture = random_picture()
    batch = processor(images=[[], [picture], [picture, picture]], text=["red hat", "night", ""])
    rows = rows_of(batch)
    assert rows[0] == [BOS, *ids_of("red hat"), EOS]
    assert [row.count(-1) // NUM_PSEUDO_TOKENS for row in rows] == [0, 1, 2] and len(batch["pixel_values"]) == 3
    with torch.no_grad():
        features = model.get_composed_features(**batch)
        alone = model.get_text_features(**processor(text="red hat", compose=False))
    torch.testing.assert_close(features[:1], alone)


def test_compose_can_depend_on_the_images(processor):
    assert -1 not in processor(text="red", compose=None)["input_ids"]
    assert -1 in processor(images=random_picture(), text="red", compose=None)["input_ids"]


def test_decode_prints_placeholders(processor):
    ids = processor(text=["make it night", "red"])["input_ids"]
    expected = "<s> a photo of [$] [$] [$] , make it night </s>"
    for given in (ids[0], ids[0].tolist(), ids[0].numpy(), list(ids[0].numpy())):
        assert processor.decode(given) == expected
    assert processor.decode(ids[0], skip_special_tokens=True) == "a photo of [$] [$] [$] , make it night"
    for given in (ids, ids.tolist(), ids.numpy()):
        assert processor.batch_decode(given)[0] == processor.decode(given)[0] == expected
    assert processor.decode(-1) == "[$]"
    plain = processor(text=["red hat", "a dog"], compose=False)["input_ids"]
    assert processor.batch_decode(plain) == processor.tokenizer.batch_decode(plain)


# --- saving


@pytest.mark.parametrize("load", [HyCIRProcessor.from_pretrained, AutoProcessor.from_pretrained])
def test_saved_values_can_be_replaced(load, processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = load(tmp_path, do_normalize=False, size={"height": 8, "width": 8}, num_pseudo_tokens=5)
    pixels = loaded(images=random_picture())["pixel_values"]
    assert pixels.shape == (1, 3, 8, 8) and pixels.min() >= 0
    assert (loaded(text="red")["input_ids"] == -1).sum() == 5
    assert load(tmp_path).image_processor.do_normalize


def test_saving_leaves_no_trace_and_spares_other_files(processor, tmp_path):
    before = processor.to_dict()
    (tmp_path / "modules.json").write_text("mine")
    processor.save_pretrained(tmp_path)
    assert processor.to_dict() == before == HyCIRProcessor.from_pretrained(tmp_path).to_dict()
    assert (tmp_path / "modules.json").read_text() == "mine"
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["auto_map"] and "auto_map" not in saved["image_processor"]


def test_save_and_load(processor, tmp_path):
    processor = build_processor(prompt="{image} but {text}", num_pseudo_tokens=5)
    processor.save_pretrained(tmp_path)
    for loaded in (HyCIRProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is HyCIRProcessor
        assert type(loaded.image_processor) is type(processor.image_processor)
        expected = processor(images=[random_picture()], text=["red"])
        found = loaded(images=[random_picture()], text=["red"])
        assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("family", ["clip", "siglip", "altclip"])
def test_from_encoder(family, tmp_path):
    build_encoder(family).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    build_image_processor().save_pretrained(tmp_path)
    processor = HyCIRProcessor.from_encoder(tmp_path, num_pseudo_tokens=2)
    assert processor.max_length == MAX_LENGTH
    assert processor.pad_to_max_length == (family == "siglip")
    assert rows_of(HyCIRProcessor.from_encoder(tmp_path, pad_to_max_length=False)(text="red"))[0].count(-1) == 4


@pytest.mark.parametrize(
    ("family", "image_processor"),
    [
        ("clip", {"feature_extractor_type": "CLIPFeatureExtractor", "size": IMAGE_SIZE, "crop_size": IMAGE_SIZE}),
        ("blip", {"image_processor_type": "BlipImageProcessor"}),
        ("siglip", {"image_processor_type": "SiglipImageProcessor"}),
        ("siglip2", {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 8, "max_num_patches": 4}),
        ("chinese_clip", {"image_processor_type": "ChineseCLIPImageProcessor", "crop_size": IMAGE_SIZE}),
        ("metaclip_2", {"image_processor_type": "CLIPImageProcessorFast", "crop_size": IMAGE_SIZE}),
        ("vision-text-dual-encoder", {"image_processor_type": "ViTImageProcessor"}),
    ],
)
def test_image_processors_as_the_hub_has_them(family, image_processor, tmp_path):
    build_encoder(family).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    values = {"size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}} | image_processor
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    processor = HyCIRProcessor.from_encoder(tmp_path)
    pictures = [random_picture(), random_picture(1, (9, 40))]
    inputs = processor(images=pictures, text=["make it night", ""])
    with torch.no_grad():
        assert HyCIRModel.from_encoder(tmp_path)(**inputs).loss > 0
    processor.save_pretrained(tmp_path / "saved")
    again = AutoProcessor.from_pretrained(tmp_path / "saved")(images=pictures, text=["make it night", ""])
    assert all(torch.equal(again[name], value) for name, value in inputs.items())


# --- pictures


def colours(image):
    return np.asarray(image).reshape(-1, 3)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "La", "CMYK", "YCbCr", "HSV", "LAB", "I", "F"]
)
def test_every_mode_becomes_rgb(mode):
    white = Image.new("RGB", (6, 4), "white")
    image = white.convert("LA").convert(mode) if mode in ("PA", "La") else None
    if image is None:
        image = (
            white.convert("RGBA").convert(mode) if mode == "RGBa" else white.convert(mode) if mode != "LAB" else None
        )
    if image is None:
        image = Image.new("LAB", (6, 4), (255, 128, 128))
    loaded = load_image(image)
    assert (loaded.mode, loaded.size) == ("RGB", (6, 4))
    assert colours(loaded).min() >= 250


def test_transparency_lies_on_white():
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert (colours(load_image(clear)) == 255).all()
    half = colours(load_image(Image.new("RGBA", (2, 2), (0, 0, 0, 128))))
    assert np.abs(half.astype(int) - 127).max() <= 1
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([255, 0, 0] + [0, 0, 255] * 255)
    palette.info["transparency"] = 0
    assert (colours(load_image(palette)) == 255).all()
    keyed = Image.new("RGB", (2, 2), (0, 255, 0))
    keyed.info["transparency"] = (0, 255, 0)
    assert (colours(load_image(keyed)) == 255).all()


@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
def test_16_bit_keeps_its_greys(tmp_path, byte_order):
    values = np.array([[0, 257 * 100, 65535]], dtype=byte_order)
    path = tmp_path / "grey.tiff"
    Image.fromarray(values.astype("<u2")).save(path)
    for image in (path, values, Image.open(path)):
        assert colours(load_image(image))[:, 0].tolist() == [0, 100, 255]
    path = tmp_path / "grey.png"
    Image.fromarray(values.astype("<u2")).save(path)
    assert colours(load_image(path))[:, 0].tolist() == [0, 100, 255]


def test_exif_rotation_is_applied(tmp_path):
    picture = Image.new("RGB", (8, 4), "black")
    picture.paste("white", (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    picture.save(tmp_path / "turned.png", exif=exif)
    loaded = load_image(tmp_path / "turned.png")
    assert loaded.size == (4, 8)
    assert loaded.getpixel((0, 0)) == (255, 255, 255) and loaded.getpixel((0, 7)) == (0, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_pils(orientation):
    exif, data, picture = Image.Exif(), io.BytesIO(), random_picture()
    exif[0x0112] = orientation
    picture.save(data, "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(data))
    assert np.array_equal(np.asarray(load_image(data.getvalue())), np.asarray(expected))


def test_damaged_exif_does_not_spoil_a_sound_picture():
    orientation = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    mistyped = struct.pack(">HHI4s", 0x011A, 2, 4, b"abc")  # a text where a resolution belongs
    turned = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 2) + orientation + mistyped + bytes(4)
    for exif, file_format, size in ((turned, "JPEG", (4, 8)), (b"Exif\0\0no such thing", "PNG", (8, 4))):
        data = io.BytesIO()
        Image.new("RGB", (8, 4)).save(data, file_format, exif=exif)
        assert load_image(data.getvalue()).size == size


@pytest.mark.parametrize("extension", ["gif", "png", "webp"])
def test_first_frame_of_an_animation(tmp_path, extension):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    path = tmp_path / f"moving.{extension}"
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    opened = Image.open(path)
    opened.seek(1)
    for image in (path, path.read_bytes(), opened):
        assert load_image(image).getpixel((1, 1))[2] < 10


def test_every_container_gives_the_same_picture(tmp_path):
    picture = random_picture()
    path = tmp_path / "ein Bild ü.png"
    picture.save(path)
    array = np.asarray(picture)
    tensor = torch.from_numpy(array.copy())
    data = path.read_bytes()
    same = [picture, path, str(path), data, bytearray(data), memoryview(data), {"bytes": data, "path": None}]
    same += [{"bytes": None, "path": str(path)}, array, array / 255, array.astype(np.float32), array.transpose(2, 0, 1)]
    same += [tensor, tensor.permute(2, 0, 1), tensor.permute(2, 0, 1) / 255, array.astype(np.uint16) * 257]
    for image in same:
        assert np.array_equal(np.asarray(load_image(image)), array)
    processor = build_processor()
    expected = processor(images=[picture] * 2)["pixel_values"]
    for batch in ([path, data], np.stack([array, array]), (picture, picture), torch.stack([tensor, tensor])):
        assert torch.equal(processor(images=batch)["pixel_values"], expected)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (1, 5, 7), (5, 7, 2), (5, 7, 4), (4, 5, 7)])
def test_channels(shape):
    assert load_image(np.full(shape, 255, np.uint8)).size == (7, 5)
    assert load_image(np.ones(shape, bool)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1), (500, 2)])
def test_small_and_narrow_pictures(processor, size):
    assert processor(images=random_picture(size=size))["pixel_values"].shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)


def test_broken_pictures_are_named(processor, tmp_path):
    picture = io.BytesIO()
    random_picture(size=(200, 200)).save(picture, "PNG")
    broken = {
        "cut.png": picture.getvalue()[:5000],
        "text.jpg": b"not a picture",
        "empty.png": b"",
        "flipped.png": picture.getvalue()[:60] + b"\xff" * 40 + picture.getvalue()[100:],
    }
    for name, data in broken.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=rf"image 1 \(.*{name}\)"):
            processor(images=[random_picture(), tmp_path / name])
        with pytest.raises(ValueError, match=f"{len(data)} bytes"):
            load_image(data)
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")  # it leads to itself
    for name in ("missing.png", "cut.png/below.png", "circle.png", "long" * 100):
        with pytest.raises(ValueError, match=re.escape(str(tmp_path / name)[:300])):
            load_image(tmp_path / name)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        load_image(tmp_path)


PASSING = ("ESTALE", "EIO", "EMFILE", "ENFILE", "ENOSPC", "ETIMEDOUT", "EBUSY")


class Failing(io.BytesIO):
    """A file whose server goes away after some bytes."""

    def __init__(self, data, room, number):
        super().__init__(data)
        self.room, self.number = room, number

    def read(self, size=-1):
        if self.tell() >= self.room:
            raise OSError(self.number, os.strerror(self.number))
        return super().read(size)


@pytest.mark.parametrize("name", PASSING)
def test_passing_io_errors_are_not_the_images_fault(processor, tmp_path, monkeypatch, name):
    number = getattr(errno, name)
    data = io.BytesIO()
    random_picture(size=(400, 400)).save(data, "PNG")
    path = tmp_path / "sound.png"
    path.write_bytes(data.getvalue())
    lazy = Image.open(Failing(data.getvalue(), 100_000, number))
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        load_image(lazy)
    assert caught.value.errno == number

    def fail(self, *args, **kwargs):
        raise OSError(number, os.strerror(number), str(self))

    for method in ("stat", "open"):
        with monkeypatch.context() as patched:
            patched.setattr(type(path), method, fail)
            for call in (load_image, lambda image: processor(images=[image])):
                with pytest.raises(OSError, match=re.escape(str(path))) as caught:
                    call(path)
                assert caught.value.errno == number
    assert load_image(path).size == (400, 400)


@pytest.mark.parametrize("name", ["EACCES", "EPERM", "ENOENT", "EINVAL"])
def test_io_errors_about_the_file_name_it(tmp_path, monkeypatch, name):
    def fail(self, *args, **kwargs):
        raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)), str(self))

    path = tmp_path / "mine.png"
    random_picture().save(path)
    monkeypatch.setattr(type(path), "open", fail)
    with pytest.raises(ValueError, match=r"image 7 \(.*mine\.png\)") as caught:
        load_image(path, position=7)
    assert os.strerror(getattr(errno, name)) in str(caught.value)


@pytest.mark.parametrize("url", ["https://example.org/cat.png", "file:///cat.png", "data:image/png;base64,AAAA"])
def test_urls_are_refused(url):
    with pytest.raises(ValueError, match="URL"):
        load_image(url)


@pytest.mark.parametrize(
    "image",
    [None, 3, np.zeros((5, 7, 9)), np.zeros((0, 3)), np.full((4, 4), -1.0), np.full((4, 4), np.nan), torch.zeros(3)],
)
def test_other_things_are_refused(image):
    with pytest.raises(ValueError, match=rf"\(.*{type(image).__name__}"):
        load_image(image)


def test_prompts_of_pieces(processor):
    """K placeholders between each two pieces; a composed prompt is one of them."""
    built = processor.build_prompts([["a photo of", ", make it night"], ["cat"], ["", "and", ""]])
    composed = processor(text=["make it night"])
    assert built["input_ids"][0].tolist() == composed["input_ids"][0].tolist()
    counts = (built["input_ids"] == processor.placeholder_token_id).sum(1).tolist()
    assert counts == [NUM_PSEUDO_TOKENS, 0, 2 * NUM_PSEUDO_TOKENS]


def test_long_prompts_of_pieces_keep_whole_blocks(processor):
    for num_words in range(60, 80):
        ids = processor.build_prompts([["cat " * num_words, "dog"]])["input_ids"]
        assert ids.shape[1] <= MAX_LENGTH and (ids == processor.placeholder_token_id).sum() in (0, NUM_PSEUDO_TOKENS)
