import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from children import exit_status, start
from conftest import build_model, build_processor
from datasets import Dataset, Features, Image, Value, load_dataset
from fake_llm import FakeLLM, answer_to
from PIL import Image as PILImage

from hycir_hf.cli.main import main
from hycir_hf.images import FolderSource
from hycir_hf.syncir import (
    Answer,
    ChatGenerator,
    ComposedCheck,
    PictureCheck,
    SynCirConfig,
    SynCirModels,
    SynCirRun,
    build_triplets,
    preview_triplets,
    refilter,
)
from hycir_hf.syncir import preview as preview_module
from hycir_hf.syncir import run as pipeline_module
from hycir_hf.syncir import scoring as scoring_module
from hycir_hf.syncir.llm import chat as chat_module
from hycir_hf.syncir.llm.answers import make_question
from hycir_hf.syncir.models import load_generator
from hycir_hf.syncir.query_texts import QUERY_TEXT_FORMAT

COLOURS = ("red", "green", "blue", "grey", "dark", "light")
NUM_IMAGES = 30


def picture(number):
    values = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return PILImage.fromarray(values)


def embed_images(images):
    pixels = np.stack([np.asarray(image.resize((8, 8)), dtype=np.float32).reshape(-1) / 255 for image in images])
    return pixels @ np.random.default_rng(0).normal(size=(192, 16)).astype(np.float32)


def caption(images):
    digests = [hashlib.sha256(image.tobytes()).digest() for image in images]
    return [f"a {COLOURS[d[0] % 6]} thing on {d[1] % 3}" for d in digests]


def embed_sentences(texts):
    words = [[np.random.default_rng(sum(word.encode())).normal(size=12) for word in text.split()] for text in texts]
    return np.stack([np.mean(word, axis=0) for word in words]).astype(np.float32)


class Echo:
    """Answers in the process, and counts what it is asked."""

    name, parameters, pool_size = "echo", {}, 1

    def __init__(self):
        self.asked = Counter()

    def __call__(self, questions):
        for question in questions:
            self.asked[question.key] += 1
            yield question, Answer(answer_to(question.messages), 10, 3)


@pytest.fixture
def small_blocks(monkeypatch):
    _make_small_blocks(monkeypatch.setattr)


def _make_small_blocks(set_attribute):
    set_attribute(scoring_module, "_TEXT_BLOCK", 16)
    set_attribute(chat_module, "_FIRST_DELAY", 0.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for number in range(NUM_IMAGES):
        picture(number).save(root / f"{number:02d}.png")
    return root


def models(generate=None, checks=()):
    return SynCirModels(embed_images, caption, generate or Echo(), embed_sentences, list(checks))


def config(**settings):
    return SynCirConfig(**{"threshold": 0.5, "num_workers": 0, "batch_size": 2, "llm": "m", **settings})


def run(images, output, generate=None, checks=(), **settings):
    return build_triplets(images, output, config(**settings), models(generate, checks), progress=False)


def contents(output):
    files = sorted(path for path in Path(output).rglob("*") if path.is_file() and ".work" not in path.parts)
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in files}


# --- the data set -----------------------------------------------------------------------------------------------------


def test_images_become_a_data_set_of_triplets(folder, tmp_path, small_blocks):
    recipe = run(folder, tmp_path)
    counts = recipe["counts"]
    triplets = load_dataset(str(tmp_path), "triplets", split="train")
    dropped = load_dataset(str(tmp_path), "dropped", split="train")
    images = load_dataset(str(tmp_path), "images", split="train")
    assert counts["images"] == len(images) == NUM_IMAGES and counts["groups"] > NUM_IMAGES / 2
    assert counts["kept"] == len(triplets) > 0 and len(triplets) + len(dropped) == counts["pairs"]
    assert sorted([*triplets["triplet_id"], *dropped["triplet_id"]]) == list(range(counts["pairs"]))
    captions = dict(zip(images["image_id"], images["caption"], strict=True))
    for row in triplets:
        assert captions[row["reference_id"]] == row["reference_caption"] != row["target_caption"]
        assert captions[row["target_id"]] == row["target_caption"]
        assert row["query_text"] == row["answer"].removeprefix("Instruction: ") and row["similarity"] >= 0.5
    assert set(dropped["reason"]) == {"equal_captions", "low_similarity"}
    for row in dropped:
        has_score = row["reason"] == "low_similarity"
        assert row["detail"] == (f"{row['similarity']:.4f} < 0.5" if has_score else "")
    streamed = list(load_dataset(str(tmp_path), "triplets", split="train", streaming=True))
    assert streamed == list(triplets)


def test_each_picture_is_stored_once_and_as_it_was(folder, tmp_path, small_blocks):
    run(folder, tmp_path)
    images = load_dataset(str(tmp_path), "images", split="train").cast_column("image", Image(decode=False))
    assert images[3]["image"]["bytes"] == (folder / images[3]["image_id"]).read_bytes()
    assert images["image_id"] == sorted(path.name for path in folder.iterdir())


def test_pictures_may_stay_where_they_are(folder, tmp_path, small_blocks):
    run(folder, tmp_path, store_images="reference")
    assert pq.read_schema(tmp_path / "images/part-00000.parquet").names == ["image_id", "caption"]
    assert folder.name in (tmp_path / "README.md").read_text()


def test_a_broken_picture_is_left_out_and_counted(folder, tmp_path, small_blocks):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in folder.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "00.png").write_bytes(b"no picture")
    recipe = run(broken, tmp_path / "out")
    assert recipe["counts"]["unreadable_images"] == 1
    assert "00.png" not in load_dataset(str(tmp_path / "out"), "images", split="train")["image_id"]
    recipe = build_triplets(broken, tmp_path / "workers", config(num_workers=2), models(), progress=False)
    assert recipe["counts"]["unreadable_images"] == 1


def test_equal_captions_cost_no_call_and_equal_questions_are_asked_once(folder, tmp_path, small_blocks):
    generate = Echo()
    recipe = run(folder, tmp_path, generate)
    rows = (
        pq.read_table(tmp_path / "triplets.parquet").to_pylist()
        + pq.read_table(tmp_path / "dropped.parquet").to_pylist()
    )
    different = {
        (r["reference_caption"], r["target_caption"]) for r in rows if r["reference_caption"] != r["target_caption"]
    }
    assert len(generate.asked) == len(different) == recipe["counts"]["questions"] < recipe["counts"]["pairs"]
    assert set(generate.asked.values()) == {1}


def test_a_random_part_of_the_pairs_is_enough_for_a_try(folder, tmp_path, small_blocks):
    run(folder, tmp_path / "all", threshold=-1)
    recipe = run(folder, tmp_path / "part", threshold=-1, max_pairs=20)
    pairs = [
        {
            (row["reference_id"], row["target_id"])
            for row in pq.read_table(tmp_path / name / "triplets.parquet").to_pylist()
        }
        for name in ("all", "part")
    ]
    assert pairs[1] < pairs[0] and recipe["counts"]["pairs_drawn"] == 20 < recipe["counts"]["pairs"]


def test_captions_may_come_from_a_column(folder, tmp_path, small_blocks):
    rows = [{"image_id": p.name, "image": {"bytes": p.read_bytes(), "path": None}} for p in sorted(folder.iterdir())]
    features = Features({"image_id": Value("string"), "image": Image(), "said": Value("string")})
    said = [f"thing {number} in red" for number in range(len(rows))]
    Dataset.from_list([{**r, "said": s} for r, s in zip(rows, said, strict=True)], features=features).to_parquet(
        tmp_path / "data.parquet"
    )
    recipe = run(str(tmp_path / "data.parquet"), tmp_path / "out", caption_column="said")
    assert load_dataset(str(tmp_path / "out"), "images", split="train")["caption"][:] == said
    assert recipe["captions_by"] == "the column `said`"
    with pytest.raises(ValueError, match="caption_column"):
        run(folder, tmp_path / "no", caption_column="said")
    with pytest.raises(ValueError, match="column 'other'"):
        run(str(tmp_path / "data.parquet"), tmp_path / "no", caption_column="other")


def test_too_few_similar_images_stop_before_anything_is_paid(folder, tmp_path, small_blocks):
    generate = Echo()
    few = tmp_path / "few"
    few.mkdir()
    for number in range(4):
        picture(number).save(few / f"{number}.png")
    with pytest.raises(ValueError, match=r"4 images .*6 .*group_size"):
        run(few, tmp_path / "out", generate)
    for number in range(20):
        picture(0).save(few / f"{number}.png")
    with pytest.raises(ValueError, match=r"20 images .*group_size"):
        run(few, tmp_path / "out", generate)
    assert not generate.asked


def test_a_vision_model_sees_the_pictures(folder, tmp_path, small_blocks):
    with FakeLLM() as server:
        recipe = run(folder, tmp_path, ChatGenerator("m", server.url), prompt="vision")
        content = server.requests[0]["messages"][-1]["content"]
    assert content[0]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert recipe["counts"]["answered"] == recipe["counts"]["questions"]


# --- resuming ---------------------------------------------------------------------------------------------------------


def test_a_finished_data_set_is_left_as_it_is(folder, tmp_path, small_blocks):
    generate = Echo()
    first = run(folder, tmp_path, generate)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert run(folder, tmp_path, generate) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == stamps


def test_another_threshold_asks_nothing_again(folder, tmp_path, small_blocks):
    generate = Echo()
    run(folder, tmp_path, generate)
    asked = dict(generate.asked)
    assert run(folder, tmp_path, generate, threshold=0.9)["thresholds"] == {"similarity": 0.9}
    assert dict(generate.asked) == asked


def test_a_model_trained_anew_in_its_folder_is_another_model(folder, tmp_path, small_blocks):
    (tmp_path / "captioner").mkdir()
    weights = tmp_path / "captioner" / "model.safetensors"
    captions = []
    for content, threshold in ((b"first", 0.5), (b"first", 0.4), (b"second", 0.5)):
        weights.write_bytes(content)
        given = models()
        given.caption = lambda images, content=content: [f"{text} {content.decode()}" for text in caption(images)]
        build_triplets(
            folder, tmp_path / "out", config(captioner=str(weights.parent), threshold=threshold), given, progress=False
        )
        found = pq.read_table(tmp_path / "out" / "triplets.parquet")["reference_caption"]
        captions.append(found[0].as_py().split()[-1])
    assert captions == ["first", "first", "second"]


def _run_with_server(folder, output, url):
    _make_small_blocks(setattr)
    run(folder, output, ChatGenerator("m", url, concurrency=4))


@pytest.mark.slow
def test_killed_anywhere_it_ends_with_the_same_bytes(folder, tmp_path, small_blocks):
    chance = random.Random(0)
    with FakeLLM(latency=0.01) as server:
        whole = start(_run_with_server, folder, tmp_path / "whole", server.url)
        started = time.monotonic()
        assert exit_status(whole) == 0
        seconds = time.monotonic() - started
        kills = 0
        for output in (tmp_path / "killed a", tmp_path / "killed b"):
            server.answered.clear()
            own_kills = 0
            for _ in range(10):
                child = start(_run_with_server, folder, output, server.url)
                child.join(chance.uniform(0.1, 0.6) * seconds)
                if child.exitcode is not None:
                    break
                child.kill()
                child.join()
                own_kills += 1
            assert exit_status(start(_run_with_server, folder, output, server.url)) == 0
            asked_again = sum(count - 1 for count in server.answered.values())
            assert asked_again <= 4 * own_kills  # at most the calls in flight
            assert contents(tmp_path / "whole") == contents(output)
            kills += own_kills
    assert kills >= 2


def _run_until_move(folder, output, number):
    """Run, and die at the given renaming of a finished file."""
    moves = iter(range(10_000))
    replace = Path.replace

    def die_or_replace(self, target):
        if next(moves) == number:
            os._exit(9)
        return replace(self, target)

    Path.replace = die_or_replace
    _make_small_blocks(setattr)
    run(folder, output)


@pytest.mark.slow
def test_killed_at_any_renaming_it_ends_with_the_same_bytes(folder, tmp_path, small_blocks):
    run(folder, tmp_path / "whole")
    for number in range(100):
        output = tmp_path / str(number)
        status = exit_status(start(_run_until_move, folder, output, number))
        run(folder, output)
        assert contents(output) == contents(tmp_path / "whole")
        if status == 0:
            break
        assert status == 9
    assert number > 10


def test_a_refilter_that_was_killed_resumes(folder, tmp_path, small_blocks, monkeypatch):
    run(folder, tmp_path / "a")
    run(folder, tmp_path / "b", threshold=0.6)
    replace, moved = Path.replace, []

    def die(self, target):
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(target)
        return replace(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", die)
        refilter(tmp_path / "a", {"similarity": 0.6})
    assert not (tmp_path / "a" / "recipe.json").exists()
    assert refilter(tmp_path / "a", {})["thresholds"] == {"similarity": 0.6}
    assert contents(tmp_path / "a")["triplets.parquet"] == contents(tmp_path / "b")["triplets.parquet"]


def test_an_output_of_the_first_edition_is_refused_by_refilter_and_written_anew_by_a_run(
    folder, tmp_path, small_blocks
):
    generate = Echo()
    run(folder, tmp_path, generate)
    written, asked = contents(tmp_path), dict(generate.asked)
    recipe = json.loads(written["recipe.json"])
    del recipe["format"], recipe["format_version"]
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(ValueError, match=r"format.*recipe\.json.*hycir syncir"):
        refilter(tmp_path, {"similarity": 0.6})
    run(folder, tmp_path, generate)
    assert contents(tmp_path) == written and generate.asked == asked


def test_an_image_that_vanishes_before_it_is_stored_is_named(folder, tmp_path, small_blocks, monkeypatch):
    images = shutil.copytree(folder, tmp_path / "images")  # with the same times of change
    run(images, tmp_path / "out")
    source = FolderSource(images)
    (images / "03.png").rename(tmp_path / "03.png")
    monkeypatch.setattr(source, "stamp", lambda row: FolderSource(folder).stamp(row))
    with pytest.raises(ValueError, match=r"03\.png"):
        run(source, tmp_path / "out", threshold=0.6)


def test_two_processes_never_pay_for_one_output(folder, tmp_path, small_blocks):
    class Nested(Echo):
        def __call__(self, questions):
            with pytest.raises(ValueError, match=rf"pid {os.getpid()}\).*{tmp_path.name}"):
                run(folder, tmp_path)
            yield from super().__call__(questions)

    run(folder, tmp_path, Nested())


def test_questions_without_an_answer_are_listed_and_asked_again(folder, tmp_path, small_blocks):
    with FakeLLM(fault_share=0.5, faults=["500"], seed=3) as server:
        generate = ChatGenerator("m", server.url, max_attempts=1, concurrency=2)
        recipe = run(folder, tmp_path, generate)
        counts = recipe["counts"]
        dropped = pq.read_table(tmp_path / "dropped.parquet")
        reasons = list(zip(dropped["reason"].to_pylist(), dropped["detail"].to_pylist(), strict=True))
        assert counts["answered"] < counts["questions"]
        assert any(kind == "no_answer" and "HTTP 500" in detail for kind, detail in reasons)
        server.fault_share = 0.0
        counts = run(folder, tmp_path, generate)["counts"]
        assert counts["answered"] == counts["questions"] and set(server.answered.values()) == {1}


# --- shards and stages ------------------------------------------------------------------------------------------------


def test_shards_give_the_same_bytes_as_one_process(folder, tmp_path, small_blocks):
    run(folder, tmp_path / "one")
    generate = Echo()
    sharded = lambda: SynCirRun(folder, tmp_path / "shards", config(), models(generate), progress=False)  # noqa: E731
    with pytest.raises(ValueError, match="'features'"):
        sharded().run("captions", 3, 1)
    for stage in ("features", "pairs", "captions", "query_texts"):
        for shard in range(1 if stage == "pairs" else 3):
            sharded().run(stage, *((1, 0) if stage == "pairs" else (3, shard)))
    assert set(generate.asked.values()) == {1}
    sharded().run()
    assert contents(tmp_path / "one") == contents(tmp_path / "shards")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere",), "until .*'nowhere'"),
        ((None, 2, 0), "until is None"),
        (("pairs", 2, 0), "until is 'pairs'"),
        (("features", 2, 2), "shard_index"),
    ],
)
def test_wrong_shards(folder, tmp_path, arguments, words):
    with pytest.raises(ValueError, match=words):
        SynCirRun(folder, tmp_path, config(), models()).run(*arguments)


@pytest.mark.slow
def test_accelerate_launch_shares_the_stages(folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_syncir_pipeline import config, models\n"
        "from hycir_hf.syncir import SynCirRun\n"
        "from hycir_hf.syncir.launch import run_launched\n"
        f"run = SynCirRun({str(folder)!r}, {str(tmp_path / 'two')!r}, config(), models(), progress=False)\n"
        "run_launched(run, None, 1, 0)\n"
    )
    run(folder, tmp_path / "one")
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", str(script)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_the_estimate_counts_before_anything_is_paid(folder, tmp_path, small_blocks):
    generate = Echo()
    before = SynCirRun(folder, tmp_path, config(), models(generate), progress=False).estimate()
    assert not generate.asked and before.answered == 0 and before.questions > 10
    assert before.prompt_tokens > 50 * before.questions and before.cost(1.0, 0.0) == before.prompt_tokens / 1e6
    run(folder, tmp_path, generate)
    after = SynCirRun(folder, tmp_path, config(), models(generate), progress=False).estimate()
    assert (after.questions, after.answered, after.prompt_tokens) == (before.questions, before.questions, 0)


# --- filter, checks, report -------------------------------------------------------------------------------------------


def test_a_refilter_finds_pictures_that_are_not_stored(folder, tmp_path, small_blocks, monkeypatch):
    monkeypatch.chdir(folder.parent)
    run(folder, tmp_path / "out", store_images="reference")
    monkeypatch.chdir(tmp_path)
    refilter(tmp_path / "out", {"similarity": 0.6})
    assert len(list((tmp_path / "out" / "assets").iterdir())) == 12
    assert 'class="missing"' not in (tmp_path / "out" / "report.html").read_text()
    recipe = json.loads((tmp_path / "out" / "recipe.json").read_text())
    recipe["source_record"] |= {"path": "gone", "relative": "gone"}
    (tmp_path / "out" / "recipe.json").write_text(json.dumps(recipe))
    refilter(tmp_path / "out", {"similarity": 0.6})
    assert "<img" not in (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "out" / "report.html").read_text().count('class="missing"') == 80


def test_refilter_equals_a_run_with_that_threshold(folder, tmp_path, small_blocks):
    run(folder, tmp_path / "a")
    run(folder, tmp_path / "b", threshold=0.8)
    recipe = refilter(tmp_path / "a", {"similarity": 0.8})
    a, b = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert recipe["counts"] == json.loads(b["recipe.json"])["counts"]
    assert {name: a[name] for name in ("triplets.parquet", "dropped.parquet")} == {
        name: b[name] for name in ("triplets.parquet", "dropped.parquet")
    }
    refilter(tmp_path / "a", {"similarity": 0.5})
    run(folder, tmp_path / "c")
    assert contents(tmp_path / "a") == contents(tmp_path / "c")


def test_datasets_cache_never_gives_an_older_state(folder, tmp_path, small_blocks):
    first = run(folder, tmp_path / "a" / "same name")
    run(folder, tmp_path / "b" / "same name", threshold=0.7)
    read = lambda part: len(load_dataset(str(tmp_path / part / "same name"), "triplets", split="train"))  # noqa: E731
    assert read("a") == first["counts"]["kept"] > read("b")
    kept = refilter(tmp_path / "a" / "same name", {"similarity": 0.6})["counts"]["kept"]
    assert read("a") == kept < first["counts"]["kept"]


def test_a_filter_that_keeps_all_or_nothing_leaves_a_readable_data_set(folder, tmp_path, small_blocks, caplog):
    run(folder, tmp_path, threshold=1.0)
    assert "similarity" in caplog.text and "low_similarity" in caplog.text  # why, and the highest score
    assert not (tmp_path / "triplets.parquet").exists()
    assert len(load_dataset(str(tmp_path), "dropped", split="train")) > 0
    refilter(tmp_path, {"similarity": 0.5})
    assert len(load_dataset(str(tmp_path), "triplets", split="train")) > 0


@pytest.mark.parametrize(
    ("thresholds", "words"),
    [
        ({"other": 0.5}, "other.*similarity"),
        ({"similarity": 2.0}, r"similarity .*2\.0"),
        ({"similarity": 1.0}, r"low_similarity.*at most 0\.\d{4}"),
    ],
)
def test_refilter_names_what_is_wrong(folder, tmp_path, small_blocks, thresholds, words):
    run(folder, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=words):
        refilter(tmp_path, thresholds)
    assert contents(tmp_path) == before
    with pytest.raises(FileNotFoundError, match=r"images.recipe\.json"):
        refilter(tmp_path / "images", {"similarity": 0.5})


def test_pictures_have_a_say_when_asked(folder, tmp_path, small_blocks):
    model, processor = build_model(), build_processor()
    checks = [ComposedCheck(model, processor, -1.0), PictureCheck(model, processor, -1.0, -1.0)]
    run(folder, tmp_path, checks=checks)
    rows = pq.read_table(tmp_path / "triplets.parquet").to_pylist()
    source = FolderSource(folder)
    row = rows[5]
    reference, target = (source.load(source.ids.index(row[f"{side}_id"])) for side in ("reference", "target"))
    composed = model.get_composed_features(**processor(images=[reference], text=[row["query_text"]]))
    image, other = (model.get_image_features(**processor(images=[p]))[0] for p in (target, reference))
    assert row["composed_similarity"] == pytest.approx(float(composed[0] @ image), abs=1e-5)
    text = model.get_text_features(**processor(text=[row["query_text"]], compose=False))[0]
    assert row["query_gain"] == pytest.approx(float(text @ image - text @ other), abs=1e-5)
    middle = sorted(r["query_gain"] for r in rows)[len(rows) // 2]
    counts = refilter(tmp_path, {"query_gain": middle})["counts"]
    assert 0 < counts["kept"] < len(rows) and counts["dropped"]["low_query_gain"] > 0


def test_card_and_report_say_how_it_was_made(folder, tmp_path, small_blocks):
    recipe = run(folder, tmp_path)
    card = (tmp_path / "README.md").read_text()
    configs = yaml.safe_load(card.split("---")[1])["configs"]
    assert [c["config_name"] for c in configs] == ["triplets", "dropped", "images"] and configs[0]["default"]
    assert f"{recipe['counts']['kept']:,} triplets" in card and "`echo`" in card and "| 0.5 |" in card
    assert len(list((tmp_path / "assets").iterdir())) == 12
    report = (tmp_path / "report.html").read_text()
    assert report.count('class="triplet"') == 40 and "<svg" in report and "threshold 0.5" in report


def test_the_card_says_whose_pictures_and_how_many(folder, tmp_path, small_blocks):
    recipe = run(folder, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["license"] == "other"
    assert f"`{recipe['source']}`. Captions are from" in card
    assert "LLM `echo`" in card
    rows = {name: load_dataset(str(tmp_path / "out"), name, split="train").num_rows for name in ("triplets", "images")}
    assert all(f"| `{name}` | {count:,} |" in card for name, count in rows.items())
    given = "CC BY 4.0, see https://licences.example/by?version=4"
    run(folder, tmp_path / "given", images_license=given)
    assert f"Images: {given}. " in (tmp_path / "given" / "README.md").read_text()
    refilter(tmp_path / "given", {"similarity": 0.6})
    assert f"Images: {given}. " in (tmp_path / "given" / "README.md").read_text()


def test_nothing_that_is_written_names_this_machine_or_a_secret(folder, tmp_path, small_blocks, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with FakeLLM() as server:
        secret = server.url.replace("//", "//user:password@")
        settings = {"llm": str(tmp_path / "private" / "model"), "base_url": secret, "captioner": str(tmp_path / "blip")}
        run(folder, tmp_path / "out", ChatGenerator(settings["llm"], secret), **settings)
    table = pq.read_table(tmp_path / "out" / "triplets.parquet").to_pylist()
    written = b"".join(contents(tmp_path / "out").values()).decode(errors="replace") + str(table)
    for private in (str(tmp_path), str(folder.parent), "password", "sk-secret"):
        assert private not in written
    assert table[0]["generator"] == "model" and "`blip`" in written


def test_half_a_surrogate_reaches_the_data_set_as_a_mark(folder, tmp_path, small_blocks):
    odd = lambda images: [f"a red \ud800 thing {image.getpixel((0, 0))[0]}" for image in images]  # noqa: E731
    sentences = SynCirModels(embed_images, odd, Echo(), embed_sentences, [])
    recipe = build_triplets(folder, tmp_path / "out", config(threshold=-1), sentences, progress=False)
    assert recipe["counts"]["kept"] > 0


def test_a_file_name_that_is_no_unicode_is_named_first(tmp_path, small_blocks):
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / os.fsdecode(b"\xff.png"))
    with pytest.raises(ValueError, match=r"udcff\.png"):
        run(tmp_path, tmp_path / "out")


def test_html_in_an_answer_stays_text(folder, tmp_path, small_blocks):
    class Evil(Echo):
        def __call__(self, questions):
            for question in questions:
                yield question, Answer("<script>alert(1)</script> | now")

    run(folder, tmp_path, Evil(), threshold=-1)
    assert "<script>" not in (tmp_path / "report.html").read_text()
    assert "<script>" not in (tmp_path / "README.md").read_text()


# --- settings and command line ----------------------------------------------------------------------------------------


def test_settings_come_from_yaml_and_complain_all_at_once(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("threshold: 8e-1\ngroup_size: 5\nbase_url: http://x/v1\n")
    settings = SynCirConfig.from_yaml(path, group_size=4)
    assert (settings.threshold, settings.group_size, settings.base_url) == (0.8, 4, "http://x/v1")
    with pytest.raises(ValueError, match=r"concurrency must be at least 1.*; threshold must be"):
        SynCirConfig(threshold=3, concurrency=0)
    for text, words in (
        ("thershold: 1", "thershold"),
        ("- a", "list"),
        ("a: [", "YAML"),
        ("seed: x", "seed must be .*x"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=words):
            SynCirConfig.from_yaml(path)


def test_examples_replace_the_prompts_own():
    prompt = config(prompt="few_shot", examples=[["a cat", "a dog", "make it a dog"]]).build_prompt()
    assert [turn["content"] for turn in prompt.messages("x", "y")][2] == "make it a dog"
    with pytest.raises(ValueError, match="examples"):
        config(examples=[["a", "b"]])


def test_the_command_runs_estimates_and_refilters(folder, tmp_path, small_blocks, monkeypatch, capsys):
    monkeypatch.setattr(pipeline_module, "SynCirModels", lambda: models(Echo()))
    options = [str(folder), "--output", str(tmp_path / "out"), "--num-workers", "0", "--threshold", "0.5"]
    assert main(["syncir", "estimate", *options, "--prices", "0.5", "1.5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cost"] > 0
    assert main(["syncir", "run", *options]) == 0
    assert "triplets kept" in capsys.readouterr().out
    assert main(["syncir", "refilter", str(tmp_path / "out"), "--threshold", "0.8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["thresholds"] == {"similarity": 0.8}


# --- preview ----------------------------------------------------------------------------------------------------------


def loud_answer(body):
    """A thinking model's answer in JSON; a refusal to one question of three."""
    said = answer_to(body["messages"])
    text = f"<think>{said}</think>```json\n{json.dumps({'instruction': said})}\n```"
    text = "I’m sorry, I can’t help with that." if int(said[-1], 16) % 3 == 0 else text
    message = {"role": "assistant", "content": text}
    return 200, {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {}}


def test_the_preview_shows_what_a_run_will_do_and_asks_nothing_else(folder, tmp_path, small_blocks):
    with FakeLLM() as server:
        server.reply = loud_answer
        given = models(ChatGenerator("m", server.url))
        rows = preview_triplets(folder, config(), given, n=15, output=tmp_path, progress=False)
        assert len(rows) == 15 and 0 < len(server.requests) <= 15
        asked = len(server.requests)
        recipe = build_triplets(folder, tmp_path, config(), given, progress=False)
        assert len(server.requests) == recipe["counts"]["questions"] > asked  # none was asked twice
    parts = [pq.read_table(tmp_path / f"{name}.parquet").to_pylist() for name in ("triplets", "dropped")]
    made = {(row["reference_id"], row["target_id"]): row for part in parts for row in part}
    for row in rows:
        same = made[row["reference_id"], row["target_id"]]
        assert all(row[name] == same[name] for name in ("reference_caption", "answer", "query_text"))
        assert (row["dropped"] is None) == ("reason" not in same)
    assert {"unusable answer: refusal", None} <= {row["dropped"] for row in rows}
    read = [row["query_text"] for row in rows if row["query_text"]]
    assert read and all(text.startswith("make it") for text in read)


def test_the_preview_captions_only_the_images_of_its_pairs(folder, tmp_path, small_blocks):
    captioned = []
    given = models()
    given.caption = lambda images: [captioned.append(text) or text for text in caption(images)]
    rows = preview_triplets(folder, config(), given, n=3, progress=False)
    assert len(captioned) == len({row[side] for row in rows for side in ("reference_id", "target_id")}) <= 6
    few = preview_triplets(folder, config(), models(), n=3, max_images=15, progress=False)
    assert all(row["target_id"] < "15.png" for row in few)


def test_the_preview_prints_each_step_and_no_terminal_codes(folder, small_blocks, monkeypatch, capsys):
    class Loud(Echo):
        def __call__(self, questions):
            for question, answer in super().__call__(questions):
                yield question, Answer(f"<think>\x1b[31m\u202e</think>\n{answer.text}")

    monkeypatch.setattr(preview_module, "SynCirRun", with_models(Loud()))
    command = ["syncir", "preview", str(folder), "--n", "4", "--num-workers", "0", "--threshold", "0.5"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert printed.count("reference ") == printed.count("answer ") == 4 and "make it" in printed
    assert "\\x1b[31m\\u202e" in printed and "\x1b" not in printed and "\u202e" not in printed
    assert main([*command, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 4


def with_models(generate):
    """`SynCirRun` with these tests' models."""

    def make(source, output, settings, given, device, progress):
        return SynCirRun(source, output, settings, models(generate), device, progress)

    return make


# --- the LLM's settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        ({}, {"temperature": 0.0, "max_tokens": 60}),
        ({"temperature": None, "max_tokens": None}, {}),
        ({"llm_parameters": {"temperature": None, "top_p": 0.5}}, {"max_tokens": 60, "top_p": 0.5}),
        ({"llm_parameters": {"max_tokens": None, "max_completion_tokens": 9}},
         {"temperature": 0.0, "max_completion_tokens": 9}),
        ({"llm": "gpt-5", "llm_parameters": {"reasoning_effort": "low"}},
         {"max_completion_tokens": 2060, "reasoning_effort": "low"}),
        ({"structured_output": True, "max_tokens": None, "temperature": None}, {"response_format": QUERY_TEXT_FORMAT}),
        ({"llm_parameters": {"extra_body": {"top_k": 1}}, "temperature": None}, {"max_tokens": 60, "top_k": 1}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("api", ["chat", "batch"])
def test_parameters_are_left_out_added_and_adapted(settings, sent, api):
    with FakeLLM() as server:
        generate = load_generator(config(base_url=server.url, api=api, **settings))
        generate.poll_seconds = 0.01
        list(generate([make_question(generate, [{"role": "user", "content": "Target caption: x"}])]))
        bodies = server.requests or [json.loads(server.files["file-0"])["body"]]
    assert {name: value for name, value in bodies[0].items() if name not in ("model", "messages")} == sent


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"llm_parameters": {"model": "x"}}, "llm_parameters .*model"),
        ({"llm_parameters": {"extra_body": {"stream": True}}}, "llm_parameters .*stream"),
        ({"llm_parameters": {"a": float("nan")}}, "llm_parameters .*JSON"),
        ({"llm_parameters": {"a": {1, 2}}}, "llm_parameters .*JSON"),
        ({"llm_parameters": [1]}, "llm_parameters must be a mapping"),
        ({"llm_parameters": {"extra_body": [1]}}, "extra_body"),
        ({"api": "local", "max_tokens": None}, "max_tokens"),
        ({"api": "local", "structured_output": True}, "structured_output"),
    ],
)
def test_wrong_parameters_are_named_before_anything_is_computed(settings, words):
    with pytest.raises(ValueError, match=words):
        config(**settings)


def test_a_refused_parameter_ends_the_command_with_the_setting(folder, tmp_path, small_blocks, monkeypatch, capsys):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with FakeLLM() as server:
        server.reply = lambda body: (400, {"error": {"message": "Unsupported parameter: 'max_tokens'"}})
        given = SynCirModels(embed_images, caption, None, embed_sentences, [])
        monkeypatch.setattr(pipeline_module, "SynCirModels", lambda: given)
        command = ["syncir", "run", str(folder), "--output", str(tmp_path), "--num-workers", "0", "--llm", "my-gpt"]
        assert main([*command, "--base-url", server.url]) == 2
        assert "--llm-parameters" in capsys.readouterr().err
        server.reply = lambda body: None if "max_completion_tokens" in body else (400, {})
        monkeypatch.setattr(pipeline_module, "SynCirModels", lambda: given)
        advice = '{"max_tokens": null, "max_completion_tokens": 2000}'
        assert main([*command, "--base-url", server.url, "--llm-parameters", advice, "--threshold", "0.5"]) == 0


def test_a_threshold_may_be_given_at_once(folder, tmp_path, small_blocks, monkeypatch, capsys):
    monkeypatch.setattr(pipeline_module, "SynCirModels", lambda: models(Echo()))
    command = ["syncir", "run", str(folder), "--output", str(tmp_path / "out"), "--num-workers", "0"]
    command += ["--threshold", "0.6"]
    assert main([*command, "--until", "pairs"]) == 0
    assert "Done until pairs" in capsys.readouterr().out
    assert main(command) == 0
    output = capsys.readouterr().out
    assert "####" in output and json.loads((tmp_path / "out" / "recipe.json").read_text())["thresholds"] == {
        "similarity": 0.6
    }
