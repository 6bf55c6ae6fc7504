import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import random_picture
from datasets import load_dataset
from test_syncir_pipeline import folder, run  # noqa: F401 - a fixture

from hycir_hf.schemas import TRIPLET, UNLABELED

SCRIPTS = Path(__file__).parents[1] / "dataset_scripts"


@pytest.fixture(autouse=True)
def scripts_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


def load_script(name):
    return importlib.import_module(name)


def build(builder_class, tmp_path, **kwargs):
    builder = builder_class(cache_dir=str(tmp_path / "cache"), **kwargs)
    builder.download_and_prepare()
    return builder.as_dataset()


@pytest.fixture
def syncir(folder, tmp_path):  # noqa: F811
    run(folder, tmp_path / "syncir", threshold=0.5)
    return tmp_path / "syncir"


@pytest.mark.parametrize("config", ["triplets", "images", "dropped"])
def test_the_imported_builder_gives_the_folders_rows(syncir, tmp_path, config):
    rows = build(load_script("syncir").SynCir, tmp_path, config_name=config, data_dir=str(syncir))["train"]
    plain = load_dataset(str(syncir), config, split="train")
    assert rows.features == plain.features and list(rows) == list(plain) and len(rows)


def test_a_missing_folder_or_part_is_named(syncir, tmp_path):
    builder = load_script("syncir").SynCir
    with pytest.raises(ValueError, match="data_dir=FOLDER"):
        builder(config_name="triplets")
    (syncir / "dropped.parquet").unlink()
    with pytest.raises(ValueError, match=r"dropped\.parquet"):
        builder(config_name="dropped", data_dir=str(syncir))


@pytest.mark.slow
def test_the_script_loads_with_datasets_3_in_an_environment_of_its_own(syncir, tmp_path):
    python = tmp_path / "environment" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "environment")], check=True)
    packages = ["datasets>=3,<4", "pillow"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True, capture_output=True)
    code = (
        "import json, sys; from datasets import load_dataset\n"
        f"rows = load_dataset({str(SCRIPTS / 'syncir.py')!r}, sys.argv[1], data_dir={str(syncir)!r}, split='train',\n"
        f"                    trust_remote_code=True, cache_dir={str(tmp_path / 'cache')!r})\n"
        "if 'image' in rows.column_names: rows = rows.remove_columns('image')\n"
        "print('ROWS', json.dumps(list(rows)))\n"
    )
    for config in ("triplets", "images", "dropped"):
        output = subprocess.run([python, "-c", code, config], check=True, capture_output=True, text=True).stdout
        plain = load_dataset(str(syncir), config, split="train")
        plain = plain.remove_columns("image") if "image" in plain.column_names else plain
        assert json.loads(output.split("ROWS ")[1]) == list(plain)


# --- LaSCo ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def lasco(tmp_path):
    root = tmp_path / "lasco"
    (root / "val2014").mkdir(parents=True)
    names = [f"val2014/COCO_val2014_{number:012d}.jpg" for number in range(3)]
    for number, name in enumerate(names):
        random_picture(number).save(root / name)
    entries = [
        {
            "qid": 28714000,
            "query-image": [0, names[0]],
            "query-text": "The person rides",
            "target-image": [1, names[1]],
        },
        {"qid": 28714001, "query-image": [1, names[1]], "query-text": "It is night", "target-image": [2, names[2]]},
    ]
    (root / "lasco_val.json").write_text(json.dumps(entries))
    return root


def test_lascos_json_becomes_triplets_and_images(lasco, tmp_path):
    builder = load_script("lasco").LaSCo
    triplets = build(builder, tmp_path, config_name="triplets", data_dir=str(lasco))["validation"]
    images = build(builder, tmp_path, config_name="images", data_dir=str(lasco))["validation"]
    assert set(TRIPLET) <= set(triplets.column_names)
    assert set(UNLABELED) <= set(images.column_names)
    assert triplets[1]["reference_id"] == "1" and triplets[1]["target_id"] == "2"
    assert triplets[0]["query_text"] == "The person rides" and triplets[0]["triplet_id"] == 28714000
    assert images["image_id"][:] == ["0", "1", "2"] and images[0]["image"].size == (20, 14)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda text: text[: len(text) // 2], "Expected JSON in"),
        (lambda text: "{}", "list of triplets"),
        (lambda text: text.replace("query-text", "text", 1), r"entry 0 lacks \['query-text'\]"),
    ],
)
def test_a_spoilt_file_is_named_with_its_entry(lasco, spoil, words):
    path = lasco / "lasco_val.json"
    path.write_text(spoil(path.read_text()))
    with pytest.raises(ValueError, match=words):
        load_script("lasco").read_entries(path)


def test_a_missing_picture_is_named(lasco, tmp_path):
    (lasco / "val2014" / "COCO_val2014_000000000002.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 are missing \(the first: .*000000000002\.jpg"):
        build(load_script("lasco").LaSCo, tmp_path, config_name="images", data_dir=str(lasco))
