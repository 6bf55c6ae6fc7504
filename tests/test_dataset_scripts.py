"""The converters as they are run: official folders in, data sets in the package's schemas out."""

import json
import runpy
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset
from test_evaluation_files import make_circo, make_cirr, make_fashioniq

from hycir_hf.schemas import GALLERY, QUERY

SCRIPTS = Path(__file__).parents[1] / "dataset_scripts"


@pytest.fixture
def convert(monkeypatch):
    def run(name, *arguments):
        monkeypatch.syspath_prepend(str(SCRIPTS))
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")

    return run


@pytest.mark.parametrize(
    ("name", "make", "splits", "num_queries", "num_pictures"),
    [
        ("cirr", make_cirr, {"val", "test1"}, 8, 60),
        ("circo", make_circo, {"val", "test"}, 1, 60),
        ("fashioniq", make_fashioniq, {"val"}, 3, 180),
    ],
)
def test_official_folders_become_data_sets(name, make, splits, num_queries, num_pictures, tmp_path, convert):
    root = make(tmp_path / "official")
    arguments = ["--embed"] if name == "cirr" else []
    convert(name, root, "--output", tmp_path / "out", *arguments)
    queries, gallery = (
        load_dataset(str(tmp_path / "out"), config, cache_dir=str(tmp_path)) for config in ("queries", "gallery")
    )
    assert set(queries) == set(gallery) == splits
    assert set(QUERY) <= set(queries["val"].column_names)
    assert set(GALLERY) <= set(gallery["val"].column_names)
    assert (len(queries["val"]), len(gallery["val"])) == (num_queries, num_pictures)
    assert gallery["val"][0]["image"].size == (4, 4)
    assert set(queries["val"][0]["target_ids"]) <= set(gallery["val"]["image_id"])
    check_card(tmp_path / "out")
    if len(splits) > 1:
        next(root.rglob("*test*.json")).unlink()
        convert(name, root, "--output", tmp_path / "val")
        alone = load_dataset(str(tmp_path / "val"), "gallery", cache_dir=str(tmp_path))
        assert set(alone) == {"val"}
    missing = next(root.rglob("*1*.png"), None) or next(root.rglob("*.jpg"))
    missing.unlink()
    with pytest.raises(SystemExit, match=f"{name}: error: 1 of .* images .*{missing.name}"):
        convert(name, root, "--output", tmp_path / "again")


def check_card(folder):
    """The card names each config's columns in the words of every version of `datasets`."""
    card = yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---")[1])
    files_of = {config["config_name"]: config["data_files"] for config in card["configs"]}
    assert [info["config_name"] for info in card["dataset_info"]] == list(files_of)
    for info in card["dataset_info"]:
        assert all(set(column) <= {"name", "dtype", "sequence"} for column in info["features"])
        columns = {
            column["name"]: column.get("dtype", f"sequence {column.get('sequence')}") for column in info["features"]
        }
        for file in files_of[info["config_name"]]:
            schema = pq.read_schema(folder / file["path"])
            saved = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
            found = {name: feature.get("dtype", feature["_type"].lower()) for name, feature in saved.items()}
            assert columns == {name: "sequence string" if kind == "list" else kind for name, kind in found.items()}


def test_the_emoji_data_names_its_columns():
    check_card(SCRIPTS.parent / "examples" / "emoji" / "data")


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.stem)
def test_a_converter_says_that_it_is_no_loading_script(path):
    name = f"datasets_modules.datasets.{path.stem}.{path.stem}"  # as `datasets` 3 imports a loading script
    if path.stem in ("syncir", "lasco"):
        assert runpy.run_path(str(path), run_name=name)
        return
    with pytest.raises(ImportError, match=rf"{path.stem}\.py is .*script(?s:.*)python .*\.py"):
        runpy.run_path(str(path), run_name=name)
