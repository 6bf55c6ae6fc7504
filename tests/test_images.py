"""Images: sources, streams and the feature cache."""

import io
import json
import os
import resource
import shutil
import signal
import tarfile

import numpy as np
import pytest
import torch
from children import exit_status, start
from conftest import build_model, build_processor, random_picture
from datasets import Dataset

from hycir_hf.images import FeatureCache, ImageStream, build_feature_cache, feature_cache, open_images
from hycir_hf.training.data import Share, UnlabeledRows


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
    """Two shards as img2dataset writes CC3M: 5 good samples, one without a picture, one broken, one cut off."""
    names = [f"{number:09d}" for number in range(4)]
    members = [
        (f"{name}.{suffix}", png(i) if suffix == "png" else b"{}")
        for i, name in enumerate(names)
        for suffix in ("json", "png", "txt")
    ]
    write_tar(tmp_path / "00000.tar", [*members, ("000000004.txt", b"no picture"), ("000000005.png", b"broken")])
    write_tar(tmp_path / "00001.tar", [("000010000.png", png(9)), ("000010001.png", png(8) * 5)])
    whole = (tmp_path / "00001.tar").read_bytes()
    (tmp_path / "00001.tar").write_bytes(whole[: len(whole) // 2])
    return tmp_path


# Images


def test_tar_shards_by_row(shards):
    for path in (str(shards), str(shards / "*.tar")):
        source = open_images(path)
        assert source.ids == [f"{number:09d}" for number in (0, 1, 2, 3, 5)] + ["000010000"]
        assert [id_ for id_, _ in source.skipped][:1] == ["000000004"] and "no picture" in source.skipped[0][1]
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


def test_a_tsv_is_read_as_it_is(picture_folder, tmp_path):
    """Other line breaks and quotes within a caption, long captions, a byte order mark; another encoding is said."""
    path = tmp_path / "o.tsv"
    path.write_bytes(f'a\r"dog\thttp://x/1\n{"long " * 50_000}\thttp://x/2\nb\u2028\thttp://x/3\r\n'.encode())
    assert open_images(str(path), tsv_folder=str(picture_folder)).ids == ["00.png", "01.png", "02.png"]
    path.write_bytes("\ufefffilepath\ttitle\r\n03.png\ta dog\r\n".encode())
    assert open_images(str(path), tsv_folder=str(picture_folder)).ids == ["03.png"]
    path.write_bytes(b"a dog\thttp://x\ncaf\xe9\thttp://x\n")
    with pytest.raises(ValueError, match=r"UTF-8 in .*o\.tsv, but row 1 has .*Convert the file"):
        open_images(str(path), tsv_folder=str(picture_folder))


def test_a_tsv_names_its_files_or_numbers_them(picture_folder, tmp_path):
    named = tmp_path / "named.tsv"
    named.write_text("title\tfilepath\na dog\t03.png\na cat\tgone.png\n")
    source = open_images(str(named), tsv_folder=str(picture_folder))
    assert source.ids == ["03.png"] and len(source.skipped) == 1
    official = tmp_path / "official.tsv"
    official.write_text('a "dog\thttp://x/1\n' * 4)
    assert open_images(str(official), tsv_folder=str(picture_folder)).ids == ["00.png", "01.png", "02.png", "03.png"]
    with pytest.raises(ValueError, match="none of its 4 rows"):
        open_images(str(official), tsv_folder=str(tmp_path_with_picture(tmp_path)))


def tmp_path_with_picture(tmp_path):
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
    with pytest.raises(ValueError, match=r"gone\.tar.*no such file"):
        ImageStream(f"{tmp_path}/gone.tar")
    with pytest.raises(ValueError, match=r"column 'picture'.*found \['image_id', 'image'\]"):
        ImageStream(f"{syncir_folder}:images", image_column="picture")
    with pytest.raises(ValueError, match=r"a column of \['image', 'jpg', 'png', 'webp'\] in"):
        ImageStream(f"{syncir_folder}:triplets")
    Dataset.from_dict({"image": []}).to_parquet(tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match="it gave none"):
        next(ImageStream(str(tmp_path / "empty.parquet"), image_column="image").samples())


def test_a_stream_of_json_lines(picture_folder, tmp_path):
    path = tmp_path / "images.jsonl"
    path.write_text("".join(json.dumps({"image": str(picture_folder / f"{i:02d}.png")}) + "\n" for i in range(3)))
    assert [picture for _, picture in ImageStream(str(path))] == [
        str(picture_folder / f"{i:02d}.png") for i in range(3)
    ]


def test_a_broken_stream_names_its_path(tmp_path):
    write_tar(tmp_path / "0.tar", [(f"{name}.png", png(name)) for name in range(8)])
    content = (tmp_path / "0.tar").read_bytes()
    write_tar(tmp_path / "1.tar", [("0.txt", b"text")])
    (tmp_path / "1.tar").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"rows in the stream {tmp_path}.*its reader failed.*Repair"):
        list(ImageStream(str(tmp_path)))


def test_a_stream_says_which_split_it_is(syncir_folder):
    stream = ImageStream(f"{syncir_folder}:images")
    other = ImageStream(f"{syncir_folder}:images")
    other.split = "validation"
    assert stream.describe()["split"] == "train"
    assert feature_cache._fingerprint_of_source(stream) != feature_cache._fingerprint_of_source(other)


# The feature cache


@pytest.fixture(scope="module")
def model():
    return build_model()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(feature_cache, "BLOCK_SIZE", 8)


def test_cache_holds_each_image_once(model, picture_folder, tmp_path):
    images, processor = open_images(str(picture_folder)), build_processor()
    cache = build_feature_cache(model, processor, images, tmp_path, batch_size=3, progress=False)
    assert len(cache) == 20 and cache.features.dtype == np.float16 and isinstance(cache.features, np.memmap)
    inputs = processor(images=[images.load(row) for row in (4, 11)], return_tensors="pt")
    expected = model.get_image_features(**inputs, normalize=False)
    torch.testing.assert_close(cache.read([4, 11]), expected, atol=1e-3, rtol=1e-3)
    assert {path.name for path in tmp_path.iterdir()} == {"features.npy", "ids.json", "manifest.json"}


def test_cache_skips_and_counts_what_is_broken(model, shards, tmp_path):
    cache = build_feature_cache(model, build_processor(), open_images(str(shards)), tmp_path / "c", progress=False)
    assert "000000005" in cache.skipped_ids() and len(cache) == 5 and "000000005" not in cache.ids


def _build_cache_and_die(picture_folder, place):
    feature_cache.BLOCK_SIZE = 8
    write = feature_cache._write_block

    def write_and_die(path, *content):
        write(path, *content)
        if path.name == "000001.npz":
            os.kill(os.getpid(), signal.SIGKILL)

    feature_cache._write_block = write_and_die
    build_feature_cache(build_model(), build_processor(), open_images(str(picture_folder)), place, progress=False)


def test_killed_cache_goes_on(model, picture_folder, tmp_path, monkeypatch):
    """kill -9 after the second block: the first two are not encoded again, and the result is the same."""
    images, processor = open_images(str(picture_folder)), build_processor()
    whole = build_feature_cache(model, processor, images, tmp_path / "whole", progress=False)
    assert exit_status(start(_build_cache_and_die, picture_folder, tmp_path / "killed")) == -signal.SIGKILL
    with pytest.raises(FileNotFoundError, match="a part"):
        FeatureCache.open(tmp_path / "killed")
    encoded = []
    encode = feature_cache._Build.encode
    monkeypatch.setattr(
        feature_cache._Build, "encode", lambda self, s, bar: (encoded.append(len(s)), encode(self, s, bar))[1]
    )
    resumed = build_feature_cache(model, processor, images, tmp_path / "killed", progress=False)
    assert encoded == [4] and resumed.ids == whole.ids and np.array_equal(resumed.features, whole.features)


def test_shards_make_one_cache(model, picture_folder, tmp_path):
    images, processor = open_images(str(picture_folder)), build_processor()
    whole = build_feature_cache(model, processor, images, tmp_path / "whole", progress=False)
    parts = [
        build_feature_cache(
            model, processor, images, tmp_path / "parts", num_shards=2, shard_index=index, progress=False
        )
        for index in (1, 0)
    ]
    assert parts[0] is None and np.array_equal(parts[1].features, whole.features)


def test_what_another_shard_began_is_gone_on_with(model, picture_folder, tmp_path, monkeypatch):
    """Its manifest half renamed, or, between two looks, the whole cache."""
    images, processor = open_images(str(picture_folder)), build_processor()
    (tmp_path / "begun" / "blocks").mkdir(parents=True)
    (tmp_path / "begun" / "manifest.json.7.tmp").write_text("{")
    build = lambda name: build_feature_cache(model, processor, images, tmp_path / name, progress=False)  # noqa: E731
    assert len(build("begun")) == 20
    with monkeypatch.context() as patched:
        patched.setattr(feature_cache, "_check_free", lambda place: shutil.copytree(tmp_path / "begun", place))
        assert len(build("quicker")) == 20
    assert FeatureCache.open(tmp_path / "quicker").manifest["is_complete"]


def test_two_shards_may_join_the_same_blocks(model, picture_folder, tmp_path, monkeypatch):
    join = feature_cache._join_blocks

    def join_after_another(*inputs):
        join(*inputs)
        join(*inputs)

    monkeypatch.setattr(feature_cache, "_join_blocks", join_after_another)
    images = open_images(str(picture_folder))
    assert len(build_feature_cache(model, build_processor(), images, tmp_path / "c", progress=False)) == 20


def _build_on_a_small_disk(picture_folder, place, limit, message):
    feature_cache.BLOCK_SIZE = 8
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with pytest.raises(OSError, match=message):
        build_feature_cache(
            build_model(), build_processor(), open_images(str(picture_folder)), place, num_views=8, progress=False
        )


@pytest.mark.parametrize(("limit", "name"), [(2_000, "000000.npz"), (5_000, "features.npy")])
def test_cache_on_a_full_disk(model, picture_folder, tmp_path, limit, name):
    """A block of 8 x 8 x 24 in float16 and its names need 3.7 kB, all of them 7.8 kB."""
    message = f"Expected to write {name} of the feature cache in {tmp_path}.*Make room.*same command"
    assert exit_status(start(_build_on_a_small_disk, picture_folder, tmp_path / "c", limit, message)) == 0
    assert not [path for path in (tmp_path / "c").rglob("*") if path.suffix == ".tmp"]
    images = open_images(str(picture_folder))
    cache = build_feature_cache(model, build_processor(), images, tmp_path / "c", num_views=8, progress=False)
    assert len(cache) == 20


def test_cache_of_a_stream(model, syncir_folder, tmp_path):
    stream = ImageStream(f"{syncir_folder}:images")
    cache = build_feature_cache(model, build_processor(), stream, tmp_path, progress=False)
    assert cache.ids == [f"{number:02d}.png" for number in range(20)]


def test_views_differ_and_are_drawn_by_step(model, picture_folder, tmp_path):
    images, processor = open_images(str(picture_folder)), build_processor()
    cache = build_feature_cache(model, processor, images, tmp_path, num_views=3, dtype="float32", progress=False)
    assert cache.features.shape == (20, 3, 24)
    assert all(np.abs(cache.features[:, 0] - cache.features[:, view]).max() > 1e-3 for view in (1, 2))
    rows = UnlabeledRows(cache, processor, 8, 0, Share())
    batch = rows.batch(3)
    views = (batch.draws[:, 0] * 3).astype(int)
    assert len(set(views)) > 1
    expected = cache.features[rows.order.rows(3), views]
    assert np.array_equal(batch.images.features.numpy(), expected)


def test_another_seed_of_the_views_is_named(model, picture_folder, tmp_path):
    build = lambda seed: build_feature_cache(  # noqa: E731
        model, build_processor(), open_images(str(picture_folder)), tmp_path, num_views=2, seed=seed, progress=False
    )
    build(0)
    with pytest.raises(ValueError, match=r"features with seed 1, .* have 0"):
        build(1)


def test_a_changed_picture_or_option_is_refused(model, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    random_picture(0).save(folder / "a.png")
    build = lambda **options: build_feature_cache(  # noqa: E731
        model, build_processor(), open_images(str(folder)), tmp_path / "cache", progress=False, **options
    )
    build()
    with pytest.raises(ValueError, match=r"dtype 'float32'.*have 'float16'"):
        build(dtype="float32")
    with pytest.raises(ValueError, match=r"features with num_views 2, .* have 1"):
        build(num_views=2)
    random_picture(1).save(folder / "b.png")
    with pytest.raises(ValueError, match="features with source"):
        build()
    with pytest.raises(ValueError, match="holds something else"):
        build_feature_cache(model, build_processor(), open_images(str(folder)), folder, progress=False)
    assert len(list(folder.iterdir())) == 2
    with pytest.raises(ValueError, match=r"batch_size must be at least 1.*dtype must be one of"):
        build(batch_size=0, dtype="int8")
