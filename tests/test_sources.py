import io
import json
import os

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import build_model, build_processor, random_picture
from datasets import Dataset, DatasetDict, Image

from hycir_hf.images import FeatureEncoder, FolderSource, ImageStream, open_images, open_source
from hycir_hf.retrieval import index_images


@pytest.fixture(scope="module")
def encoder():
    return FeatureEncoder(build_model(), build_processor())


def make_dataset(count=4):
    images = [random_picture(seed) for seed in range(count)]
    return Dataset.from_dict({"image_id": [f"id-{n}" for n in range(count)], "image": images, "n": list(range(count))})


def as_images(dataset, decode=True):
    return dataset.cast_column("image", Image(decode=decode))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets-cache")


def write_configs(folder):
    """A Parquet folder whose card names two configs."""
    as_images(make_dataset()).to_parquet(folder / "images" / "train.parquet")
    Dataset.from_dict({"query_id": ["q"]}).to_parquet(folder / "queries" / "train.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: images\n  data_files: images/train.parquet\n"
        "- config_name: queries\n  data_files: queries/train.parquet\n---\n"
    )
    return folder


def test_a_folder_with_a_card_is_read_by_config(encoder, tmp_path):
    folder = write_configs(tmp_path / "data")
    source = open_source(f"{folder}:images")
    assert source.ids == [f"id-{n}" for n in range(4)] and source.split == "train"
    report = index_images(
        FeatureEncoder(build_model(), build_processor()), source, tmp_path / "gallery", progress=False
    )
    assert report.gallery.source["config"] == "images" and len(report.gallery) == 4
    with pytest.raises(ValueError, match="images"):
        open_source(f"{folder}:nowhere")
    with pytest.raises(ValueError, match="column of type Image"):
        open_source(f"{folder}:queries")


def test_a_saved_data_set_with_splits_asks_for_one(tmp_path):
    data = as_images(make_dataset())
    DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(tmp_path / "data")
    path = str(tmp_path / "data")
    with pytest.raises(ValueError, match=r"\['train', 'test'\].*split"):
        open_source(path)
    with pytest.raises(ValueError, match="'val'"):
        open_source(path, split="val")
    assert open_source(path, split="test").ids == ["id-1"]
    assert open_source(path, split="train", id_column="n").ids == ["0", "1", "2", "3"]
    with pytest.raises(ValueError, match=r"'x'.*id_column"):
        open_source(path, split="train", id_column="x")
    with pytest.raises(ValueError, match=r"'n'.*image_column"):
        open_source(path, split="train", image_column="n")


def test_a_broken_row_names_itself_and_repeated_ids_are_refused(encoder, tmp_path):
    data = as_images(as_images(make_dataset()), decode=False)
    rows = data.to_list()
    rows[2]["image"] = {"bytes": b"broken", "path": None}
    broken = Dataset.from_list(rows, features=data.features)
    as_images(broken).to_parquet(tmp_path / "data.parquet")
    source = open_source(str(tmp_path / "data.parquet"))
    report = index_images(
        FeatureEncoder(build_model(), build_processor()), source, tmp_path / "gallery", progress=False
    )
    assert len(report.gallery) == 3
    assert report.skipped[0][0] == "id-2" and "row 2" in report.skipped[0][1]
    rows[1]["image_id"] = "id-0"
    as_images(Dataset.from_list(rows, features=data.features)).to_parquet(tmp_path / "twice.parquet")
    with pytest.raises(ValueError, match=r"'id-0' .*rows 0 and 1"):
        open_source(str(tmp_path / "twice.parquet"))


def test_a_path_to_nothing_or_to_one_picture_says_so(tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        open_source(str(tmp_path / "nowhere"))
    random_picture().save(tmp_path / "one.png")
    with pytest.raises(ValueError, match=r"one\.png"):
        open_source(str(tmp_path / "one.png"))


def test_options_of_datasets_are_refused_for_a_folder(tmp_path):
    random_picture().save(tmp_path / "one.png")
    with pytest.raises(ValueError, match="split"):
        open_source(str(tmp_path), split="train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty.*image suffix"):
        open_source(str(tmp_path / "empty"))


def png(seed):
    file = io.BytesIO()
    random_picture(seed).save(file, "PNG")
    return file.getvalue()


# Folders


def test_linked_folders_are_followed_once(tmp_path):
    """Ids of real folders stay; a folder linked twice, or from within itself, is read once."""
    photos, outside = tmp_path / "photos", tmp_path / "outside"
    for place in (photos / "real", outside / "deep"):
        place.mkdir(parents=True)
        random_picture().save(place / "0.png")
    links = {
        "a_same": photos / "real",
        "b_out": outside,
        "c_again": outside,
        "loop": photos,
        "up": tmp_path,
        "gone": "x",
    }
    for name, target in links.items():
        (photos / name).symlink_to(target)
    (outside / "deep" / "back").symlink_to(outside)
    (photos / "linked.png").symlink_to(outside / "deep" / "0.png")
    source = FolderSource(photos)
    assert source.ids == ["b_out/deep/0.png", "linked.png", "real/0.png"]
    assert source.load(0).size == (20, 14)


def test_pictures_that_are_not_read_are_counted(tmp_path):
    random_picture().save(tmp_path / "0.png")
    for name in ("a.svg", "b.NEF", "c.dng", "d.eps", "e.psd", "notes.txt", "film.mp4"):
        (tmp_path / name).write_bytes(b"x")
    source = FolderSource(tmp_path)
    assert [id_ for id_, _ in source.skipped] == ["a.svg", "b.NEF", "c.dng", "d.eps", "e.psd"]
    (tmp_path / "0.png").unlink()
    with pytest.raises(ValueError, match=r"1 \.svg.*PNG"):
        FolderSource(tmp_path)


def test_without_pillow_heif_its_images_are_counted_and_it_is_named(tmp_path, monkeypatch):
    random_picture().save(tmp_path / "0.png")
    random_picture().save(tmp_path / "1.heic")
    assert FolderSource(tmp_path).ids == ["0.png", "1.heic"]
    monkeypatch.setattr("hycir_hf.images.sources.has_heif", lambda: False)
    source = FolderSource(tmp_path)
    assert source.ids == ["0.png"] and "pillow-heif" in dict(source.skipped)["1.heic"]


def test_a_table_among_photos_makes_no_dataset_of_them(tmp_path):
    for number in range(3):
        random_picture(number).save(tmp_path / f"{number}.png")
    for name in ("captions", "more", "metadata", "also", "these"):
        pq.write_table(pa.table({"file_name": ["0.png"], "caption": ["a"]}), tmp_path / f"{name}.parquet")
    assert open_source(str(tmp_path)).ids == ["0.png", "1.png", "2.png"]


# Tables


@pytest.mark.parametrize("form", ["bytes", "record", "record without type"])
def test_parquet_with_plain_image_bytes(form, encoder, tmp_path):
    images = [png(number) for number in range(3)]
    values = images if form == "bytes" else [{"bytes": one, "path": None} for one in images]
    column = (
        pa.array(values)
        if form != "record"
        else pa.array(values, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    )
    pq.write_table(pa.table({"image_id": ["007", "008", "2024-01-01"], "photo": column}), tmp_path / "x.parquet")
    source = open_source(str(tmp_path / "x.parquet"))
    assert source.ids == ["007", "008", "2024-01-01"] and source.image_column == "photo"
    assert np.array_equal(np.asarray(source.load(2)), np.asarray(random_picture(2)))
    assert len(index_images(encoder, source, tmp_path / "gallery", progress=False).gallery) == 3
    stream = ImageStream(str(tmp_path / "x.parquet"), image_column="photo")
    assert [id_ for id_, _ in stream] == source.ids


IDS = ["007", "2024-01-01", "1e5", "NA", "2024-01-01T10:00:00"]


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "json", "csv"])
def test_ids_and_texts_of_text_tables_stay_as_they_are(suffix, tmp_path):
    for number in range(5):
        random_picture(number).save(tmp_path / f"{number}.png")
    rows = [{"image_id": id_, "image": f"{n}.png", "text": id_} for n, id_ in enumerate(IDS)]
    path = tmp_path / f"x.{suffix}"
    if suffix == "csv":
        lines = ["image_id,image,text", *(",".join(row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    elif suffix == "json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_source(str(path))
    assert source.ids == IDS == source.column("text")
    assert source.load(3).size == (20, 14) and source.read_bytes(3) == (tmp_path / "3.png").read_bytes()
    assert [(id_, image) for id_, image in ImageStream(str(path))][1] == ("2024-01-01", str(tmp_path / "1.png"))


@pytest.mark.parametrize(("value", "found"), [(None, "no id"), (7.5, "7.5"), (True, "True"), ("", "no id")])
def test_what_is_no_id_is_refused(value, found, tmp_path):
    rows = [{"image_id": value, "image": "a.png"}, {"image_id": value, "image": "b.png"}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=rf"Row 0 .*{found}.*image_id"):
        open_source(str(tmp_path / "x.jsonl"))
    with pytest.raises(ValueError, match=rf"Row 0 .*{found}.*image_id"):
        list(ImageStream(str(tmp_path / "x.jsonl")))


@pytest.mark.parametrize(
    "path",
    [
        *("nowhere", "nowhere/", "./nowhere", "../nowhere", "a/b/c", "nowhere.jsonl", "data/nowhere.parquet"),
        *("owner/data.zip", "owner/data.csv", "here.zip", "here.tar.gz", "here.xlsx", "here.txt", "here"),
    ],
)
@pytest.mark.parametrize("way", [open_images, ImageStream])
def test_a_local_path_is_never_looked_up_on_the_hub(path, way, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", refuse)
    monkeypatch.chdir(tmp_path)
    for name in ("here.zip", "here.tar.gz", "here.xlsx", "here.txt", "here"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=os.path.basename(path.rstrip("/"))) as caught:  # noqa: PTH119
        way(path)
    assert "the Hub was asked" not in str(caught.value)
    if "here.zip" in path or ".tar.gz" in path:
        assert "Unpack" in str(caught.value) or "npack" in str(caught.value)
