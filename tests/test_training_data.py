"""What training reads: triplets, texts, and batches by seed and step."""

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build_processor, random_picture
from datasets import Dataset, Image

from hycir_hf.images import ImageStream, open_images
from hycir_hf.training.data import (
    RowOrder,
    Share,
    TrainingBatches,
    TripletRows,
    TripletSource,
    UnlabeledRows,
    UnlabeledStream,
    batches,
    open_triplets,
    read_phrases,
    read_texts,
)
from hycir_hf.training.objectives import mask_keywords

EMOJI = Path(__file__).parents[1] / "examples" / "emoji"


def test_syncir_triplets(syncir_folder, picture_folder):
    triplets = open_triplets(str(syncir_folder))
    assert len(triplets) == 20 and triplets.query_texts[0] == "make it red"
    references, targets = triplets.rows()
    assert references == list(range(20)) and targets == [*range(1, 20), 0]
    elsewhere = open_triplets(str(syncir_folder), images=str(picture_folder))
    assert elsewhere.rows() == (references, targets)
    assert len(triplets.without(["03.png"])) == 18


def test_syncir_triplets_without_images_find_those_of_their_source(tmp_path):
    triplets = open_triplets(str(EMOJI / "syncir"))
    rows, targets = triplets.rows()
    assert len(rows) == len(targets) == len(triplets) > 2000
    assert triplets.images.load(rows[0]).size == (64, 64)

    shutil.copytree(EMOJI / "syncir", tmp_path / "syncir", ignore=shutil.ignore_patterns(".work"))
    recipe = tmp_path / "syncir" / "recipe.json"
    recipe.write_text(recipe.read_text().replace("emoji/data", "emoji/gone").replace('"../data"', '"../gone"'))
    with pytest.raises(ValueError, match="gone"):
        open_triplets(str(tmp_path / "syncir"))


def test_a_triplet_that_points_nowhere_is_named(syncir_folder, tmp_path):
    random_picture().save(tmp_path / "01.png")
    with pytest.raises(ValueError, match=rf"reference image '00.png' of triplet 0 of {syncir_folder}"):
        open_triplets(str(syncir_folder), images=str(tmp_path)).rows()


def test_wrong_column_of_triplets(tmp_path):
    Dataset.from_dict({"reference_id": ["a"], "target": ["b"], "query_text": ["c"]}).to_parquet(tmp_path / "t.parquet")
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: triplets\n  data_files: t.parquet\n---\n")
    with pytest.raises(ValueError, match="'target_id'"):
        open_triplets(str(tmp_path))


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_a_file_of_ones_own_triplets(suffix, picture_folder, tmp_path):
    path = tmp_path / f"mine{suffix}"
    rows = Dataset.from_dict({"reference_id": ["03.png"], "target_id": ["04.png"], "query_text": ["NA"]})
    {".parquet": rows.to_parquet, ".csv": rows.to_csv, ".jsonl": rows.to_json}[suffix](path)
    triplets = open_triplets(str(path), images=str(picture_folder))
    assert triplets.rows() == ([3], [4]) and triplets.query_texts == ["NA"]
    with pytest.raises(ValueError, match=r"mine.*triplet_images"):
        open_triplets(str(path))
    path.write_bytes(b"\x00{")
    with pytest.raises(ValueError, match="mine"):
        open_triplets(str(path), images=str(picture_folder))
    with pytest.raises(FileNotFoundError, match=rf"none{suffix}"):
        open_triplets(str(tmp_path / f"none{suffix}"), images=str(picture_folder))


def test_ids_in_a_csv_stay_as_they_are_written(tmp_path):
    random_picture(0).save(tmp_path / "007.png")
    random_picture(1).save(tmp_path / "8.png")
    images = {"image_id": ["007", "8"], "image": [str(tmp_path / f"{id_}.png") for id_ in ("007", "8")]}
    Dataset.from_dict(images).cast_column("image", Image()).to_parquet(tmp_path / "images.parquet")
    (tmp_path / "mine.csv").write_text("reference_id,target_id,query_text\n007,8,red\n")
    assert open_triplets(str(tmp_path / "mine.csv"), images=str(tmp_path / "images.parquet")).rows() == ([0], [1])


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


@pytest.mark.parametrize("second", [{"wrong": 1}, {"query-image": [7]}, {"query-image": 7}, [], None])
def test_a_json_row_that_is_no_triplet_is_named(second, picture_folder, tmp_path):
    first = {"query-image": [7, "03.png"], "query-text": "t", "target-image": [8, "04.png"]}
    (tmp_path / "lasco.json").write_text(json.dumps([first, second]))
    with pytest.raises(ValueError, match=r"1 of .*lasco\.json.*query-image"):
        open_triplets(str(tmp_path / "lasco.json"), images=str(picture_folder))


@pytest.mark.parametrize("kind", ["lasco", "cirr"])
def test_a_missing_or_damaged_json_of_triplets_is_named(kind, tmp_path):
    with pytest.raises((FileNotFoundError, ValueError), match=str(tmp_path)):
        open_triplets(str(tmp_path / "gone.json"), kind, images=str(tmp_path))
    random_picture().save(tmp_path / "1.png")
    place = {"lasco": "l.json", "cirr": "image_splits/split.rc2.train.json"}[kind]
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("{")
    path = tmp_path / place if kind == "lasco" else tmp_path
    with pytest.raises(ValueError, match=rf"{place}.*triplet_kind"):
        open_triplets(str(path), kind, images=str(tmp_path))


@pytest.mark.parametrize(
    ("image", "id_"), [([7, "03.png"], "7"), (["7", "gone.png"], "7"), ([9, "gone.png"], "gone.png")]
)
def test_lasco_names_its_images_by_path_or_by_number(image, id_, tmp_path):
    random_picture().save(tmp_path / "1.png")
    Dataset.from_dict({"image_id": ["7"], "image": [str(tmp_path / "1.png")]}).cast_column("image", Image()).to_parquet(
        tmp_path / "images.parquet"
    )
    (tmp_path / "l.json").write_text(json.dumps([{"query-image": image, "query-text": "t", "target-image": image}]))
    assert open_triplets(str(tmp_path / "l.json"), images=str(tmp_path / "images.parquet")).reference_ids == [id_]


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
    with pytest.raises(ValueError, match=r"p\.json"):
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
    """Also with a broken image, which the next one of the global batch replaces."""
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
    for source in ([TripletSource(triplets, None, 8)], [TripletSource(triplets, None, size) for size in (5, 1, 2)]):
        rows = [TripletRows(source, processor, 0, Share(i, count)).batch(5) for i in range(count)]
        expected = TripletRows(source, processor, 0, Share()).batch(5)
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
        with pytest.raises(ValueError, match="batch of 4") as caught:
            next(TrainingBatches({"unlabeled": rows}, 0, 1).loader(num_workers))
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and "_load_replacing" in str(caught.value.__cause__)


class _TwoPartError(Exception):
    def __init__(self, what, found):
        super().__init__(f"{what}: {found}")


def test_an_error_that_cannot_be_pickled_is_told():
    assert str(batches._picklable(_TwoPartError("a", "b"))) == "_TwoPartError: a: b"


def test_a_batch_without_a_readable_image_stops(tmp_path):
    for name in "abcd":
        (tmp_path / f"{name}.png").write_bytes(b"broken")
    rows = UnlabeledRows(open_images(str(tmp_path)), build_processor(), 4, 0, Share())
    with pytest.raises(ValueError, match="batch of 4"):
        rows.batch(0)


def test_batches_of_a_stream_are_shared_too(syncir_folder):
    def first(count, index):
        stream = ImageStream(f"{syncir_folder}:images", buffer_size=6)
        given = UnlabeledStream(stream, build_processor(), 6, 0, Share(index, count)).batches(range(5))
        return [next(given)[0].images.ids for _ in range(5)]

    halves = [first(2, index) for index in range(2)]
    assert [one + other for one, other in zip(*halves, strict=True)] == first(1, 0)


def test_an_error_that_passes_stops_the_training(picture_folder, monkeypatch):
    """A lost file server is no broken image: another image in its place would change the weights."""
    images = open_images(str(picture_folder))

    def lose(row):
        raise ValueError("no image") from OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(images, "load", lose)
    with pytest.raises(OSError, match="no image"):
        UnlabeledRows(images, build_processor(), 4, 0, Share()).batch(0)


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_ids_of_a_table_of_triplets_stay_as_they_are(suffix, picture_folder, tmp_path):
    rows = [{"reference_id": "007", "target_id": "2024-01-01", "query_text": "2024-01-01T10:00:00"}] * 2
    path = tmp_path / f"t.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text("\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]) + "\n")
    triplets = open_triplets(str(path), images=str(picture_folder))
    assert (triplets.reference_ids[0], triplets.target_ids[0]) == ("007", "2024-01-01")
    assert triplets.query_texts[0] == "2024-01-01T10:00:00"


@pytest.mark.parametrize("column", ["reference_id", "target_id", "query_text"])
def test_null_in_a_table_of_triplets_is_refused(column, picture_folder, tmp_path):
    row = {"reference_id": "00.png", "target_id": "01.png", "query_text": "red"}
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (row, row | {column: None})))
    with pytest.raises(ValueError, match=column):
        open_triplets(str(tmp_path / "t.jsonl"), images=str(picture_folder))


def test_texts_of_json_lines_stay_as_they_are_and_null_is_refused(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "2024-01-01"}\n{"text": "007"}\n')
    assert read_texts(str(path)) == ["2024-01-01", "007"]
    path.write_text('{"text": "a"}\n{"text": null}\n')
    with pytest.raises(ValueError, match=r"Row 1 .*None.*text"):
        read_texts(str(path))
