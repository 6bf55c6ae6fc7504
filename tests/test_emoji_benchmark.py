"""The contracts of the emoji benchmark, read from the committed Parquet; and the rules, on hand-worked names."""

import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import Features

EMOJI = Path(__file__).parent.parent / "examples" / "emoji"
sys.path.insert(0, str(EMOJI))

from build_benchmark import FEATURES, GALLERY_VENDORS, SUBSET_SIZE, write_queries  # noqa: E402
from rules import EmojiIndex, make_rules  # noqa: E402

from hycir_hf.schemas import QUERY  # noqa: E402


@pytest.fixture(scope="module")
def queries():
    """All queries, by split."""
    return {split: pq.read_table(EMOJI / f"data/queries/{split}.parquet").to_pylist() for split in ("val", "test")}


@pytest.fixture(scope="module")
def rows(queries):
    """All queries."""
    return [row for split in queries.values() for row in split]


@pytest.fixture(scope="module")
def pictures():
    """All pictures without their pixels, by id."""
    columns = ["image_id", "name", "vendor", "concept"]
    splits = ("train", "heldout_concepts", "heldout_vendor")
    tables = {split: pq.read_table(EMOJI / f"data/images/{split}.parquet", columns=columns) for split in splits}
    return {
        picture["image_id"]: {**picture, "split": split}
        for split, table in tables.items()
        for picture in table.to_pylist()
    }


def ids_of(row):
    return [row["reference_id"], *row["target_ids"], *row["subset_ids"], *row["hard_negative_ids"]]


def test_columns_are_the_query_schema_and_the_part(queries):
    assert set(FEATURES) == {*QUERY, "part"}
    for split, rows in queries.items():
        stored = Features.from_arrow_schema(pq.read_schema(EMOJI / f"data/queries/{split}.parquet"))
        assert stored == FEATURES
        assert {row["split"] for row in rows} == {split}


def test_there_are_enough_queries_of_every_part(rows):
    assert len(rows) >= 2000
    counts = Counter((row["split"], row["part"]) for row in rows)
    assert set(counts) == {(split, part) for split in ("val", "test") for part in GALLERY_VENDORS}
    assert min(counts.values()) >= 400


def test_query_ids_are_unique(rows):
    assert len({row["query_id"] for row in rows}) == len(rows)


def test_every_picture_exists_and_is_in_the_gallery_of_the_part(rows, pictures):
    for row in rows:
        assert {pictures[image_id]["vendor"] for image_id in ids_of(row)} <= set(GALLERY_VENDORS[row["part"]])


def test_every_rule_has_three_wordings_and_every_pair_is_asked_in_all_of_them(rows):
    wordings = {}
    for row in rows:
        wordings.setdefault(row["query_id"].rpartition(".")[0], {})[row["wording"]] = row["query_text"]
    for pair, texts in wordings.items():
        assert sorted(texts) == list(range(len(texts))), pair
        assert len(set(texts.values())) >= 3, pair


def test_test_queries_share_no_concept_with_training(queries, pictures):
    trained = {picture["concept"] for picture in pictures.values() if picture["split"] == "train"}
    for split, rows in queries.items():
        for row in rows:
            concepts = {pictures[image_id]["concept"] for image_id in (row["reference_id"], *row["target_ids"])}
            assert concepts <= trained if split == "val" else not concepts & trained, row["query_id"]


def test_the_first_target_is_the_references_vendor(rows, pictures):
    for row in rows:
        assert pictures[row["target_ids"][0]]["vendor"] == pictures[row["reference_id"]]["vendor"]


def test_mixed_queries_have_several_targets(rows):
    mixed = [row for row in rows if row["part"] == "mixed"]
    assert sum(len(row["target_ids"]) > 1 for row in mixed) > 0.95 * len(mixed)


def test_targets_are_neither_the_reference_nor_hard_negatives(rows):
    for row in rows:
        assert row["hard_negative_ids"], row["query_id"]
        targets = set(row["target_ids"])
        assert not targets & {row["reference_id"], *row["hard_negative_ids"]}, row["query_id"]
        assert row["reference_id"] not in row["hard_negative_ids"]


def test_subsets_hold_one_target_and_not_the_reference(rows):
    for row in rows:
        assert len(set(row["subset_ids"])) == len(row["subset_ids"]) == SUBSET_SIZE, row["query_id"]
        assert set(row["subset_ids"]) & set(row["target_ids"]) == {row["target_ids"][0]}
        assert row["reference_id"] not in row["subset_ids"]


def test_lists_have_no_repeats(rows):
    for row in rows:
        for column in ("target_ids", "hard_negative_ids"):
            assert len(set(row[column])) == len(row[column])


def test_texts_are_whole_and_ask_for_one_thing(rows):
    asked = {}
    for row in rows:
        assert row["query_text"] and not set(row["query_text"]) & set("{}") and "None" not in row["query_text"]
        asked.setdefault((row["part"], row["reference_id"], row["query_text"]), set()).add(row["target_ids"][0])
    assert all(len(targets) == 1 for targets in asked.values())


def test_no_rule_dominates(rows):
    for split in ("val", "test"):
        counts = Counter(row["rule"] for row in rows if row["split"] == split)
        assert max(counts.values()) < 0.08 * counts.total()


def test_a_rebuild_gives_the_same_bytes(tmp_path):
    write_queries(EMOJI / "data" / "images", tmp_path)
    for split in ("val", "test"):
        assert (tmp_path / f"{split}.parquet").read_bytes() == (EMOJI / f"data/queries/{split}.parquet").read_bytes()


@pytest.mark.parametrize(
    ("rule", "reference", "targets"),
    [
        ("gender", "woman cook: dark skin tone", {"man cook: dark skin tone"}),
        ("skin_tone", "cook", {"cook: dark skin tone"}),
        ("gender+skin_tone", "woman cook", {"man cook: dark skin tone"}),
        ("profession", "woman cook", {"woman pilot"}),
        ("gender", "girl", {"boy"}),
        ("colour", "blue heart", {"green heart"}),
        ("shape+colour", "blue heart", {"green circle"}),
        ("animal_part", "cow", {"cow face"}),
        ("clock_half", "one o’clock", {"one-thirty"}),
        ("moon_phase", "full moon", set()),
    ],
)
def test_a_rule_changes_what_it_names_and_keeps_the_rest(rule, reference, targets):
    people = ["woman cook", "man cook", "cook", "woman pilot", "girl", "boy"]
    toned = ["woman cook: dark skin tone", "man cook: dark skin tone", "cook: dark skin tone"]
    emoji = EmojiIndex(
        [(name, "people-body", "person-role") for name in people + toned]
        + [(name, "symbols", "geometric") for name in ("blue heart", "green heart", "green circle")]
        + [(name, "animals-nature", "animal-mammal") for name in ("cow", "cow face")]
        + [(name, "travel-places", "time") for name in ("one o’clock", "one-thirty", "full moon")]
    )
    changes = [change for it in make_rules([]) if it.name == rule for change in it.apply(emoji)]
    assert {change.target_name for change in changes if change.name == reference} == targets
