"""What training reads: sources, triplets, batches by seed and step, and the feature cache."""

import io
import json
import os
import resource
import shutil
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from children import exit_status, start
from conftest import build_model, build_processor, random_picture
from datasets import Dataset, Image

from hycir_hf.images import FeatureCache, ImageStream, build_feature_cache, feature_cache, open_images
from hycir_hf.training.data import (
    RowOrder,
    Share,
    TrainingBatches,
    TripletRows,
    UnlabeledRows,
    UnlabeledStream,
    batches,
    open_triplets,
    read_phrases,
    read_texts,
)
from hycir_hf.training.objectives import mask_keywords

EMOJI = Path(__file__).parents[1] / "examples" / "emoji"


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


# Triplets and texts


def test_syncir_triplets(syncir_folder, picture_folder):
    triplets = open_triplets(str(syncir_folder))
    assert len(triplets) == 20 and triplets.query_texts[0] == "make it red"
    references, targets = triplets.rows()
    assert references == list(range(20)) and targets == [*range(1, 20), 0]
    elsewhere = open_triplets(str(syncir_folder), images=str(picture_folder))
    assert elsewhere.rows() == (references, targets)
    assert len(triplets.without(["03.png"])) == 18


def test_syncir_triplets_without_pictures_find_those_of_their_source(tmp_path):
    triplets = open_triplets(str(EMOJI / "syncir"))
    rows, targets = triplets.rows()
    assert len(rows) == len(targets) == len(triplets) > 2000
    assert triplets.images.load(rows[0]).size == (64, 64)

    shutil.copytree(EMOJI / "syncir", tmp_path / "syncir", ignore=shutil.ignore_patterns(".work"))
    recipe = tmp_path / "syncir" / "recipe.json"
    recipe.write_text(recipe.read_text().replace("emoji/data", "emoji/gone").replace('"../data"', '"../gone"'))
    with pytest.raises(ValueError, match=r"gone.*found nothing there"):
        open_triplets(str(tmp_path / "syncir"))


def test_a_triplet_that_points_nowhere_is_named(syncir_folder, shards):
    with pytest.raises(ValueError, match=r"reference image '00.png' of triplet 0 of .*is not there"):
        open_triplets(str(syncir_folder), images=str(shards)).rows()


def test_wrong_column_of_triplets(tmp_path):
    Dataset.from_dict({"reference_id": ["a"], "target": ["b"], "query_text": ["c"]}).to_parquet(tmp_path / "t.parquet")
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: triplets\n  data_files: t.parquet\n---\n")
    with pytest.raises(ValueError, match=r"\['target_id'\] are missing"):
        open_triplets(str(tmp_path))


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_a_file_of_ones_own_triplets(suffix, picture_folder, tmp_path):
    path = tmp_path / f"mine{suffix}"
    rows = Dataset.from_dict({"reference_id": ["03.png"], "target_id": ["04.png"], "query_text": ["NA"]})
    {".parquet": rows.to_parquet, ".csv": rows.to_csv, ".jsonl": rows.to_json}[suffix](path)
    triplets = open_triplets(str(path), images=str(picture_folder))
    assert triplets.rows() == ([3], [4]) and triplets.query_texts == ["NA"]
    with pytest.raises(ValueError, match=r"the pictures of the triplets.*triplet_images"):
        open_triplets(str(path))
    path.write_bytes(b"\x00{")
    with pytest.raises(ValueError, match=r"mine.*, but (reading it failed|\['reference_id'.* are missing)"):
        open_triplets(str(path), images=str(picture_folder))
    with pytest.raises(ValueError, match=r"table triplets in .*none.*no file"):
        open_triplets(str(tmp_path / f"none{suffix}"), images=str(picture_folder))


def test_ids_in_a_csv_stay_as_they_are_written(tmp_path):
    random_picture(0).save(tmp_path / "007.png")
    random_picture(1).save(tmp_path / "8.png")
    pictures = {"image_id": ["007", "8"], "image": [str(tmp_path / f"{id_}.png") for id_ in ("007", "8")]}
    Dataset.from_dict(pictures).cast_column("image", Image()).to_parquet(tmp_path / "pictures.parquet")
    (tmp_path / "mine.csv").write_text("reference_id,target_id,query_text\n007,8,red\n")
    assert open_triplets(str(tmp_path / "mine.csv"), images=str(tmp_path / "pictures.parquet")).rows() == ([0], [1])


def test_lasco_cirr_and_fashioniq(picture_folder, tmp_path):
    lasco = tmp_path / "lasco_train.json"
    lasco.write_text(json.dumps([{"query-image": [7, "03.png"], "query-text": "t", "target-image": [8, "04.png"]}]))
    triplets = open_triplets(str(lasco), images=str(picture_folder))
    assert triplets.rows() == ([3], [4]) and triplets.query_texts == ["t"]
    cirr = tmp_path / "cirr"
    for folder in ("captions", "image_splits"):
        (cirr / folder).mkdir(parents=True)
    (cirr / "captions" / "cap.rc2.train.json").write_text(
        json.dumps([{"reference": "train-1-img0", "target_hard": "train-1-img1", "caption": "c"}])
    )
    places = {"train-1-img0": "./train/1/05.png", "train-1-img1": "./train/1/06.png"}
    (cirr / "image_splits" / "split.rc2.train.json").write_text(json.dumps(places))
    assert open_triplets(str(cirr), images=str(picture_folder)).rows() == ([5], [6])
    fashion = tmp_path / "fashion"
    (fashion / "captions").mkdir(parents=True)
    record = {"candidate": "07", "target": "08", "captions": ["is red ", "has no sleeves"]}
    (fashion / "captions" / "cap.dress.train.json").write_text(json.dumps([record]))
    triplets = open_triplets(str(fashion), images=str(picture_folder))
    assert triplets.rows() == ([7], [8]) and triplets.query_texts == ["is red and has no sleeves"]
    with pytest.raises(ValueError, match="reading them failed: KeyError"):
        lasco.write_text(json.dumps([{"wrong": 1}]))
        open_triplets(str(lasco), images=str(picture_folder))


def test_texts_and_phrases(tmp_path):
    (tmp_path / "t.txt").write_text("a dog\n\n a cat \n")
    assert read_texts(str(tmp_path / "t.txt")) == ["a dog", "a cat"]
    Dataset.from_dict({"caption": ["a", "b"]}).to_parquet(tmp_path / "t.parquet")
    assert read_texts(str(tmp_path / "t.parquet")) == ["a", "b"]
    with pytest.raises(ValueError, match="'words'"):
        read_texts(str(tmp_path / "t.parquet"), "words")
    (tmp_path / "p.json").write_text(json.dumps({"cat": ["a category", "my cat"], "dog": []}))
    assert read_phrases(str(tmp_path / "p.json")) == {"cat": ["my cat"]}
    (tmp_path / "p.json").write_text(json.dumps(["a"]))
    with pytest.raises(ValueError, match="another form"):
        read_phrases(str(tmp_path / "p.json"))


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("A small cat sits on the mat.", ["A", "on the", "."]),
        ("of the", ["of the", ""]),
        ("don’t, rock'n'roll!", ["", ",", "!"]),
    ],
)
def test_keywords_become_gaps(text, pieces):
    assert mask_keywords(text) == pieces


# Batches


def test_every_row_once_an_epoch_and_never_twice_in_a_batch():
    order = RowOrder(10, 3, [7])
    epochs = [[order.rows(step).tolist() for step in range(3 * epoch, 3 * epoch + 3)] for epoch in range(2)]
    for epoch in epochs:
        assert len({row for batch in epoch for row in batch}) == 9
    assert epochs[0] != epochs[1]
    assert RowOrder(10, 3, [7]).rows(4).tolist() == epochs[1][1]  # a function of seed and step alone


@pytest.mark.parametrize("count", [1, 2, 4])
def test_shares_make_up_the_global_batch(syncir_folder, picture_folder, count):
    """Broken pictures too: whoever meets one takes the next of the global batch."""
    (picture := picture_folder / "broken.png").write_bytes(b"broken")
    try:
        images, triplets = open_images(str(picture_folder)), open_triplets(str(syncir_folder))
        processor = build_processor()
        whole = UnlabeledRows(images, processor, 8, 0, Share())
        step = next(step for step in range(20) if 20 in whole.order.rows(step))
        expected = whole.batch(step)
        parts = [UnlabeledRows(images, processor, 8, 0, Share(i, count)).batch(step) for i in range(count)]
    finally:
        picture.unlink()
    assert [id_ for part in parts for id_ in part.images.ids] == expected.images.ids
    assert expected.num_broken == 1 and sum(part.num_broken for part in parts) == 1
    pixels = torch.cat([part.images.inputs["pixel_values"] for part in parts])
    assert torch.equal(pixels, expected.images.inputs["pixel_values"])
    assert np.array_equal(np.concatenate([part.draws for part in parts]), expected.draws)
    rows = [TripletRows(triplets, None, processor, 8, 0, Share(i, count)).batch(5) for i in range(count)]
    expected = TripletRows(triplets, None, processor, 8, 0, Share()).batch(5)
    assert [text for part in rows for text in part.query_texts] == expected.query_texts
    assert [id_ for part in rows for id_ in part.targets.ids] == expected.targets.ids


def test_view_and_concept_of_an_image_are_drawn_apart():
    """Each of 3 views meets each of 15 concepts; the views and phrases are those of older trainings."""
    draws = [batches._draws(0, step, 20) for step in range(50)]
    pairs = {(int(view * 3), int(concept * 15)) for view, _, concept in np.concatenate(draws)}
    assert len(pairs) == 45
    assert np.array_equal(draws[7][:, :2], np.random.default_rng([0, 4, 7]).random((20, 2)))


def test_a_worker_process_raises_what_the_main_process_would(tmp_path):
    for name in "abcd":
        (tmp_path / f"{name}.png").write_bytes(b"broken")
    rows = UnlabeledRows(open_images(str(tmp_path)), build_processor(), 4, 0, Share())
    messages = []
    for num_workers in (0, 1):
        with pytest.raises(ValueError, match="none of a global batch of 4") as caught:
            next(TrainingBatches({"unlabeled": rows}, 0, 1).loader(num_workers))
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and "_load_replacing" in str(caught.value.__cause__)


class _TwoPartError(Exception):
    def __init__(self, what, found):
        super().__init__(f"{what}: {found}")


def test_an_error_that_cannot_be_pickled_is_told():
    assert str(batches._picklable(_TwoPartError("a", "b"))) == "_TwoPartError: a: b"


def test_a_batch_without_a_readable_picture_stops(tmp_path):
    for name in "abcd":
        (tmp_path / f"{name}.png").write_bytes(b"broken")
    rows = UnlabeledRows(open_images(str(tmp_path)), build_processor(), 4, 0, Share())
    with pytest.raises(ValueError, match="none of a global batch of 4"):
        rows.batch(0)


def test_batches_of_a_stream_are_shared_too(syncir_folder):
    def first(count, index):
        stream = ImageStream(f"{syncir_folder}:images", buffer_size=6)
        given = UnlabeledStream(stream, build_processor(), 6, 0, Share(index, count)).batches(0, None)
        return [next(given)[0].images.ids for _ in range(5)]

    halves = [first(2, index) for index in range(2)]
    assert [one + other for one, other in zip(*halves, strict=True)] == first(1, 0)


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
