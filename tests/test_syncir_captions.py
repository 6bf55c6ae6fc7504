"""Captions that are there already: files in four forms, metadata beside the images, a column; checked at once."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import random_picture
from datasets import load_dataset
from test_syncir_pipeline import Echo, embed_images, embed_sentences

from hycir_hf.cli import main
from hycir_hf.images import FolderSource, open_source
from hycir_hf.syncir import SynCirConfig, SynCirModels, build_triplets
from hycir_hf.syncir.captions import read_captions

IDS = ["01.png", "02.png", "sub/03.png"]
TEXTS = ["007", "2024-01-01", 'a dog, "big", NA']


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    for number, id_ in enumerate(IDS):
        random_picture(number).save(tmp_path / "photos" / id_)
    return tmp_path / "photos"


def write(path, ids=IDS, texts=TEXTS, names=("file_name", "caption")):
    rows = [dict(zip(names, row, strict=True)) for row in zip(ids, texts, strict=True)]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, names, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def read(photos, captions=None, column=None):
    return read_captions(FolderSource(photos), captions and str(captions), column)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("names", [("file_name", "caption"), ("image_id", "text"), ("filename", "said")])
def test_a_file_of_captions(suffix, names, photos, tmp_path):
    path = write(tmp_path / f"captions.{suffix}", names=names)
    given = read(photos, path, "said" if "said" in names else None)
    assert given.texts == TEXTS and f"captions.{suffix}" in given.origin and names[1] in given.origin


def test_a_table_of_another_country(photos, tmp_path):
    """Semicolons, backslashes, a leading ./ and rows of other images."""
    path = tmp_path / "c.csv"
    path.write_text("image;caption\nsub\\03.png;c\n./02.png;b, too\n01.png;a\nother.png;d\n")
    assert read(photos, path).texts == ["a", "b, too", "c"]


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
def test_metadata_beside_the_images(name, photos):
    """The form of ImageFolder; in a subfolder too."""
    assert read(photos) is None
    write(photos / name, IDS[:2], TEXTS[:2], ("file_name", "text"))
    write(photos / "sub" / name, ["03.png"], TEXTS[2:], ("file_name", "text"))
    assert open_source(str(photos)).ids == IDS  # it stays a folder of images
    assert read(photos).texts == TEXTS and read(photos, column="text").texts == TEXTS
    assert read(photos, "model") is None


def test_metadata_without_captions_is_none(photos):
    write(photos / "metadata.csv", names=("file_name", "label"))
    assert read(photos) is None
    assert read(photos, column="label").texts == TEXTS


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ("file_name,caption\n01.png,a\n02.png,b\n", "1 of the 3 images.*sub/03.png"),
        ("file_name,caption\n1,a\n2,b\n3,c\n", "3 of the 3 images.*01.png.*'1'"),
        ("file_name,caption\n01.png,a\n02.png, \nsub/03.png,c\n", "Row 1 .*caption"),
        ("file_name,caption\n01.png,a\n01.png,b\n02.png,b\nsub/03.png,c\n", "two captions.*01.png"),
        ("file_name,caption\n01.png,a, b\n", "Row 1 .*3 fields"),
        ("name,caption\n01.png,a\n", "file_name"),
        ("file_name,words\n01.png,a\n", "caption.*words"),
    ],
)
def test_what_is_wrong_is_said(content, facts, photos, tmp_path):
    path = tmp_path / "c.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=facts):
        read(photos, path)


@pytest.mark.parametrize(
    ("row", "facts"),
    [
        ('{"file_name": "02.png", "caption": null}', "Row 1 .*None"),
        ('{"file_name": null, "caption": "b"}', "Row 1 .*file_name"),
        ('{"file_name": "02.png", "caption": " "}', "Row 1 .*caption"),
        ('{"file_name": "02.png", "caption": ["b"]}', "Row 1 .*caption"),
        ('{"file_name": "02.png"}', "Row 1 .*None"),
        ('{"file_name": ', r"Line 2 .*c\.jsonl"),
        ('["02.png", "b"]', r"Row 2 .*c\.jsonl"),
    ],
)
def test_a_bad_row_of_json_lines(row, facts, photos, tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text('{"file_name": "01.png", "caption": "a"}\n' + row + "\n")
    with pytest.raises(ValueError, match=facts):
        read(photos, path)


def test_a_run_with_captions_from_a_file(tmp_path, capsys):
    """The captioner is never asked; other captions make other triplets; a missing one stops before all else."""
    photos = tmp_path / "photos"
    photos.mkdir()
    ids = [f"{number:02d}.png" for number in range(30)]
    for number, id_ in enumerate(ids):
        random_picture(number, size=(8, 8)).save(photos / id_)
    models = SynCirModels(embed_images, None, Echo(), embed_sentences)
    texts = [f"a thing {number} in red" for number in range(30)]
    path = write(tmp_path / "captions.csv", ids, texts)

    def run(config):
        return build_triplets(photos, tmp_path / "out", config, models, progress=False)

    config = SynCirConfig(captions=str(path), threshold=-1, max_similarity=0.999, captioner="/nowhere")
    recipe = run(config)
    stored = load_dataset("parquet", data_files=str(tmp_path / "out" / "images" / "*.parquet"), split="train")
    assert stored["caption"][:] == texts and "captions.csv" in recipe["captions_by"]
    write(path, ids, [*texts[:-1], "another text"])
    assert run(config)["key"] != recipe["key"]
    write(path, ids[1:], texts[1:])
    command = ["syncir", "estimate", str(photos), "--output", str(tmp_path / "no"), "--captions", str(path)]
    assert main(command) == 1
    assert "00.png" in capsys.readouterr().err and not (tmp_path / "no").exists()
