"""The converters as they are run: official folders in, data sets in the package's schemas out."""

import runpy
import sys
from pathlib import Path

import pytest
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
    if len(splits) > 1:
        next(root.rglob("*test*.json")).unlink()
        convert(name, root, "--output", tmp_path / "val")
        alone = load_dataset(str(tmp_path / "val"), "gallery", cache_dir=str(tmp_path))
        assert set(alone) == {"val"}
    missing = next(root.rglob("*1*.png"), None) or next(root.rglob("*.jpg"))
    missing.unlink()
    with pytest.raises(SystemExit, match=f"{name}: error: 1 of .* images .*{missing.name}"):
        convert(name, root, "--output", tmp_path / "again")
