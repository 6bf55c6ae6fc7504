"""The committed emoji pictures and the taking apart of their names."""

import io
import json
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset
from huggingface_hub import DatasetCard
from PIL import Image

from hycir_hf.schemas import GALLERY
from hycir_hf.syncir import refilter

EMOJI = Path(__file__).parents[1] / "examples" / "emoji"
sys.path.insert(0, str(EMOJI))

from concepts import held_out_concepts, parse_name  # noqa: E402


@pytest.fixture(scope="module")
def columns() -> dict[str, dict]:
    names = ["image_id", "name", "vendor", "concept", "category"]
    splits = ("train", "heldout_concepts", "heldout_vendor")
    return {s: pq.read_table(EMOJI / "data/images" / f"{s}.parquet", columns=names).to_pydict() for s in splits}


def test_no_training_picture_is_of_a_held_out_concept_or_vendor(columns):
    assert not set(columns["train"]["concept"]) & set(columns["heldout_concepts"]["concept"])
    assert set(columns["heldout_vendor"]["vendor"]) == {"twemoji"}
    assert "twemoji" not in {*columns["train"]["vendor"], *columns["heldout_concepts"]["vendor"]}


def test_about_15_percent_of_the_concepts_are_held_out(columns):
    held_out, seen = (len(set(columns[split]["concept"])) for split in ("heldout_concepts", "train"))
    assert 0.14 < held_out / (held_out + seen) < 0.16


def test_the_stored_concepts_are_those_of_the_names(columns):
    for split in columns.values():
        parsed = [parse_name(name, category) for name, category in zip(split["name"], split["category"], strict=True)]
        assert [name.concept for name in parsed] == split["concept"]


def test_image_ids_are_unique(columns):
    ids = [image_id for split in columns.values() for image_id in split["image_id"]]
    assert len(ids) == len(set(ids)) == 21_580


def test_the_data_set_loads_and_shows_64_pixel_pictures():
    pictures = load_dataset(str(EMOJI / "data"), "images", split="heldout_vendor", streaming=True)
    row = next(iter(pictures))
    assert set(GALLERY) <= set(row)
    assert row["image"].size == (64, 64) and row["image"].mode == "RGB"


def test_every_picture_decodes():
    for path in (EMOJI / "data/images").glob("*.parquet"):
        for image in pq.read_table(path, columns=["image"])["image"].to_pylist():
            Image.open(io.BytesIO(image["bytes"])).load()


def test_the_data_stay_under_20_mb():
    assert sum(path.stat().st_size for path in (EMOJI / "data").rglob("*.parquet")) < 20e6


@pytest.mark.parametrize(
    ("name", "category", "concept", "gender", "tones", "hair"),
    [
        ("woman firefighter: medium skin tone", "people-body", "firefighter", "female", ("medium",), None),
        ("firefighter", "people-body", "firefighter", None, (), None),
        ("man: light skin tone, red hair", "people-body", "adult", "male", ("light",), "red hair"),
        ("old woman: dark skin tone", "people-body", "older adult", "female", ("dark",), None),
        (
            "kiss: woman, man, light skin tone, medium-dark skin tone",
            "people-body",
            "kiss",
            None,
            ("light", "medium-dark"),
            None,
        ),
        ("cat face", "animals-nature", "cat", None, (), None),
        ("cat", "animals-nature", "cat", None, (), None),
        ("flag: France", "flags", "flag: France", None, (), None),
    ],
)
def test_names_are_taken_apart(name, category, concept, gender, tones, hair):
    parsed = parse_name(name, category)
    assert (parsed.concept, parsed.gender, parsed.skin_tones, parsed.hair) == (concept, gender, tones, hair)


def test_the_choice_of_held_out_concepts_outlives_a_new_category():
    concepts = {"a": {f"concept {i}" for i in range(100)}}
    chosen = held_out_concepts(concepts)
    assert len(chosen) == 15
    assert held_out_concepts({**concepts, "b": {"x"}}) == chosen


def test_the_triplets_card_names_each_pictures_licence():
    table = (EMOJI / "data" / "README.md").read_text(encoding="utf-8").split("## Sources and licences")[1]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| `")]
    licence_of = {vendor.strip(" `"): licence.strip() for vendor, _, _, licence in rows}
    vendors = {id_.split("/")[0] for id_ in pq.read_table(EMOJI / "syncir/images")["image_id"].to_pylist()}
    assert vendors == set(licence_of) - {"twemoji"}
    licences = (EMOJI / "syncir" / "README.md").read_text(encoding="utf-8").split("\nImages: ")[1].split("Captions")[0]
    part_of = {vendor: part for part in licences.split(";") for vendor in vendors if vendor in part.split(" (")[0]}
    assert all(licence_of[vendor] in part_of[vendor] for vendor in vendors)


def test_the_triplets_come_back_from_another_threshold_byte_for_byte(tmp_path):
    """Their card and report are what this code writes, and pass the Hub's metadata checks."""
    committed = EMOJI / "syncir"
    shutil.copytree(committed, tmp_path / "syncir", ignore=shutil.ignore_patterns(".work"))
    thresholds = json.loads((committed / "recipe.json").read_text(encoding="utf-8"))["thresholds"]
    assert refilter(tmp_path / "syncir", {"similarity": 0.9})["counts"]["kept"] < 3671
    refilter(tmp_path / "syncir", thresholds)
    for name in ("README.md", "recipe.json", "report.html", "triplets.parquet", "dropped.parquet"):
        assert (tmp_path / "syncir" / name).read_bytes() == (committed / name).read_bytes(), name
    card = (committed / "README.md").read_text(encoding="utf-8")
    metadata = DatasetCard(card, ignore_metadata_errors=False).data.to_dict()
    assert metadata == yaml.safe_load(card.split("---")[1])
