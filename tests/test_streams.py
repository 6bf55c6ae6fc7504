"""Tar shards, TSV files and streams of images."""

import bz2
import gzip
import io
import json
import lzma
import tarfile

import numpy as np
import pytest
from conftest import random_picture
from datasets import Dataset

from hycir_hf.images import ImageStream, open_images


def png(seed):
    file = io.BytesIO()
    random_picture(seed).save(file, "PNG")
    return file.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path):
    """Two shards as img2dataset writes CC3M: 5 good samples, one without a image, one broken, one cut off."""
    names = [f"{number:09d}" for number in range(4)]
    members = [
        (f"{name}.{suffix}", png(i) if suffix == "png" else b"{}")
        for i, name in enumerate(names)
        for suffix in ("json", "png", "txt")
    ]
    write_tar(tmp_path / "00000.tar", [*members, ("000000004.txt", b"no image"), ("000000005.png", b"broken")])
    write_tar(tmp_path / "00001.tar", [("000010000.png", png(9)), ("000010001.png", png(8) * 5)])
    whole = (tmp_path / "00001.tar").read_bytes()
    (tmp_path / "00001.tar").write_bytes(whole[: len(whole) // 2])
    return tmp_path


# Images


def test_tar_shards_by_row(shards):
    for path in (str(shards), str(shards / "*.tar")):
        source = open_images(path)
        assert source.ids == [f"{number:09d}" for number in (0, 1, 2, 3, 5)] + ["000010000"]
        assert [id_ for id_, _ in source.skipped][:1] == ["000000004"] and "no image" in source.skipped[0][1]
        assert any("00001.tar" in id_ or "000010001" in id_ for id_, _ in source.skipped)
    assert np.array_equal(np.asarray(source.load(2)), np.asarray(random_picture(2)))
    with pytest.raises(ValueError, match=r"00000\.tar, sample 000000005"):
        source.load(4)


def test_keys_that_two_shards_share_stay_apart(tmp_path):
    for shard in ("a", "b"):
        write_tar(tmp_path / f"{shard}.tar", [("0.png", png(0))])
    assert open_images(str(tmp_path)).ids == ["a/0", "b/0"]


def test_shards_of_one_name_in_two_folders_stay_apart(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "0.tar", [("0.png", png(0))])
    assert open_images(str(tmp_path / "*" / "0.tar")).ids == ["a/0/0", "b/0/0"]


@pytest.mark.parametrize(("damage", "count"), [("header", 2), ("cut", 3), ("short marker", 4), ("no marker", 4)])
def test_a_shard_that_ends_silently_is_skipped_and_counted(tmp_path, damage, count):
    """A damaged header, and a cut between two members, are the end for tarfile."""
    path = tmp_path / "0.tar"
    write_tar(path, [(f"{number}.png", png(number)) for number in range(4)])
    with tarfile.open(path) as tar:
        places = [member.offset for member in tar]
        end = tar.offset
    content = bytearray(path.read_bytes())
    if damage == "header":
        content[places[2] : places[2] + 512] = b"x" * 512
    length = {"header": len(content), "cut": places[3], "short marker": end + 512, "no marker": end}[damage]
    path.write_bytes(content[:length])
    source = open_images(str(tmp_path))
    assert len(source.ids) == count
    reasons = [reason for place, reason in source.skipped if place == str(path)]
    expected = {"header": "damaged header", "cut": "the file's end", "no marker": "the file's end"}.get(damage)
    assert (expected in reasons[0]) if expected else not reasons


def test_shards_by_braces_and_lists(tmp_path):
    for number in range(12):
        write_tar(tmp_path / f"{number:02d}.tar", [(f"{number}.png", png(number))])
    ids = lambda path: open_images(path).ids  # noqa: E731
    assert ids(f"{tmp_path}/{{08..11}}.tar") == ["8", "9", "10", "11"]
    assert ids(f"{tmp_path}/{{00,05}}.tar") == ["0", "5"]
    assert ids(f"{tmp_path}/0{{0..1}}.tar::{tmp_path}/1*.tar") == ["0", "1", "10", "11"]
    assert ids([f"{tmp_path}/03.tar", f"{tmp_path}/04.tar"]) == ["3", "4"]
    assert [id_ for id_, _ in ImageStream(f"{tmp_path}/{{08..11}}.tar")] == ["8", "9", "10", "11"]
    for way in (open_images, ImageStream):
        with pytest.raises(ValueError, match=r"12\.tar"):
            way(f"{tmp_path}/{{10..13}}.tar")
    with pytest.raises(ValueError, match=r"\.tar shards"):
        ids([f"{tmp_path}/03.tar", str(tmp_path)])
    write_tar(tmp_path / "a{0..1}.tar", [("x.png", png(0))])  # a file of that very name
    assert ids(f"{tmp_path}/a{{0..1}}.tar") == ["x"]


@pytest.mark.parametrize("opener", [gzip.open, bz2.open, lzma.open])
def test_a_compressed_shard_says_so(opener, tmp_path):
    write_tar(tmp_path / "plain", [("0.png", png(0))])
    for name in ("0.tar", "0.tar.gz", "1.tgz"):
        with opener(tmp_path / name, "wb") as file:
            file.write((tmp_path / "plain").read_bytes())
    with pytest.raises(ValueError, match=r"compressed"):
        open_images(str(tmp_path / "0.tar"))
    with pytest.raises(ValueError, match=r"0\.tar.*compressed"):
        ImageStream(str(tmp_path / "0.tar"))
    for name in ("0.tar.gz", "1.tgz"):
        with pytest.raises(ValueError, match=rf"{name}.*[Uu]npack"):
            open_images(str(tmp_path / name))
    write_tar(tmp_path / "1.tar", [("1.png", png(1))])
    source = open_images(f"{tmp_path}/{{0..1}}.tar")
    assert source.ids == ["1"] and "compressed" in dict(source.skipped)[str(tmp_path / "0.tar")]


def test_a_tsv_is_read_as_it_is(picture_folder, tmp_path):
    """Other line breaks and quotes within a caption, long captions, a byte order mark; another encoding is said."""
    path = tmp_path / "o.tsv"
    path.write_bytes(f'a\r"dog\thttp://x/1\n{"long " * 50_000}\thttp://x/2\nb\u2028\thttp://x/3\r\n'.encode())
    assert open_images(str(path), tsv_folder=str(picture_folder)).ids == ["00.png", "01.png", "02.png"]
    path.write_bytes("\ufefffilepath\ttitle\r\n03.png\ta dog\r\n".encode())
    assert open_images(str(path), tsv_folder=str(picture_folder)).ids == ["03.png"]
    path.write_bytes(b"a dog\thttp://x\ncaf\xe9\thttp://x\n")
    with pytest.raises(ValueError, match=r"[Rr]ow 1 .*o\.tsv.*UTF-8"):
        open_images(str(path), tsv_folder=str(picture_folder))


def test_a_tsv_names_its_files_or_numbers_them(picture_folder, tmp_path):
    named = tmp_path / "named.tsv"
    named.write_text("title\tfilepath\na dog\t03.png\na cat\tgone.png\n")
    source = open_images(str(named), tsv_folder=str(picture_folder))
    assert source.ids == ["03.png"] and len(source.skipped) == 1
    official = tmp_path / "official.tsv"
    official.write_text('a "dog\thttp://x/1\n' * 4)
    assert open_images(str(official), tsv_folder=str(picture_folder)).ids == ["00.png", "01.png", "02.png", "03.png"]
    with pytest.raises(ValueError, match=r" 4 rows "):
        open_images(str(official), tsv_folder=str(tmp_path_with_image(tmp_path)))


def tmp_path_with_image(tmp_path):
    (tmp_path / "other").mkdir()
    random_picture().save(tmp_path / "other" / "dog.png")
    return tmp_path / "other"


@pytest.mark.parametrize("path", ["/nowhere", "/nowhere.tsv", "/nowhere/*.tar"])
def test_nothing_there_is_said(path):
    with pytest.raises(ValueError, match="/nowhere"):
        open_images(path)


def test_a_stream_goes_on_where_it_was(syncir_folder):
    """From every place within two epochs; every image once an epoch, in another order each."""

    def ids_from(state, count):
        stream = ImageStream(f"{syncir_folder}:images", buffer_size=6, seed=1)
        return [(id_, after) for (id_, _, after), _ in zip(stream.samples(state), range(count), strict=False)]

    whole = ids_from(None, 50)
    names = [id_ for id_, _ in whole]
    assert sorted(names[:20]) == sorted(names[20:40]) == sorted(set(names)) and names[:20] != names[20:40]
    for place in (0, 4, 5, 12, 18, 19, 20, 33, 39):
        state = json.loads(json.dumps(whole[place][1]))
        assert [id_ for id_, _ in ids_from(state, 10)] == names[place + 1 : place + 11]


def test_streams_of_shards_and_wrong_columns(syncir_folder, tmp_path):
    write_tar(tmp_path / "0.tar", [(f"{name}.png", png(name)) for name in range(8)])
    for path in (f"webdataset:{tmp_path}/*.tar", f"{tmp_path}/*.tar", f"{tmp_path}/0.tar", str(tmp_path)):
        stream = ImageStream(path, buffer_size=2)
        assert [id_ for id_, _ in stream] == [str(name) for name in range(8)]
    with pytest.raises(ValueError, match=r"gone\.tar"):
        ImageStream(f"{tmp_path}/gone.tar")
    with pytest.raises(ValueError, match=r"photo.*\['image_id', 'image'\]"):
        ImageStream(f"{syncir_folder}:images", image_column="photo")
    with pytest.raises(ValueError, match=r"image or jpg or png or webp"):
        ImageStream(f"{syncir_folder}:triplets")
    Dataset.from_dict({"image": []}).to_parquet(tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match="no image"):
        next(ImageStream(str(tmp_path / "empty.parquet"), image_column="image").samples())


def test_a_stream_of_json_lines(picture_folder, tmp_path):
    path = tmp_path / "images.jsonl"
    path.write_text("".join(json.dumps({"image": str(picture_folder / f"{i:02d}.png")}) + "\n" for i in range(3)))
    assert [image for _, image in ImageStream(str(path))] == [str(picture_folder / f"{i:02d}.png") for i in range(3)]


def test_a_broken_stream_names_its_path(tmp_path):
    write_tar(tmp_path / "0.tar", [(f"{name}.png", png(name)) for name in range(8)])
    content = (tmp_path / "0.tar").read_bytes()
    write_tar(tmp_path / "1.tar", [("0.txt", b"text")])
    (tmp_path / "1.tar").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"{tmp_path}.*split"):
        list(ImageStream(str(tmp_path)))
