"""Official files: the real ones where they are at hand, small ones in their layouts, and damaged ones."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import random_picture
from PIL import Image

from hycir_hf.evaluation import (
    BENCHMARKS,
    read_benchmark,
    read_rankings,
    score_part,
    score_rankings,
    write_submission,
)

REAL = Path(__file__).parents[2] / "shared" / "data"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"the benchmarks' annotation files are not in {REAL}")


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def make_cirr(root, num_images=60, num_queries=8):
    """A small CIRR in its official folders; images are 4 pixels."""
    names = [f"dev-{number}-0-img0" for number in range(num_images)]
    for number, name in enumerate(names):
        (root / "dev").mkdir(parents=True, exist_ok=True)
        random_picture(number, (4, 4)).save(root / "dev" / f"{name}.png")
    entries = [
        {
            "pairid": 100 + number,
            "reference": names[number],
            "target_hard": names[number + 1],
            "target_soft": {names[number + 1]: 1.0},
            "caption": "make it night",
            "img_set": {"id": number, "members": names[number : number + 6], "reference_rank": 0, "target_rank": 1},
        }
        for number in range(num_queries)
    ]
    write_json(root / "cirr" / "captions" / "cap.rc2.val.json", entries)
    hidden = [{key: value for key, value in one.items() if not key.startswith("target")} for one in entries]
    write_json(root / "cirr" / "captions" / "cap.rc2.test1.json", hidden)
    for split in ("val", "test1"):
        places = {name: f"./dev/{name}.png" for name in names}
        write_json(root / "cirr" / "image_splits" / f"split.rc2.{split}.json", places)
    return root


def make_circo(root):
    ids = list(range(1, 61))
    images = [{"id": number, "file_name": f"{number:012d}.jpg"} for number in ids]
    coco = root / "COCO2017_unlabeled"
    write_json(coco / "annotations" / "image_info_unlabeled2017.json", {"images": images})
    (coco / "unlabeled2017").mkdir()
    for image in images:
        Image.new("RGB", (4, 4), (image["id"], 0, 0)).save(coco / "unlabeled2017" / image["file_name"])
    entry = {"reference_img_id": 1, "relative_caption": "is red", "shared_concept": "a dog", "id": 0}
    write_json(root / "annotations" / "val.json", [entry | {"target_img_id": 2, "gt_img_ids": [2, 3]}])
    write_json(root / "annotations" / "test.json", [entry])
    return root


def make_fashioniq(root):
    (root / "images").mkdir(parents=True)
    for category in ("dress", "shirt", "toptee"):
        ids = [f"{category.upper()}{number}" for number in range(60)]
        captions = ["is red.", "has  no sleeves"]
        entries = [{"candidate": ids[0], "target": ids[1], "captions": captions}]
        write_json(root / "captions" / f"cap.{category}.val.json", entries)
        write_json(root / "image_splits" / f"split.{category}.val.json", ids)
        for number, id_ in enumerate(ids):
            Image.new("RGB", (4, 4), (number, 0, 0)).save(root / "images" / f"{id_}.{'png' if number % 2 else 'jpg'}")
    return root


@needs_real
@pytest.mark.parametrize(
    ("name", "split", "counts"),
    [
        ("cirr", "val", {"all": (4181, 2297)}),
        ("cirr", "test1", {"all": (4148, 2315)}),
        ("circo", "val", {"all": (220, 0)}),
        ("circo", "test", {"all": (800, 0)}),
        ("fashioniq", "val", {"dress": (2017, 3817), "shirt": (2038, 6346), "toptee": (1961, 5373)}),
        ("fashioniq-union", "val", {"dress": (2017, 2628), "shirt": (2038, 3089), "toptee": (1961, 2902)}),
    ],
)
def test_the_real_files_are_read(name, split, counts):
    data = read_benchmark(name, REAL / name.partition("-")[0], split, with_images=False)
    assert {part.name: (len(part.queries), len(part.gallery_ids)) for part in data.parts} == counts
    assert data.has_targets == split.startswith("val")


@needs_real
@pytest.mark.parametrize(
    ("name", "split", "place"),
    [
        ("cirr", "test1", "cirr/demo_files/test1_pred_ranks_recall.json"),
        ("cirr", "test1", "cirr/demo_files/test1_pred_ranks_recall_subset.json"),
        ("circo", "test", "circo/submission_examples/submission_test.json"),
    ],
)
def test_the_authors_examples_pass_and_damaged_ones_do_not(name, split, place, tmp_path):
    data = read_benchmark(name, REAL / name, split, with_images=False)
    kind, rankings = read_rankings(REAL / place, data)
    assert set(rankings) == set(data.parts[0].query_ids)
    content = json.loads((REAL / place).read_text())
    first = data.parts[0].query_ids[0]
    content[first] = content[first][:-1]
    write_json(tmp_path / "short.json", content)
    with pytest.raises(ValueError, match=rf"{kind.length} ids .*short\.json, query '{first}'"):
        read_rankings(tmp_path / "short.json", data)


@needs_real
def test_a_perfect_answer_to_the_real_val_scores_one(tmp_path):
    data = read_benchmark("cirr", REAL / "cirr", with_images=False)
    (part,) = data.parts
    rankings, subsets = {}, {}
    for query in part.queries:
        others = [id_ for id_ in part.gallery_ids[:60] if id_ not in (query["reference_id"], *query["target_ids"])]
        rankings[query["query_id"]] = [*query["target_ids"], *others]
        wrong = [id_ for id_ in query["subset_ids"] if id_ not in query["target_ids"]]
        subsets[query["query_id"]] = [wrong[0], *query["target_ids"], *wrong[1:]]
    paths = write_submission(data, rankings, subsets, directory=tmp_path)
    assert [path.name for path in paths] == ["cirr_val_recall.json", "cirr_val_recall_subset.json"]
    means = {name: one.mean for name, one in score_rankings(paths, data).intervals()["predictions"]["all"].items()}
    assert means == {"R@1": 1, "R@5": 1, "R@10": 1, "R@50": 1, "avg": 1} | {
        "R_subset@1": 0,
        "R_subset@2": 1,
        "R_subset@3": 1,
    }


def test_cirr_in_its_folders(tmp_path):
    data = read_benchmark("cirr", make_cirr(tmp_path))
    (part,) = data.parts
    query = part.queries[0]
    assert (query["query_id"], query["target_ids"], len(query["subset_ids"])) == ("100", ["dev-1-0-img0"], 5)
    assert query["reference_id"] not in query["subset_ids"] and len(data.images) == len(part.gallery_ids) == 60
    assert read_benchmark("cirr", tmp_path).fingerprint() == data.fingerprint()
    shutil.move(tmp_path / "cirr" / "captions", tmp_path / "captions")  # without the folder between
    shutil.move(tmp_path / "cirr" / "image_splits", tmp_path / "image_splits")
    assert read_benchmark("cirr", tmp_path).images.keys() == data.images.keys()


@needs_real
def test_circos_aspects_are_those_of_its_val_file():
    (part,) = read_benchmark("circo", REAL / "circo", "val", with_images=False).parts
    counts = Counter(aspect for query in part.queries for aspect in query["semantic_aspects"])
    assert len(counts) == 9 and (counts["statement_with_conjunction"], counts["negation"]) == (164, 21)
    others = [f"x{number}" for number in range(49)]
    perfect = score_part(BENCHMARKS["circo"], part, [[query["target_ids"][0], *others] for query in part.queries])
    assert perfect.values["R@5"].mean() == 1
    is_asked = ~np.isnan(perfect.values["mAP@10 negation"])
    assert is_asked.sum() == 21
    assert (perfect.values["mAP@10 negation"] == perfect.values["mAP@10"])[is_asked].all()


def test_circos_first_target_is_the_one_that_the_text_was_written_for(tmp_path):
    path = make_circo(tmp_path) / "annotations" / "val.json"
    (entry,) = json.loads(path.read_text())
    write_json(path, [entry | {"gt_img_ids": [3, 2, 4]}])
    assert read_benchmark("circo", tmp_path).parts[0].queries[0]["target_ids"] == ["2", "3", "4"]


def test_circo_ids_are_numbers_in_its_files(tmp_path):
    data = read_benchmark("circo", make_circo(tmp_path / "circo"))
    assert data.parts[0].queries[0]["target_ids"] == ["2", "3"] and data.parts[0].gallery_ids[0] == "1"
    (path,) = write_submission(data, {"0": [str(number) for number in range(2, 60)]}, directory=tmp_path)
    assert json.loads(path.read_text()) == {"0": list(range(2, 52))}
    assert score_rankings([path], data).methods["predictions"]["all"].values["mAP@5"].tolist() == [1.0]
    shutil.rmtree(tmp_path / "circo" / "COCO2017_unlabeled" / "annotations")  # the folder says it too
    assert read_benchmark("circo", tmp_path / "circo").images == data.images


def test_fashioniq_protocols(tmp_path):
    make_fashioniq(tmp_path)
    by_name = {name: read_benchmark(name, tmp_path) for name in BENCHMARKS if name.startswith("fashioniq")}
    sizes = {name: len(data.parts[0].gallery_ids) for name, data in by_name.items()}
    assert sizes == {"fashioniq": 60, "fashioniq-joined": 60, "fashioniq-union": 2, "fashioniq-union-joined": 2}
    averaged, joined = (by_name[name].parts[0].queries[0] for name in ("fashioniq", "fashioniq-joined"))
    assert averaged["query_text"] == "is red and has  no sleeves"
    assert averaged["other_texts"] == ["has  no sleeves and is red"]
    assert joined["query_text"] == "has  no sleeves and is red." and joined["other_texts"] == []
    assert averaged["reference_id"] == "DRESS0"  # FashionIQ's "candidate"
    only = read_benchmark("fashioniq", tmp_path, part_names=["shirt"])
    assert [part.name for part in only.parts] == ["shirt"] and len(only.images) == 60


def test_missing_images_are_named_or_left_out(tmp_path, caplog):
    make_cirr(tmp_path)
    (tmp_path / "dev" / "dev-3-0-img0.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 60 images of CIRR .*dev-3-0-img0.png"):
        read_benchmark("cirr", tmp_path)
    data = read_benchmark("cirr", tmp_path, allow_missing=True)
    assert data.missing_ids == ["dev-3-0-img0"] and data.num_dropped_queries == 2  # a reference, and the one target
    assert "1 of 60 images" in caplog.text and "2 queries are left out" in caplog.text
    assert all("dev-3-0-img0" not in query["subset_ids"] for query in data.parts[0].queries)
    shutil.rmtree(tmp_path / "dev")
    with pytest.raises(FileNotFoundError, match="no query is left"):
        read_benchmark("cirr", tmp_path, allow_missing=True)


def damage(path, change):
    value = json.loads(path.read_text())
    changed = change(value)
    path.write_text(json.dumps(value if changed is None else changed))


CAPTIONS, SPLIT = Path("cirr/captions/cap.rc2.val.json"), Path("cirr/image_splits/split.rc2.val.json")


@pytest.mark.parametrize(
    ("path", "change", "words"),
    [
        (
            CAPTIONS,
            lambda value: value[3].__delitem__("caption"),
            r"cap.rc2.val.json, entry 3, but found the keys \['pairid'",
        ),
        (CAPTIONS, lambda value: value[3].update(pairid="103"), r"types \{'pairid': 'int'\}.*entry 3"),
        (CAPTIONS, lambda value: value[3].update(pairid=100), "entry 3.*'100'.*entry 0"),
        (
            CAPTIONS,
            lambda value: (value[3].update(target_hard="x"), value[3]["img_set"]["members"].append("x"))[0],
            "target 'x' .*entry 3",
        ),
        (CAPTIONS, lambda value: value[3]["img_set"]["members"].append("x"), "member 'x'"),
        (CAPTIONS, lambda value: value[3].update(target_hard="x"), "the target among them.*entry 3"),
        (
            CAPTIONS,
            lambda value: value[3]["img_set"]["members"].append("dev-4-0-img0"),
            "each member once.*entry 3",
        ),
        (CAPTIONS, lambda value: value[3]["img_set"].update(members=["dev-4-0-img0"]), "3 members or more.*entry 3"),
        (CAPTIONS, lambda value: value[3].update(reference="x"), "reference 'x'"),
        (CAPTIONS, lambda value: value[3].update(img_set={}), "img_set with the list 'members'.*entry 3"),
        (CAPTIONS, lambda value: {"old": value}, "a list .* an object"),
        (CAPTIONS, lambda value: [], "empty"),
        (CAPTIONS, lambda value: [1, 2], "entry 0, but found 1"),
        (SPLIT, list, "an object .* a list"),
        (SPLIT, lambda value: value.update(x=1), "entry 'x', but found 1"),
    ],
)
def test_damaged_files_are_one_error_with_file_and_entry(tmp_path, path, change, words):
    make_cirr(tmp_path)
    damage(tmp_path / path, change)
    with pytest.raises(ValueError, match=words) as caught:
        read_benchmark("cirr", tmp_path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "change", "words"),
    [
        ("annotations/val.json", lambda value: value[0].update(gt_img_ids=[]), "among gt_img_ids.*val.json, entry 0"),
        ("annotations/val.json", lambda value: value[0].update(gt_img_ids=[2, 2]), "each once.*val.json, entry 0"),
        (
            "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json",
            lambda value: value["images"][5].pop("id"),
            "unlabeled2017.json, entry 5 of 'images'",
        ),
    ],
)
def test_damaged_files_of_circo(tmp_path, path, change, words):
    make_circo(tmp_path)
    value = json.loads((tmp_path / path).read_text())
    change(value)
    (tmp_path / path).write_text(json.dumps(value))
    with pytest.raises(ValueError, match=words):
        read_benchmark("circo", tmp_path)


def test_circo_pictures_alone_and_other_files_beside_them(tmp_path):
    make_circo(tmp_path)
    coco = tmp_path / "COCO2017_unlabeled"
    (coco / "annotations" / "image_info_unlabeled2017.json").unlink()
    (coco / "unlabeled2017" / "._000000000001.jpg").write_bytes(b"")
    assert len(read_benchmark("circo", tmp_path).parts[0].gallery_ids) == 60


def test_an_image_that_stands_twice_in_the_split(tmp_path):
    path = make_cirr(tmp_path) / SPLIT
    path.write_text(path.read_text().replace("{", '{"dev-0-0-img0": "./dev/1.png", ', 1))
    with pytest.raises(ValueError, match=r"split.rc2.val.json .*'dev-0-0-img0'.* twice"):
        read_benchmark("cirr", tmp_path)


def test_a_file_cut_in_half_and_another_version(tmp_path):
    path = make_cirr(tmp_path) / CAPTIONS
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cap.rc2.val.json"):
        read_benchmark("cirr", tmp_path)
    path.rename(path.with_name("cap.rc1.val.json"))
    with pytest.raises(FileNotFoundError, match=r"cap.rc2.val.json.*\['cap.rc1.val.json'"):
        read_benchmark("cirr", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("cirrr", "."), ValueError, "'cirrr'.*'cirr'"),
        (("cirr", ".", "test"), ValueError, r"cirr .*'test'.*\['val', 'test1'\]"),
        (("cirr", "nowhere"), FileNotFoundError, "nowhere.*cirr"),
        (("cirr", "."), FileNotFoundError, r"split\.rc2\.val\.json"),
    ],
)
def test_wrong_names(arguments, error, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        read_benchmark(*arguments)


@pytest.fixture
def cirr_answers(tmp_path):
    data = read_benchmark("cirr", make_cirr(tmp_path / "cirr"))
    rankings = {
        query["query_id"]: [id_ for id_ in data.parts[0].gallery_ids if id_ != query["reference_id"]]
        for query in data.parts[0].queries
    }
    subsets = {query["query_id"]: query["subset_ids"] for query in data.parts[0].queries}
    return data, write_submission(data, rankings, subsets, directory=tmp_path / "files")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda value: value.__delitem__("101"), "1 are missing and 0 are unknown, such as '101'"),
        (lambda value: value.update({"7": value["101"]}), "0 are missing and 1 are unknown, such as '7'"),
        (lambda value: value.__delitem__("metric"), "one of the headers"),
        (lambda value: value.update(version="rc1"), "'version': 'rc1'"),
        (lambda value: value["101"].append("x"), "50 ids .*query '101'.* 51"),
        (lambda value: value["101"].__setitem__(0, value["101"][1]), "each id once .*query '101'"),
        (lambda value: value["101"].__setitem__(49, "dev-1-0-img0"), "without the reference .*query '101'"),
        (lambda value: value["101"].__setitem__(0, "x"), "gallery .*query '101'.*'x'"),
        (lambda value: value["101"].__setitem__(0, 5), "ids of type str"),
        (lambda value: value.update({"101": "abc"}), "a list of ids"),
        (lambda value: [value], "an object"),
        (lambda value: value.update(version="rc2", note="x" * 5_000_000), "5,000,000"),
    ],
)
def test_broken_submissions_name_file_and_query(cirr_answers, change, words):
    data, (path, _) = cirr_answers
    damage(path, change)
    with pytest.raises(ValueError, match=words) as caught:
        read_rankings(path, data)
    assert path.name in str(caught.value)


def test_a_key_that_stands_twice_and_a_second_file_of_a_kind(cirr_answers):
    data, (path, subset_path) = cirr_answers
    with pytest.raises(ValueError, match="second file"):
        score_rankings([path, path], data)
    assert list(score_rankings([subset_path], data).methods["predictions"]["all"].values) == [
        "R_subset@1",
        "R_subset@2",
        "R_subset@3",
    ]
    damage(subset_path, lambda value: value["101"].__setitem__(2, "dev-50-0-img0"))
    with pytest.raises(ValueError, match=r"ids of the query's subset .*'dev-50-0-img0'"):
        read_rankings(subset_path, data)
    path.write_text('{"version": "rc2", "metric": "recall", "101": [], "101": []}')
    with pytest.raises(ValueError, match=r"'101'.* twice"):
        read_rankings(path, data)


def test_a_split_without_answers_is_not_scored(tmp_path, cirr_answers):
    _, paths = cirr_answers
    hidden = read_benchmark("cirr", tmp_path / "cirr", "test1")
    with pytest.raises(ValueError, match="test server"):
        score_rankings(paths, hidden)
