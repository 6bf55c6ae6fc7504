import pytest
from conftest import build_model, build_processor, random_picture
from datasets import Dataset, DatasetDict, Image

from hycir_hf.images import FeatureEncoder, open_source
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
