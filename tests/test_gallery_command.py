"""`hycir index` and `hycir gallery` on a folder of odd files, and a gallery that moves with its model and images."""

import json
import shutil
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import build_model, build_processor, random_picture
from safetensors import safe_open

from hycir_hf import Gallery, ImageRetriever
from hycir_hf.cli import main
from hycir_hf.images import FeatureStore


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("work") / "model"
    build_model().save_pretrained(path)
    build_processor().save_pretrained(path)
    return path


@pytest.fixture
def work(model_folder, tmp_path):
    """A folder with model, photos and gallery; two photos cannot be read."""
    shutil.copytree(model_folder, tmp_path / "work" / "model")
    photos = tmp_path / "work" / "photos"
    (photos / "2024").mkdir(parents=True)
    for number in range(4):
        random_picture(number).save(photos / ("2024" if number % 2 else "") / f"{number}.png")
    (photos / "broken.jpg").write_bytes(b"broken")
    (photos / "logo.svg").write_text("<svg/>")
    (photos / "raw.CR2").write_bytes(b"raw")
    assert main(index(tmp_path / "work")) == 0
    return tmp_path / "work"


def index(work, *options):
    return [
        *("index", str(work / "photos"), "--model", str(work / "model"), "--output", str(work / "gallery")),
        *options,
    ]


def run_json(capsys, *words, status=0):
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == status
    return json.loads(capsys.readouterr().out)


def ids_of(work):
    return Gallery.load(work / "gallery").ids


def test_index_tells_what_became_of_the_images(work, tmp_path, capsys):
    photos = work / "photos"
    random_picture(9).save(photos / "new.png")
    random_picture(8, size=(30, 30)).save(photos / "0.png")
    (photos / "2.png").unlink()
    listed = tmp_path / "skipped.tsv"
    found = run_json(capsys, *index(work, "--strict", "--skipped", str(listed)), status=3)
    assert [found[name] for name in ("added", "changed", "removed", "kept")] == [1, 1, 1, 2]
    assert {one["image_id"] for one in found["skipped"]} == {"broken.jpg", "logo.svg", "raw.CR2"}
    rows = dict(line.split("\t") for line in listed.read_text().splitlines())
    assert set(rows) == {"broken.jpg", "logo.svg", "raw.CR2"} and "RAW" in rows["raw.CR2"]
    assert main(index(work)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "0 added, 0 changed, 0 removed, 4 kept, 3 skipped" in lines
    assert sum("logo.svg" in line for line in lines) == 1


def test_many_unread_files_are_one_line(work, capsys):
    for number in range(30):
        (work / "photos" / f"{number}.nef").write_bytes(b"raw")
    capsys.readouterr()
    main(index(work))
    captured = capsys.readouterr()
    assert sum(".nef" in line for line in captured.out.splitlines()) == 1 and "skipped 31" in captured.out
    assert ".nef" not in captured.err


def test_without_skipped_images_strict_is_done(work, capsys):
    for name in ("broken.jpg", "logo.svg", "raw.CR2"):
        (work / "photos" / name).unlink()
    assert main(index(work, "--strict")) == 0


def test_images_from_elsewhere_are_added_and_found(work, tmp_path, capsys):
    more = tmp_path / "more"
    (more / "deep").mkdir(parents=True)
    random_picture(20).save(more / "0.png")
    random_picture(21).save(more / "deep" / "1.png")
    (more / "drawing.svg").write_text("<svg/>")
    random_picture(22).save(tmp_path / "single.png")
    random_picture(23).save(work / "photos" / "2024" / "late.png")  # inside the indexed folder
    added = run_json(capsys, "gallery", "add", work / "gallery", more, work / "photos" / "2024")
    assert (added["added"], added["kept"], added["encoded"]) == (3, 4, 3)
    assert [one["image_id"] for one in added["skipped"]] == ["more/drawing.svg"]
    assert {"more/0.png", "more/deep/1.png", "2024/late.png"} < set(ids_of(work))
    one = run_json(capsys, "gallery", "add", work / "gallery", tmp_path / "single.png", "--strict")
    single = f"{tmp_path.name}/single.png"
    assert one["added"] == 1 and single in ids_of(work)
    again = run_json(capsys, "gallery", "add", work / "gallery", more)
    assert (again["added"], again["encoded"], again["kept"]) == (0, 0, 8)
    # Each one is found as a reference by its id and by its path, and the features are there for training.
    retriever = ImageRetriever.load(work / "gallery")
    for reference in ("more/deep/1.png", str(more / "0.png"), single, "2024/1.png"):
        assert len(retriever.search(reference, k=20)[0]) == 7
    assert FeatureStore.open(work / "gallery").ids == retriever.gallery.ids
    back = run_json(capsys, *index(work))
    assert back["removed"] == 3 and set(ids_of(work)) == {"0.png", "2.png", "2024/1.png", "2024/3.png", "2024/late.png"}


def test_a_changed_image_is_encoded_again(work, tmp_path, capsys):
    random_picture(30, size=(9, 9)).save(work / "photos" / "2.png")
    found = run_json(capsys, "gallery", "add", work / "gallery", work / "photos" / "2.png")
    assert (found["changed"], found["added"], found["kept"]) == (1, 0, 3)
    retriever = ImageRetriever.load(work / "gallery")
    features = retriever.encode(images=[random_picture(30, size=(9, 9))])
    assert retriever.gallery.search(features, k=1).ids == [["2.png"]]


def test_images_are_added_to_a_gallery_of_a_dataset(work, tmp_path, capsys):
    rows = {"image_id": ["007", "b"], "image": [(work / "photos" / name).read_bytes() for name in ("0.png", "2.png")]}
    pq.write_table(pa.table(rows), work / "data.parquet")
    command = ["index", str(work / "data.parquet"), "--model", str(work / "model"), "--output", str(tmp_path / "g")]
    assert main(command) == 0
    run_json(capsys, "gallery", "add", tmp_path / "g", work / "photos" / "2024")
    retriever = ImageRetriever.load(tmp_path / "g")
    assert retriever.gallery.ids == ["007", "b", "2024/1.png", "2024/3.png"]
    for reference in ("007", "2024/3.png"):
        assert len(retriever.search(reference, k=9)[0]) == 3


def test_shards_that_are_cut_are_skipped_with_status_3(work, tmp_path, capsys):
    for number in range(2):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            for name in ("0.png", "2.png"):
                tar.add(work / "photos" / name, f"{number}{name}")
    whole = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(whole[: len(whole) // 4])
    command = ["index", str(tmp_path / "0.tar"), str(tmp_path / "1.tar"), "--model", str(work / "model")]
    found = run_json(capsys, *command, "--output", tmp_path / "g", "--strict", status=3)
    assert found["count"] >= 2 and any("1.tar" in one["image_id"] for one in found["skipped"])


def test_folders_of_one_name_stay_apart(work, tmp_path, capsys):
    for place in ("a", "b"):
        (tmp_path / place / "new").mkdir(parents=True)
        random_picture(len(place)).save(tmp_path / place / "new" / "0.png")
        run_json(capsys, "gallery", "add", work / "gallery", tmp_path / place / "new")
    assert {"new/0.png", "b/new/0.png"} < set(ids_of(work))


@pytest.mark.parametrize("name", ["nowhere", "photos/logo.svg", "photos/raw.CR2"])
def test_what_is_no_image_is_not_added(name, work, capsys):
    assert main(["gallery", "add", str(work / "gallery"), str(work / name)]) == 1
    assert name in capsys.readouterr().err and len(ids_of(work)) == 4


def test_removed_images_are_gone_from_index_and_features(work, capsys):
    found = run_json(capsys, "gallery", "remove", work / "gallery", "2.png", "2024/1.png")
    assert found["count"] == 2 and ids_of(work) == ["0.png", "2024/3.png"]
    assert FeatureStore.open(work / "gallery").ids == ["0.png", "2024/3.png"]
    assert main(["gallery", "remove", str(work / "gallery"), "0.png", "gone.png"]) in (1, 2)
    assert "gone.png" in capsys.readouterr().err and len(ids_of(work)) == 2
    assert run_json(capsys, *index(work))["added"] == 2


def test_list_and_info(work, capsys):
    assert run_json(capsys, "gallery", "list", work / "gallery", "--contains", "2024/")["ids"] == [
        "2024/1.png",
        "2024/3.png",
    ]
    found = run_json(capsys, "gallery", "info", work / "gallery")
    assert found["count"] == 4 and found["images_found"] and found["model"] == str(work / "model")
    shutil.move(work / "photos", work / "moved")
    assert not run_json(capsys, "gallery", "info", work / "gallery")["images_found"]
    assert run_json(capsys, "gallery", "info", work / "gallery", "--images", work / "moved")["images_found"]


@pytest.mark.parametrize("index_type", ["flat", "ivf_pq", "hnsw"])
def test_export_in_three_forms(work, tmp_path, capsys, index_type):
    if index_type != "ivf_pq":  # which needs more images: its features come from the folder
        main(index(work, "--index-type", index_type))
    for suffix in ("npz", "parquet", "safetensors"):
        run_json(capsys, "gallery", "export", work / "gallery", tmp_path / f"out.{suffix}")
    with np.load(tmp_path / "out.npz") as stored:
        ids, features = stored["ids"].tolist(), stored["features"]
    assert ids == ids_of(work)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["image_id"].to_pylist() == ids and np.array_equal(np.stack(table["features"].to_pylist()), features)
    with safe_open(tmp_path / "out.safetensors", "np") as file:
        assert json.loads(file.metadata()["ids"]) == ids and np.array_equal(file.get_tensor("features"), features)
    np.testing.assert_allclose(Gallery.load(work / "gallery").features(), features, atol=1e-6)
    assert main(["gallery", "export", str(work / "gallery"), "out.txt"]) == 2


def test_a_folder_with_all_of_it_can_be_copied(work, tmp_path, capsys):
    """Into a container: the model and the images are found beside the gallery, though the old ones are gone."""
    shutil.copytree(work, tmp_path / "container")
    shutil.rmtree(work)
    found = run_json(capsys, "search", tmp_path / "container" / "gallery", "--image", "0.png", "--text", "red")
    assert len(found["results"]) == 3
    manifest = json.loads((tmp_path / "container" / "gallery" / "manifest.json").read_text())
    assert manifest["model_relative"] == "../model" and manifest["source"]["relative"] == "../photos"


def test_images_that_have_moved(work, tmp_path, capsys):
    shutil.move(work / "photos", tmp_path / "elsewhere")
    command = ["search", str(work / "gallery"), "--image", "0.png", "--text", "red"]
    assert main(command) == 1
    assert "photos" in capsys.readouterr().err
    page = tmp_path / "found.html"
    assert main([*command, "--images", str(tmp_path / "elsewhere"), "--html", str(page)]) == 0
    assert page.read_text().count("data:image") >= 4
    assert main([*command, "--images", str(tmp_path / "nowhere")]) == 2
    assert "--images" in capsys.readouterr().err
    # A path in the new place is known to be in the gallery.
    path = str(tmp_path / "elsewhere" / "0.png")
    found = run_json(capsys, "search", work / "gallery", "--image", path, "--images", tmp_path / "elsewhere")
    assert found["excluded"] == ["0.png"]
