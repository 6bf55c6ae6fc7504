"""Your own benchmark: tables of queries in every form, their mistakes, and all that built-in benchmarks have."""

import csv
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import NUM_PSEUDO_TOKENS, build_encoder, build_processor, random_picture
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from test_cli import failing, read_page
from test_evaluation_files import make_cirr
from test_syncir_pipeline import Echo, models

from hycir_hf import HyCIRModel
from hycir_hf.cli.main import main
from hycir_hf.evaluation import (
    Benchmark,
    BenchmarkData,
    BenchmarkPart,
    EvaluationResults,
    compare_results,
    draft_queries,
    evaluate_benchmark,
    read_benchmark,
    read_table,
    write_table,
)
from hycir_hf.images import FeatureEncoder
from hycir_hf.reports.cards import ModelCardFacts
from hycir_hf.syncir import run as pipeline_module

ROWS = [
    {"reference_id": "00.png", "query_text": "make it night", "target_ids": ["01.png"]},
    {"reference_id": ["02.png", "03.png"], "query_text": "red, and blue", "target_ids": ["04.png", "05.png"]},
    {"reference_id": "06.png", "query_text": 'a "big" dog', "target_ids": ["07.png"]},
]
CSV = """\
reference_id,query_text,target_ids
00.png,make it night,01.png
02.png | 03.png,"red, and blue",04.png|05.png
06.png,"a ""big"" dog",07.png
"""


@pytest.fixture(scope="module")
def tiny():
    return HyCIRModel.from_encoder(build_encoder("clip"), NUM_PSEUDO_TOKENS).eval(), build_processor()


@pytest.fixture(scope="module")
def model_path(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    for part in tiny:
        part.save_pretrained(path)
    return str(path)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def queries_of(data):
    return [
        (q["reference_id"], q.get("further_reference_ids", []), q["query_text"], q["target_ids"]) for q in all_of(data)
    ]


def all_of(data):
    return [query for part in data.parts for query in part.queries]


def mistakes(table, images, **options):
    with pytest.raises(ValueError, match=r".") as caught:
        read_table(table, images, **options)
    return str(caught.value)


def test_every_form_of_the_table_says_the_same(place, picture_folder):
    tables = [
        ROWS,
        write(place / "a.csv", CSV),
        write(place / "b.csv", CSV, "utf-8-sig"),
        write(place / "c.CSV", CSV.replace("\n", "\r\n")),
        write(place / "d.csv", CSV.replace(",", ";").replace("red; and", "red, and")),
        write(place / "e.tsv", CSV.replace(",", "\t").replace("red\t and", "red, and")),
        write(place / "f.txt", CSV.replace(",", "\t").replace("red\t and", "red, and"), "utf-16"),
        write(
            place / "g.csv",
            CSV.replace("reference_id,", " Reference_IDs ,note,").replace("png,", 'png,"1,2",', 1) + ",,\n\n",
        ),
        write(place / "h.jsonl", "\n\n".join(map(json.dumps, ROWS)), "utf-8-sig"),
        write(place / "i.csv", CSV.replace("02.png | 03.png", '"[""02.png"", ""03.png""]"')),
    ]
    tables[7].write_text(
        "note, Reference_IDs ,query_text,target_id\n,00.png,make it night,01.png\n,,,\n\n"
        'x,02.png|03.png,"red, and blue",04.png|05.png\n,06.png,"a ""big"" dog",07.png\n'
    )
    quoted = '"reference_id","query_text","target_ids"\n'
    tables.append(write(place / "k.csv", "\ufeff" + CSV.replace(CSV.split("\n")[0] + "\n", quoted), "utf-8-sig"))
    tables.append(pd.DataFrame(ROWS))
    rows = [row | {"reference_id": np.atleast_1d(row["reference_id"]).tolist()} for row in ROWS]
    pq.write_table(pa.Table.from_pylist(rows), place / "j.parquet")
    found = [read_table(table, picture_folder) for table in [*tables, place / "j.parquet"]]
    assert queries_of(found[0])[1] == ("02.png", ["03.png"], "red, and blue", ["04.png", "05.png"])
    assert [queries_of(data) for data in found] == [queries_of(found[0])] * len(found)
    assert found[1].benchmark.name == "a" and list(found[1].images) == found[1].parts[0].gallery_ids
    assert [query["query_id"] for query in all_of(found[1])] == ["2", "3", "4"]  # as a spreadsheet counts
    assert [query["query_id"] for query in all_of(found[7])] == ["2", "5", "6"]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_ids_stay_texts(place, suffix):
    ids = ["007", "2024-01-05", "1e5", "TRUE", "3.10", "null"]
    row = {"query_id": "0042", "reference_id": ids[0], "query_text": "7", "target_ids": ids[1:]}
    path = place / f"queries.{suffix}"
    if suffix == "csv":
        path.write_text(f"query_id,reference_id,query_text,target_ids\n0042,007,7,{'|'.join(ids[1:])}\n")
    elif suffix == "jsonl":
        path.write_text(json.dumps(row))
    else:
        pq.write_table(pa.Table.from_pylist([row]), path)
    (query,) = all_of(read_table(path, {id_: random_picture(0) for id_ in ids}))
    assert (query["query_id"], query["reference_id"], query["target_ids"]) == ("0042", "007", ids[1:])


def test_optional_columns(picture_folder):
    rows = [
        {**ROWS[0], "part": "one", "subset_ids": "01.png|02.png|03.png|04.png", "group": "g", "negative_ids": "09.png"},
        {**ROWS[2], "part": "two", "subset_ids": "07.png|08.png|09.png", "group": None, "query_id": 5},
    ]
    data = read_table(rows, picture_folder)
    assert [part.name for part in data.parts] == ["one", "two"] and data.benchmark.averages_parts
    assert data.benchmark.subset_ranks == (1, 2) and data.benchmark.hard_negative_rank == 10
    assert data.benchmark.ranks == (1, 5, 10)  # 19 images are ranked
    assert data.parts[1].query_ids == ["5"] and data.parts[0].queries[0]["hard_negative_ids"] == ["09.png"]
    assert [part.name for part in read_table(rows, picture_folder, part_names=["two"]).parts] == ["two"]
    assert read_table(rows, picture_folder, ranks=[2, 3], metric="mAP").benchmark.ranks == (2, 3)


HEAD = "query_id,reference_id,query_text,target_ids,negative_ids\n"


def test_all_mistakes_are_said_at_once_with_row_and_id(place, picture_folder):
    table = write(
        place / "queries.csv",
        HEAD
        + "a,00.png,red,01.png,\n"
        + "b,0.png,red,01.png,\n"
        + "a,00.png,red,02.png,\n"
        + "c,00.png,,00.png|01.png|01.png,\n"
        + "d,02.png,red,02.png,\n"
        + "e,02.png,red,,03.png\n"
        + "f,,red,03.png,03.png\n",
    )
    said = mistakes(table, picture_folder)
    assert "queries.csv, row 3 (query 'b')" in said and "'0.png'" in said and "did you mean '00.png'" in said
    assert "row 4 (query 'a')" in said and "row 2" in said
    assert "row 5 (query 'c'): query_text" in said and "target_ids names '01.png' twice" in said
    assert "row 6 (query 'd'): the target '02.png'" in said
    assert "row 7 (query 'e'): target_ids" in said and "row 8 (query 'f'): reference_id" in said
    for meant in ("sub/00.png", "0", "00.PNG", "C:\\\\photos\\\\00"):
        assert "did you mean '00.png'" in mistakes([ROWS[0] | {"reference_id": meant}], picture_folder)
    many = write(place / "queries-many.csv", HEAD + "".join(f"q{n},x{n},red,01.png,\n" for n in range(30)))
    assert "30 mistakes" in mistakes(many, picture_folder) and "and 20 more" in mistakes(many, picture_folder)


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("reference_id,query_text\n00.png,red\n", ["no column target_ids"]),
        ("reference_id,query_text,target_ids,negatives_ids\n00.png,red,01.png,\n", ["negatives_ids", "negative_ids"]),
        ("reference_id,query_text,target_ids,target_id\n00.png,red,01.png,01.png\n", ["two columns target_ids"]),
        ("reference_id,query_text,query_text,target_ids\n00.png,red,red,01.png\n", ["'query_text' twice"]),
        ("reference_id,query_text,target_ids\n00.png,red, or blue,01.png\n", ["row 2", "4 cells"]),
        ('reference_id,query_text,target_ids\n00.png,"red,01.png\n', ["row 2", "queries.csv"]),
        ('reference_id,query_text,target_ids\n00.png,"red" hat,01.png\n', ["row 2", "quotes"]),
        ("reference_id,query_text,target_ids\n00.png,a,01.png;02.png\n", ["|", "01.png;02.png"]),
        ("reference_id,query_text,target_ids\n", ["no rows"]),
        ("", ["no rows"]),
        ("reference_id,query_text,target_ids,subset_ids\n00.png,a,01.png,01.png|02.png\n01.png,b,02.png,\n", ["row 3"]),
        ("reference_id,query_text,target_ids,part\n00.png,a,01.png,average\n", ["'average'"]),
        ("reference_id,query_text,target_ids,negative_ids\n00.png,a,01.png,01.png\n", ["'01.png'", "negative_ids"]),
    ],
)
def test_tables_that_are_wrong(place, picture_folder, text, facts):
    said = mistakes(write(place / "queries.csv", text), picture_folder)
    assert all(fact in said for fact in facts) and said.count("no column") <= 1


def test_files_that_are_no_tables(place, picture_folder):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        read_table("nowhere.csv", picture_folder)
    assert ".csv" in mistakes(write(place / "queries.xlsx", "PK"), picture_folder)
    (place / "queries.csv").write_bytes(CSV.replace("night", "nächt").encode("latin-1"))
    assert "UTF-8" in mistakes("queries.csv", picture_folder)
    assert "row 2" in mistakes(write(place / "queries.jsonl", json.dumps(ROWS[0]) + "\n{"), picture_folder)
    assert "row 1" in mistakes(write(place / "queries.jsonl", "[1]"), picture_folder)
    assert "Parquet" in mistakes(write(place / "queries.parquet", "PAR"), picture_folder)
    for value in (1.5, True, {"a": 1}, [None]):
        said = mistakes([ROWS[0] | {"target_ids": value}], picture_folder)
        assert "row 1" in said and "target_ids" in said
    for ranks in ([], [0], ["1"], [True]):
        assert "ranks" in mistakes(ROWS, picture_folder, ranks=ranks)
    assert "no rows" in mistakes([], picture_folder)
    separator = write(place / "queries.jsonl", json.dumps(ROWS[0] | {"query_text": "a\u2028b"}, ensure_ascii=False))
    assert all_of(read_table(separator, picture_folder))[0]["query_text"] == "a\u2028b"
    assert "21" in mistakes([ROWS[0]], picture_folder, ranks=[21])
    assert "'R@5'" in mistakes([ROWS[0]], picture_folder, metric="R@5")


def test_your_own_benchmark_object_needs_no_registration(tiny):
    """Missing columns have defaults, and what is wrong is said before the model is used."""
    images = {f"i{number}": random_picture(number) for number in range(8)}
    queries = [
        {"reference_id": "i0", "query_text": "make it night", "target_ids": ["i1"]},
        {"reference_id": ["i2", "i3"], "query_text": "red", "target_ids": ["i4"], "negative_ids": ["i5"]},
    ]
    own = Benchmark("mine", "Mine", "mAP", (1, 5), leaves_reference_out=True, averages_parts=True)
    parts = [BenchmarkPart("one", queries, list(images)), BenchmarkPart("two", queries[:1], list(images))]
    found = evaluate_benchmark(*tiny, BenchmarkData(own, "all", parts, images))
    assert found.results is not None
    assert found.results.intervals()["mapper"]["average"]["mAP@5"].mean <= 1
    assert "Mine" in EvaluationResults.title.fget(found.results)
    ids = found.rankings["slerp"]["one"].ids
    assert not {"i2", "i3"} & set(ids[1]) and len(ids[1]) == 5
    wrong = [queries[0] | {"target_ids": ["i9"]}, queries[1] | {"query_text": None}, queries[0] | {"target_ids": "i1"}]
    with pytest.raises(ValueError, match="Mine has") as caught:
        evaluate_benchmark(None, None, BenchmarkData(own, "all", [BenchmarkPart("one", wrong, list(images))], images))
    assert all(fact in str(caught.value) for fact in ("query '0'", "'i9'", "query '1'", "query_text", "query '2'"))
    for ranks, gallery, fact in (((9,), list(images), "9"), ((1,), [], "gallery"), ((0,), list(images), "ranks")):
        bad = Benchmark("mine", "Mine", "R", ranks)
        with pytest.raises(ValueError, match=fact):
            evaluate_benchmark(None, None, BenchmarkData(bad, "all", [BenchmarkPart("p", queries, gallery)], images))


def test_queries_of_several_shapes_are_answered_as_each_alone(tiny, picture_folder):
    together = evaluate_benchmark(*tiny, read_table(ROWS, picture_folder)).rankings
    for number, row in enumerate(ROWS):
        alone = evaluate_benchmark(*tiny, read_table([row], picture_folder, ranks=[1, 5, 10])).rankings
        assert all(together[name]["all"].ids[number] == alone[name]["all"].ids[0] for name in alone)


def test_a_table_of_cirr_has_cirrs_figures(tiny, place):
    """The package's own rows are a table too; every query has the value that the built-in benchmark gives it."""
    data = read_benchmark("cirr", make_cirr(place))
    table = read_table([dict(query) for query in data.parts[0].queries], data.images)
    own, built_in = (evaluate_benchmark(*tiny, one).results.methods["mapper"]["all"].values for one in (table, data))
    assert all(own[name].tolist() == built_in[name].tolist() for name in own) and len(own) == 7


def test_groups_are_resampled_together(tiny, picture_folder):
    rows = [row | {"group": "g" if number < 2 else ""} for number, row in enumerate(ROWS)]
    results = evaluate_benchmark(*tiny, read_table(rows, picture_folder)).results
    groups = results.methods["mapper"]["all"].groups
    assert groups[0] == groups[1] != groups[2]


def test_results_of_other_questions_are_not_compared(tiny, picture_folder):
    changed = [ROWS[0] | {"query_text": "make it day"}, *ROWS[1:]]
    one, two = (evaluate_benchmark(*tiny, read_table(rows, picture_folder)).results for rows in (ROWS, changed))
    assert compare_results(one, one, "mapper", "slerp")
    with pytest.raises(ValueError, match=r"'all'.*texts"):
        compare_results(one, two, "mapper", "mapper")
    numbered = [row | {"query_id": str(number)} for number, row in enumerate(ROWS)]
    images = {f"{number:02d}.png": random_picture(number) for number in range(20)}
    base, turned, grouped, other, kept = (
        evaluate_benchmark(*tiny, read_table(rows, pictures, ranks=[1], leaves_reference_out=leaves_out)).results
        for rows, pictures, leaves_out in (
            (numbered, images, True),
            (numbered[::-1], dict(reversed(images.items())), True),
            ([row | {"group": "g"} for row in numbered], images, True),
            (numbered, {"x" if id_ == "19.png" else id_: image for id_, image in images.items()}, True),
            (numbered, images, False),
        )
    )
    assert compare_results(base, turned, "slerp", "slerp")[0].difference.mean == 0
    assert compare_results(base, grouped, "slerp", "slerp")
    for wrong, fact in ((other, "gallery"), (kept, "reference")):
        with pytest.raises(ValueError, match=fact):
            compare_results(base, wrong, "mapper", "mapper")


def test_the_gallery_is_a_folder_a_gallery_or_a_dataset(place, tiny, model_path, picture_folder):
    (place / "some").mkdir()
    for number in range(12):
        random_picture(number).save(place / "some" / f"{number:02d}.png")
    assert main(["index", "some", "--model", model_path, "--output", "gallery"]) == 0
    random_picture(99).save(place / "some" / "99.png")  # not in the gallery
    features = Features({"image_id": Value("string"), "image": ImageFeature()})
    columns = {"image_id": [f"{n:02d}.png" for n in range(12)], "image": [random_picture(n) for n in range(12)]}
    Dataset.from_dict(columns, features=features).to_parquet(place / "images.parquet")
    rankings = []
    for images in ("gallery", "images.parquet", {f"{n:02d}.png": place / "some" / f"{n:02d}.png" for n in range(12)}):
        data = read_table(ROWS, images)
        assert len(data.images) == 12
        rankings.append(evaluate_benchmark(*tiny, data, features_directory="features").rankings["mapper"]["all"].ids)
    assert rankings[0] == rankings[1] == rankings[2]
    for number in range(4, 12):
        (place / "some" / f"{number:02d}.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"8 of 12 .*04\.png"):
        read_table(ROWS, "gallery")


def test_a_gallery_of_the_same_encoder_is_not_encoded_again(gallery, tiny, place, monkeypatch):
    encoded = []
    encode = FeatureEncoder.encode
    monkeypatch.setattr(FeatureEncoder, "encode", lambda self, batch: encoded.extend(batch) or encode(self, batch))
    for directory in (None, "features"):
        found = evaluate_benchmark(*tiny, read_table(ROWS, gallery), features_directory=directory)
    assert not encoded and found.rankings
    other = HyCIRModel.from_encoder(build_encoder("clip", seed=1), NUM_PSEUDO_TOKENS).eval()
    evaluate_benchmark(other, tiny[1], read_table(ROWS, gallery))
    assert len(encoded) == 20


def test_missing_images_of_a_table_are_left_out_where_that_is_allowed(picture_folder):
    rows = [
        ROWS[0] | {"target_ids": ["01.png", "nowhere.png"], "negative_ids": ["gone.png"]},
        ROWS[2] | {"target_ids": ["nowhere.png"]},
    ]
    assert "'gone.png'" in mistakes(rows, picture_folder)
    data = read_table(rows, picture_folder, allow_missing=True)
    assert data.missing_ids == ["gone.png", "nowhere.png"] and data.num_dropped_queries == 1
    (query,) = all_of(data)
    assert (query["target_ids"], query["hard_negative_ids"]) == (["01.png"], [])
    paths = {f"{number:02d}.png": str(picture_folder / f"{number:02d}.png") for number in range(19)}
    with pytest.raises(FileNotFoundError, match=r"x\.png"):
        read_table(ROWS, paths | {"x": "x.png"})


@pytest.fixture
def photos(place):
    """Sixty pictures, of which one is broken, and a table that also names one that is not there."""
    (place / "photos").mkdir()
    for number in range(60):
        random_picture(number).save(place / "photos" / f"{number:02d}.png")
    (place / "photos" / "50.png").write_bytes((place / "photos" / "51.png").read_bytes()[:200])
    write(
        place / "queries.csv",
        "reference_id;query_text;target_ids;subset_ids;negative_ids;part\n"
        "00.png;make it night;01.png;01.png|02.png|03.png|04.png;05.png;inside\n"
        "02.png|03.png;red;04.png|50.png;04.png|05.png|06.png|07.png;;inside\n"
        "50.png;blue;06.png;06.png|07.png|08.png|09.png;;outside\n"
        "08.png;green;09.png;09.png|10.png|11.png|12.png;;outside\n"
        "10.png;green;nowhere.png;09.png|11.png|12.png|nowhere.png;;outside\n",
    )
    return ["--benchmark", "table", "--queries", "queries.csv", "--images", "photos"]


def test_a_table_has_all_that_built_in_benchmarks_have(photos, place, model_path, capsys):
    """Missing and broken images, table, page, results, card, rankings that score the same, and comparison."""
    run = ["evaluate", "run", "--model", model_path, *photos]
    assert "row 6" in failing(run, capsys)
    (place / "queries.csv").write_text((place / "queries.csv").read_text().replace("nowhere.png", "13.png"))
    assert main(run) == 1
    assert "50.png" in capsys.readouterr().err.splitlines()[-1]
    assert main([*run, "--allow-missing", "--output", f"{model_path}/results.json", "--html", "page.html"]) == 0
    text = capsys.readouterr().out
    assert "| method | R@1 | R@5 | R@10 | R@50 | R_subset@1 | R_subset@2 | R_subset@3 | HN@10 |" in text
    assert "1 images" in text and "queries table, average" in text and "| slerp |" in text
    saved = EvaluationResults.load(f"{model_path}/results.json")
    assert (saved.benchmark, saved.split, saved.provenance["data"]["missing_images"]) == ("queries", "table", 1)
    assert saved.provenance["data"]["queries"] == {"inside": 2, "outside": 2}
    assert read_page((place / "page.html").read_text(encoding="utf-8")).images
    card = ModelCardFacts.from_folder(model_path, "me/model").render()
    assert "queries, inside" in card
    random_picture(50).save(place / "photos" / "50.png")
    assert main([*run, "--submission", "files", "--output", "whole.json"]) == 0
    whole = EvaluationResults.load("whole.json")
    files = ["files/rankings.json", "files/rankings_subset.json"]
    for further in ([], ["--images", "photos"]):
        score = ["evaluate", "score", *files, "--benchmark", "table", "--queries", "queries.csv", *further]
        assert main([*score, "--output", "scored.json"]) == 0
        assert EvaluationResults.load("scored.json").intervals()["predictions"] == whole.intervals()["mapper"]
    assert main(["evaluate", "compare", "whole.json", "scored.json"]) == 0
    assert "average R@1" in capsys.readouterr().out
    assert "different" in failing(["evaluate", "compare", "whole.json", f"{model_path}/results.json"], capsys)
    assert main([*run, "--part", "inside", "--metric", "mAP", "--ranks", "2", "60", "--keep-reference", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert list(printed["results"]["mapper"]["inside"]) == [
        "mAP@2",
        "mAP@60",
        *(f"R_subset@{k}" for k in (1, 2, 3)),
        "HN@10",
    ]


def test_longer_rankings_are_cut_and_shorter_ones_refused(photos, place, capsys):
    ids = [f"{number:02d}.png" for number in range(20, 60)]
    table = place / "own.csv"
    write(table, "query_id,reference_id,query_text,target_ids\nq,00.png,red,22.png\n")
    (place / "theirs.json").write_text(json.dumps({"q": ids}))
    score = ["evaluate", "score", "theirs.json", "--benchmark", "table", "--queries", "own.csv", "--json"]
    assert main([*score, "--ranks", "1", "3"]) == 0
    assert json.loads(capsys.readouterr().out)["results"]["predictions"]["all"]["R@3"]["mean"] == 1
    said = failing(score, capsys)
    assert "50" in said and "'q'" in said
    (place / "theirs.json").write_text(json.dumps({"q": ["x", *ids]}))
    assert "'x'" in failing([*score, "--ranks", "1", "--images", "photos"], capsys)


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["--benchmark", "table", "--queries", "queries.csv"], "--images"),
        (["--benchmark", "table", "--images", "photos"], "--queries"),
        (["--benchmark", "tables", "--queries", "queries.csv"], "--queries"),
        (["--benchmark", "cirr", "--data", ".", "--images", "photos"], "--images"),
        (["--benchmark", "cirr"], "--data"),
        (["--benchmark", "tables", "--data", "."], "'table'"),
        (["--benchmark", "table", "--queries", "queries.csv", "--images", "photos", "--data", "."], "--data"),
        (["--benchmark", "table", "--queries", "queries.csv", "--images", "photos", "--part", "x"], "--part"),
    ],
)
def test_options_that_do_not_go_together(photos, arguments, flag, capsys):
    assert main(["evaluate", "run", "--model", "m", *arguments]) == 2
    assert flag in capsys.readouterr().err


def test_broken_images_of_built_in_benchmarks_are_left_out_too(tiny, place, model_path, capsys):
    make_cirr(place / "cirr")
    (place / "cirr" / "dev" / "dev-3-0-img0.png").write_bytes(b"broken")
    data = read_benchmark("cirr", place / "cirr")
    with pytest.raises(ValueError, match=r"1 of 60 .*dev-3-0-img0\.png"):
        evaluate_benchmark(*tiny, data)
    found = evaluate_benchmark(*tiny, data, allow_missing=True)
    assert found.data.missing_ids == ["dev-3-0-img0"] and found.data.num_dropped_queries == 2
    assert found.results.provenance["data"]["missing_images"] == 1
    run = ["evaluate", "run", "--model", model_path, "--benchmark", "cirr", "--data", "cirr"]
    assert main([*run, "--allow-missing"]) == 0 and "1 images" in capsys.readouterr().out
    assert main([*run, "--allow-missing", "--submission", "files"]) == 2
    assert not (place / "files").exists()


# --- drafts -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def gallery(place, model_path, picture_folder):
    assert main(["index", str(picture_folder), "--model", model_path, "--output", "gallery"]) == 0
    return "gallery"


def test_a_draft_from_triplets_is_a_table_that_runs(gallery, place, model_path, syncir_folder, capsys):
    make = ["benchmark", "make", gallery, "--output", "queries.csv", "--triplets", str(syncir_folder)]
    assert main([*make, "--n", "6", "--html", "queries.html", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["queries"] == 6
    assert len(read_page((place / "queries.html").read_text(encoding="utf-8")).images) == 12
    run = ["evaluate", "run", "--model", model_path, "--benchmark", "table", "--queries", "queries.csv"]
    assert main([*run, "--images", gallery]) == 0
    data = read_table("queries.csv", gallery)
    triplets = {(f"{n:02d}.png", f"{(n + 1) % 20:02d}.png") for n in range(20)}
    assert {(query["reference_id"], *query["target_ids"]) for query in all_of(data)} <= triplets
    capsys.readouterr()
    assert "queries.csv" in failing(make, capsys)  # corrections are never overwritten
    other = [*make[:4], "all.csv", *make[5:]]
    assert main(other) == 0 and "200" in capsys.readouterr().out  # there are only 20
    assert main([*make[:4], "new.csv", *make[5:], "--llm", "m"]) == 2
    assert main([*make[:4], "new.xlsx", *make[5:]]) == 2


def test_a_draft_by_syncir(gallery, place, monkeypatch, picture_folder, capsys):
    monkeypatch.setattr(pipeline_module, "SynCirModels", lambda: models(Echo()))
    make = ["benchmark", "make", gallery, "--n", "5", "--output", "queries.csv", "--num-workers", "0"]
    assert main([*make, "--threshold", "0.1", "--llm", "m"]) == 0
    assert len(all_of(read_table("queries.csv", picture_folder))) == 5
    recipe = json.loads((place / "queries-triplets" / "recipe.json").read_text())
    assert recipe["counts"]["pairs_drawn"] == 10 and recipe["settings"]["store_images"] == "reference"
    make[make.index("queries.csv")] = "none.csv"
    assert main([*make, "--threshold", "1", "--llm", "m"]) == 1
    assert "none-triplets" in capsys.readouterr().err.splitlines()[-1] and not (place / "none.csv").exists()


def test_references_and_targets_differ_as_long_as_there_are_enough():
    triplets = [{"reference_id": f"r{n % 3}", "target_id": f"t{n % 4}", "query_text": str(n)} for n in range(12)]
    ids = [f"{side}{n}" for side in "rt" for n in range(4)]
    few = draft_queries(triplets, ids, 2, seed=1)
    assert len({row["reference_id"][0] for row in few}) == len({row["target_ids"][0] for row in few}) == 2
    assert len(draft_queries(triplets, ids, 50)) == 12
    assert {row["reference_id"][0] for row in draft_queries(triplets, ["r0", *ids[4:]], 50)} == {"r0"}
    with pytest.raises(ValueError, match="12"):
        draft_queries(triplets, ["x"], 5)
    with pytest.raises(ValueError, match="query_text"):
        draft_queries([{"reference_id": "r0", "target_id": "t0"}], ids, 5)


def test_a_spreadsheet_shows_every_cell_of_a_draft_as_it_is(place):
    """Ids that it would change are JSON lists, and no cell is a formula."""
    ids = [
        "007",
        "2024-01-05",
        "=1+1.png",
        "a, b;c.jpg",
        "x|y.png",
        "[1].png",
        " z.png",
        "sub/cat 1.jpeg",
        "ü.png",
        "1e5",
    ]
    texts = ["=cmd", "+1 hat", "-hat", "@home", 'say "hi"', "two\nlines", "plain"]
    triplets = [
        {"reference_id": id_, "target_id": ids[n - 1], "query_text": texts[n % 7], "similarity": 0.5}
        for n, id_ in enumerate(ids)
    ]
    write_table(draft_queries(triplets, ids, 99), "queries.csv")
    read = all_of(read_table("queries.csv", dict.fromkeys(ids)))
    assert [(q["reference_id"], q["query_text"], *q["target_ids"]) for q in read] == [
        (t["reference_id"], t["query_text"], t["target_id"]) for t in triplets
    ]
    rows = list(csv.reader((place / "queries.csv").read_text(encoding="utf-8-sig").splitlines(keepends=True)))
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row)
    assert rows[8][1] == "sub/cat 1.jpeg" and rows[1][1] == '["007"]' and rows[2][1] == '["2024-01-05"]'
