"""GeneCIS and Pic2Word's two tasks: small files in the exact layouts of the public repositories."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import NUM_PSEUDO_TOKENS, build_encoder, build_processor, random_picture
from datasets import load_dataset
from PIL import Image

from hycir_hf import HyCIRModel
from hycir_hf.cli.main import main
from hycir_hf.evaluation import BENCHMARKS, BenchmarkPart, ImageRegion, read_benchmark, read_rankings, score_part
from hycir_hf.schemas import GALLERY, QUERY

SCRIPTS = Path(__file__).parents[1] / "dataset_scripts"


def save(seed, path, size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    random_picture(seed, size).save(path, "PNG" if path.suffix.lower() == ".png" else "JPEG")


def show_picture(number):
    return {"val_image_id": number}


def show_object(number):
    return {"image_id": str(number), "instance_bbox": [10, 2, 4, 4], "instance_id": "7", "object_name": "car"}


def make_genecis(root):
    """Two queries a task, each with a gallery of four beside its target."""
    (root / "genecis").mkdir(parents=True)
    for number in range(12):
        save(number, root / "VG_100K_all" / f"{number}.jpg", (20, 12))
        save(number, root / "val2017" / f"{number:012d}.jpg")
    for task in ("focus_attribute", "change_attribute", "focus_object", "change_object"):
        show = show_object if task.endswith("attribute") else show_picture
        samples = [
            {
                "reference": show(query),
                "target": show(query + 1),
                "gallery": [show(query + other) for other in range(2, 6)],
                "condition": "color",
            }
            for query in range(2)
        ]
        (root / "genecis" / f"{task}.json").write_text(json.dumps(samples))
    return root


def make_coco(root):
    """Sixty pictures as `prepare_data.py` lists them, one of them without a region and so without an end of line."""
    lines = ["id,query_regions,query_class,classes"]
    for number in range(1, 61):
        name = f"{number:012d}.jpg"
        save(number, root / "coco" / "val2017" / name)
        save(number, root / "coco" / "val2017_masked" / name)
        lines.append(f"{name},1.5;0.0;5.5;2.9 ,dog,{'' if number == 1 else 'cat;bench'}")
    lines[2] = f"000000000099.jpg,{lines[2]}"
    (root / "coco" / "coco_eval.csv").write_text("\n".join(lines) + "\n")
    return root


def make_imagenet(root):
    """Two photographs; of the second one's class the domain origami has no picture, of the first's sculpture."""
    kinds = [(0, 0), (1, 0), (0, 1), (1, 2), (0, 2), (1, 3)]  # class, domain
    targets, queries = [], []
    for number in range(60):
        label, domain = kinds[number % 6]
        path = f"imgnet/imagenet-r/n{label}/picture_{number}.jpg"
        save(number, root / path)
        targets.append(f"{path} {label + 1000 * domain} ")
    for label in range(2):
        path = f"imgnet/real/n{label}/ILSVRC2012_val_0000000{label}.JPEG"
        save(label, root / path)
        queries.append(f"{path} {label} ")
    for name, lines in (("targets", targets), ("real_query", queries)):
        (root / "imgnet" / f"imgnet_{name}.txt").write_text("\n".join(lines) + "\n")
    return root


MAKERS = {"genecis": make_genecis, "coco": make_coco, "imagenet": make_imagenet}


def test_a_region_is_dilated_to_the_left_and_top_and_padded(tmp_path):
    """GeneCIS's own arithmetic: 0.7 of the size is added before the object, and what fits of it behind."""
    whole = random_picture(0, (20, 12))
    whole.save(tmp_path / "a.png")
    region = ImageRegion(tmp_path / "a.png", (10, 2, 4, 4), 0.7).load()
    expected = whole.crop((7, 0, 14, 7))  # left 10 - 2.8, top 2 - 2.8 < 0, then 1.7 x 4 on
    assert region.size == (7, 7) and np.array_equal(np.asarray(region), np.asarray(expected))
    flat = np.asarray(ImageRegion(tmp_path / "a.png", (0, 0, 8, 4)).load())
    assert flat.shape == (8, 8, 3) and not flat[:2].any() and not flat[-2:].any()
    assert np.array_equal(flat[2:6], np.asarray(whole)[:4, :8])
    stretched = np.asarray(ImageRegion(tmp_path / "a.png", (0, 0, 8, 4), pads=False).load())
    assert stretched.shape == (8, 8, 3) and stretched[:2].any()


def test_genecis_queries_have_galleries_of_their_own(tmp_path):
    data = read_benchmark("genecis", make_genecis(tmp_path))
    attribute, *_, thing = data.parts
    assert [part.name for part in data.parts] == [
        "focus_attribute",
        "change_attribute",
        "focus_object",
        "change_object",
    ]
    query = attribute.queries[0]
    assert query["reference_id"] == "vg/0@10,2,4,4" and query["subset_ids"][0] == query["target_ids"][0]
    assert len(query["subset_ids"]) == 5 and query["query_text"] == "color"
    assert isinstance(data.images["vg/0@10,2,4,4"], ImageRegion)
    assert thing.queries[1]["target_ids"] == ["coco/000000000002"]


def test_coco_asks_by_a_region_for_the_whole_picture(tmp_path):
    data = read_benchmark("coco", make_coco(tmp_path))
    (part,) = data.parts
    first, second = part.queries[:2]
    assert first["query_text"] == "dog and " and second["query_text"] == "dog and cat and bench"
    assert second["target_ids"] == ["000000000002.jpg"] and second["reference_id"] == "region/000000000002.jpg"
    assert data.images["region/000000000002.jpg"].box == (1, 0, 4, 2)
    assert len(part.gallery_ids) == 60 and "000000000099.jpg" not in part.gallery_ids


def test_imagenet_targets_are_class_and_domain(tmp_path):
    data = read_benchmark("imagenet", make_imagenet(tmp_path))
    assert [part.name for part in data.parts] == ["cartoon", "origami", "toy", "sculpture"]
    counts = [[len(query["target_ids"]) for query in part.queries] for part in data.parts]
    assert counts == [[10, 10], [10, 0], [10, 10], [0, 10]] and data.has_targets
    assert data.parts[0].queries[0]["query_text"] == "a cartoon of"


def test_the_share_found_counts_queries_without_targets_as_nothing():
    queries = [
        {"query_id": "a", "rule": "", "target_ids": ["t", "u", "v", "w"]},
        {"query_id": "b", "rule": "", "target_ids": []},
    ]
    rows = [["t", *(f"x{number}" for number in range(20)), "u", *(f"y{number}" for number in range(40))]] * 2
    scores = score_part(BENCHMARKS["imagenet"], BenchmarkPart("toy", queries, []), rows)
    assert scores.values["share@10"].tolist() == [0.25, 0] and scores.values["share@50"].tolist() == [0.5, 0]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    HyCIRModel.from_encoder(build_encoder("clip"), NUM_PSEUDO_TOKENS).save_pretrained(path)
    build_processor().save_pretrained(path)
    return str(path)


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("genecis", "| method | R_subset@1 | R_subset@2 | R_subset@3 |"),
        ("coco", "| method | R@1 | R@5 | R@10 | R@50 |"),
        ("imagenet", "| method | share@10 | share@50 |"),
    ],
)
def test_a_model_is_evaluated_and_its_files_score_the_same(name, columns, model_path, tmp_path, capsys):
    root = MAKERS[name](tmp_path / "data")
    command = ["evaluate", "run", "--model", model_path, "--benchmark", name, "--data", str(root)]
    results = tmp_path / "results.json"
    extra = ["--submission", str(tmp_path / "files"), "--html", str(tmp_path / "page.html")]
    assert main([*command, "--output", str(results), *extra]) == 0
    assert columns in capsys.readouterr().out and (tmp_path / "page.html").stat().st_size > 10_000
    (path,) = (tmp_path / "files").iterdir()
    again = tmp_path / "again.json"
    command = ["evaluate", "score", str(path), "--benchmark", name, "--data", str(root)]
    assert main([*command, "--output", str(again)]) == 0
    assert (
        json.loads(again.read_text())["results"]["predictions"] == json.loads(results.read_text())["results"]["mapper"]
    )


@pytest.mark.parametrize(
    ("name", "num_queries", "num_pictures"), [("genecis", 8, 28), ("coco", 60, 60), ("imagenet", 8, 240)]
)
def test_official_folders_become_data_sets(name, num_queries, num_pictures, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    root = MAKERS[name](tmp_path / "official")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", str(root), "--output", str(tmp_path / "out")])
    runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
    queries, gallery = (
        load_dataset(str(tmp_path / "out"), config, cache_dir=str(tmp_path))["val"] for config in ("queries", "gallery")
    )
    assert set(QUERY) <= set(queries.column_names)
    assert set(GALLERY) <= set(gallery.column_names)
    assert (len(queries), len(gallery)) == (num_queries, num_pictures)
    ids = set(gallery["image_id"])
    if name != "genecis":
        references = load_dataset(str(tmp_path / "out"), "references", cache_dir=str(tmp_path))["val"]
        assert set(queries["reference_id"]) == set(references["image_id"])
        assert isinstance(references[0]["image"], Image.Image)
    assert {id_ for row in queries["target_ids"] for id_ in row} <= ids


@pytest.mark.parametrize(
    ("name", "place", "change", "words"),
    [
        ("genecis", "genecis/focus_object.json", ('"val_image_id": 3', '"image_id": 3'), "images with id and box"),
        ("genecis", "genecis/change_attribute.json", ('"condition"', '"text"'), "'condition': 'str'"),
        ("genecis", "genecis/focus_attribute.json", ("[10, 2, 4, 4]", "[10, 2]"), "images with id and box"),
        ("coco", "coco/coco_eval.csv", ("query_class", "class"), "the columns"),
        ("coco", "coco/coco_eval.csv", ("1.5;0.0;5.5;2.9", "1.5;0.0"), "x1;y1;x2;y2"),
        ("coco", "coco/coco_eval.csv", ("5.5;2.9", "5.5;wide"), "a region in numbers"),
        ("imagenet", "imgnet/imgnet_targets.txt", ("_3.jpg 2001", "_3.jpg"), "entry 3, but found"),
        ("imagenet", "imgnet/imgnet_targets.txt", ("_3.jpg", "_1.jpg"), "each image once"),
    ],
)
def test_damaged_files_are_one_error_with_file_and_entry(name, place, change, words, tmp_path):
    root = MAKERS[name](tmp_path)
    path = root / place
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(ValueError, match=words) as caught:
        read_benchmark(name, root)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("genecis", "VG_100K_all/3.jpg"),
        ("coco", "coco/val2017_masked/000000000003.jpg"),
        ("imagenet", "imgnet/imagenet-r/n1/picture_3.jpg"),
    ],
)
def test_missing_images_are_named_or_left_out(name, place, tmp_path):
    root = MAKERS[name](tmp_path)
    (root / place).unlink()
    with pytest.raises(FileNotFoundError, match=Path(place).name):
        read_benchmark(name, root)
    data = read_benchmark(name, root, allow_missing=True)
    assert len(data.missing_ids) == 1 and all(part.queries for part in data.parts)


def test_genecis_rankings_are_checked(tmp_path):
    data = read_benchmark("genecis", make_genecis(tmp_path), with_images=False)
    rankings = {query["query_id"]: query["subset_ids"][:3] for part in data.parts for query in part.queries}
    path = tmp_path / "genecis.json"
    path.write_text(json.dumps(rankings))
    assert len(read_rankings(path, data)[1]) == 8
    path.write_text(json.dumps(rankings | {"focus_object-0": ["coco/000000000009", *rankings["focus_object-0"][:2]]}))
    with pytest.raises(ValueError, match=r"ids of the query's subset .*'focus_object-0'"):
        read_rankings(path, data)
