"""README's code is executed, with a tiny encoder or the emoji world's in the place of the Hub's."""

import ast
import json
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import gradio
import numpy as np
import pytest
import torch
import transformers
import yaml
from conftest import build_encoder, build_processor, random_picture
from datasets import load_dataset
from fake_llm import FakeLLM
from gradio_client import Client
from test_evaluation_files import make_cirr
from test_syncir_pipeline import caption, embed_images, embed_sentences, small_blocks
from test_syncir_pipeline import folder as syncir_pictures

from hycir_hf import Gallery, HyCIRModel, HyCIRProcessor
from hycir_hf.cli.main import main
from hycir_hf.syncir import SynCirModels
from hycir_hf.syncir import run as syncir_pipeline
from hycir_hf.training import CombinerHead

__all__ = ["small_blocks", "syncir_pictures"]  # fixtures

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def block(language: str, containing: str) -> str:
    [found] = [text for text in blocks(language) if containing in text]
    return found


@pytest.fixture
def encoder_folder(tmp_path):
    build_encoder("clip").save_pretrained(tmp_path / "encoder")
    processor = build_processor()
    processor.tokenizer.save_pretrained(tmp_path / "encoder")
    processor.image_processor.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_the_five_lines(encoder_folder):
    code = block("python", "from_encoder").replace("openai/clip-vit-large-patch14", str(encoder_folder))
    pictures = [random_picture(seed) for seed in range(12)]
    names = [f"picture {seed}" for seed in range(12)]
    variables = {"images": pictures, "names": names, "reference": pictures[0]}
    exec(code, variables)
    assert len(variables["results"].ids[0]) == 10 and set(variables["results"].ids[0]) <= set(names)


def test_the_emoji_data_sets_load(monkeypatch):
    monkeypatch.chdir(ROOT)
    variables: dict = {}
    exec(block("python", "examples/emoji/data"), variables)
    assert set(variables["pictures"]) == {"train", "heldout_concepts", "heldout_vendor"}
    assert set(variables["queries"]) == {"val", "test"}
    assert f"{sum(map(len, variables['pictures'].values())):,} pictures" in README


def test_the_triplets_load(monkeypatch):
    monkeypatch.chdir(ROOT)
    variables: dict = {}
    exec(block("python", '"TRIPLETS"').replace("TRIPLETS", "examples/emoji/syncir"), variables)
    assert {name: len(variables[name]) for name in ("triplets", "images", "dropped")} == {
        "triplets": 3671,
        "images": 14917,
        "dropped": 5329,
    }
    exec(block("python", '"examples/emoji/syncir"'), {"load_dataset": load_dataset} | variables)
    assert set(variables["triplets"]["reference_id"]) <= set(variables["images"]["image_id"])


def test_the_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    HyCIRModel.from_encoder(build_encoder("clip"), 3).save_pretrained("MODEL")
    build_processor().save_pretrained("MODEL")
    Path("PHOTOS").mkdir()
    for seed in range(4):
        random_picture(seed).save(f"PHOTOS/{seed}.png")
    random_picture(9).save("PHOTO", format="PNG")
    index, search = (shlex.split(line, comments=True) for line in block("bash", "hycir index").splitlines())
    assert main(index[1:]) == 0 and main(search[1:]) == 0
    assert "rank" in capsys.readouterr().out and "make it night" in Path("results.html").read_text(encoding="utf-8")


# --- "Use it from": every row of the table, on pictures of the emoji world --------------------------------------------

EMOJI = ROOT / "examples" / "emoji"
REFERENCE, TARGET = "woman firefighter", "man firefighter"
OTHERS = ("man cook", "woman cook", "man judge", "woman judge", "man pilot", "woman pilot", "princess", "ninja")


def table_rows():
    """What stands in the first column -> the lines of code beside it."""
    rows = re.findall(r"^\| (.+?) \| (`.+`.*?) \|$", README.split("## Use it from")[1].split("\n## ")[0], re.MULTILINE)
    return {title: [re.match("`(.*?)`", line)[1] for line in cell.split("<br>")] for title, cell in rows}


@pytest.fixture(scope="module")
def emoji():
    """What the table's lines take as given; the query text "make it night" stands for one that fits the pictures."""
    model, processor = HyCIRModel.from_pretrained(EMOJI / "hycir"), HyCIRProcessor.from_pretrained(EMOJI / "hycir")
    wanted = {REFERENCE, TARGET, *OTHERS}
    pictures = load_dataset(str(EMOJI / "data"), "images", split="heldout_vendor").filter(
        lambda name: name in wanted, input_columns="name"
    )
    names, images = list(pictures["name"]), list(pictures["image"])
    reference = images[names.index(REFERENCE)]
    features = model.get_composed_features(**processor(images=[reference], text=["make it a man"]))
    gallery = Gallery.from_images(model, processor, images, ids=names, progress=False)
    return {
        "folder": str(EMOJI / "hycir"),
        "model": model,
        "processor": processor,
        "images": images,
        "names": names,
        "dataset": pictures,
        "reference": reference,
        "reference_id": REFERENCE,
        "target_ids": [TARGET],
        "features": features,
        "gallery": gallery,
        "results": gallery.search(features, k=5, exclude_ids=[REFERENCE]),
    }


def run_row(title, variables):
    """Run a row's lines, commands by the command line's own entry; returns the last line's value."""
    value = None
    for line in table_rows()[title]:
        line = line.replace("make it night", "make it a man").replace(
            "openai/clip-vit-large-patch14", str(EMOJI / "encoder")
        )
        if line.startswith("hycir "):
            assert main(shlex.split(line)[1:]) == 0
            continue
        *statements, last = ast.parse(line).body
        exec(compile(ast.Module(statements, []), line, "exec"), variables)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), line, "eval"), variables)
        else:
            exec(compile(ast.Module([last], []), line, "exec"), variables)
    return value


@pytest.fixture
def run(emoji, tmp_path, monkeypatch):
    (tmp_path / "hycir_hf").symlink_to(ROOT / "hycir_hf")  # the lines are written from a clone
    monkeypatch.chdir(tmp_path)
    variables = dict(emoji)
    return lambda title: (run_row(title, variables), variables)


def test_every_row_of_the_table_has_three_lines_and_a_test():
    rows = table_rows()
    here = Path(__file__).read_text(encoding="utf-8")
    assert len(rows) >= 8 and all(len(lines) == 3 for lines in rows.values())
    assert [title for title in rows if f'run("{title}")' not in here] == []


def test_from_a_browser(run):
    url = run("a browser (`hycir app GALLERY`)")[1]["url"]
    try:
        found = Client(url, verbose=False).predict(TARGET, "", "text only", 1, api_name="/search")
    finally:
        gradio.close_all()
    assert [row["id"] for row in found] == [TARGET]


def test_from_a_pipeline(run, emoji):
    [ranking] = run("a transformers pipeline")[0]
    assert len(ranking) == 5
    assert next(emoji["names"][int(one["id"])] for one in ranking if one["id"] != reference_row(emoji)) == TARGET


def reference_row(emoji):
    return str(emoji["names"].index(REFERENCE))


def test_from_sentence_transformers(run, emoji):
    features, _ = run("Sentence Transformers")
    np.testing.assert_allclose(features, emoji["features"].detach(), atol=1e-5)


def test_from_datasets(run):
    scores, found = run("datasets, its faiss index")[0]
    assert next(name for name in found["name"] if name != REFERENCE) == TARGET and len(scores) == 5


def test_from_webdataset(run, emoji, tmp_path):
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "00000.tar", "w") as tar:
        for number, image in enumerate(emoji["images"]):
            image.save(tmp_path / f"{number:09d}.jpg", quality=95)
            tar.add(tmp_path / f"{number:09d}.jpg", arcname=f"{number:09d}.jpg")
    settings = {"encoder": str(EMOJI / "encoder"), "objective": "zs", "steps": 1, "unlabeled_batch_size": 4}
    (tmp_path / "mapper.yaml").write_text(yaml.safe_dump(settings | {"output_dir": "trained", "num_pseudo_tokens": 4}))
    gallery = run("WebDataset, img2dataset's tar shards")[1]["gallery"]
    found = gallery.search(emoji["features"], k=2, exclude_ids=[f"{int(reference_row(emoji)):09d}"]).ids[0]
    assert emoji["names"][int(found[0])] == TARGET and len(gallery) == len(emoji["names"])
    assert HyCIRModel.from_pretrained("trained/model").config.num_pseudo_tokens == 4


def test_from_milvus(run):
    results, variables = run("Milvus")
    variables["store"].close()
    assert results.ids[0][0] == TARGET and REFERENCE not in results.ids[0]


def test_from_evaluate(run):
    assert run("evaluate")[0] == {"recall@1": 1.0, "recall@5": 1.0}


def test_from_the_hub(run, emoji, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.utils.hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "MODEL").symlink_to(EMOJI / "hycir")
    pulled = run("the Hub")[1]["model"]
    assert hub.repo("OWNER/NAME").private and pulled.config.name_or_path == "OWNER/NAME"
    found = pulled.get_composed_features(**emoji["processor"](images=[emoji["reference"]], text=["make it a man"]))
    torch.testing.assert_close(found, emoji["features"], atol=1e-6, rtol=0)


def test_from_a_conversion(run, tmp_path):
    shapes = {"layers.0": (64, 256), "layers.3": (64, 64), "layers.6": (256, 64)}
    phi = {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    phi |= {f"{name}.bias": torch.randn(shape[0]) for name, shape in shapes.items()}
    torch.save({"epoch": 1, "Phi": phi}, tmp_path / "SEARLE_ViT-L14.pt")
    model = run("Pic2Word, SEARLE, LinCIR, BLIP")[1]["model"]
    assert torch.equal(model.mapper.output.weight, phi["layers.6.weight"]) and model.config.num_pseudo_tokens == 1


# --- The command blocks: every line, with tiny models and files in the place of the user's ----------------------------


def lines(containing, **replaced):
    """A block's commands as words, some of them replaced."""
    found = [shlex.split(line, comments=True) for line in block("bash", containing).splitlines()]
    return [[replaced.get(word, word) for word in words] for words in found]


def test_the_syncir_commands(syncir_pictures, small_blocks, tmp_path, monkeypatch, capsys):
    """Pairs, captions and sentences by the tests' own models, query texts by an endpoint through the real client."""
    monkeypatch.chdir(tmp_path)
    Path("PHOTOS").symlink_to(syncir_pictures)
    monkeypatch.setattr(
        syncir_pipeline, "SynCirModels", lambda: SynCirModels(embed_images, caption, None, embed_sentences, [])
    )
    [key, estimate, openai, own, again] = lines("hycir syncir")
    assert key[:1] == ["export"] and "OPENAI_API_KEY" in key[1]
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    small = ["--num-workers", "0", "--threshold", "0.5"]
    with FakeLLM(key="a key") as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        assert main([*estimate[1:], *small]) == 0 and server.requests == []
        assert main([*openai[1:], *small]) == 0
        asked = len(server.requests)
        own = [word.replace("http://127.0.0.1:8000/v1", server.url) for word in own]
        assert main([*own[1:], *small]) == 0 and len(server.requests) > asked > 0
        assert {request["model"] for request in server.requests[asked:]} == {"NAME"}
    assert main(again[1:]) == 0
    assert "triplets kept" in capsys.readouterr().out
    assert json.loads(Path("TRIPLETS/recipe.json").read_text())["thresholds"] == {"similarity": 0.75}


def test_the_training_commands(encoder_path, picture_folder, syncir_folder, tmp_path, monkeypatch):
    """The paper's configuration, with a small encoder, small batches and two steps in the place of its own."""
    monkeypatch.chdir(tmp_path)
    Path("PHOTOS").symlink_to(picture_folder)
    Path("examples").symlink_to(ROOT / "examples")
    [features, train, launch] = lines("hycir train", **{"openai/clip-vit-large-patch14": str(encoder_path)})
    assert main(features[1:]) == 0 and Path("FEATURES/features.npy").stat().st_size
    small = ["--encoder", str(encoder_path), "--unlabeled", "PHOTOS", "--triplets", str(syncir_folder), "--steps", "2"]
    small += ["--unlabeled_batch_size", "8", "--triplet_batch_size", "4", "--output_dir"]
    assert main([*train[1:], *small, "one"]) == 0
    assert launch[:2] == ["accelerate", "launch"]
    launch[:2] = [sys.executable, "-m", "accelerate.commands.launch", "--cpu"]
    subprocess.run([*launch, *small, "two"], check=True, timeout=300)
    for name in ("one", "two"):
        assert HyCIRModel.from_pretrained(f"{name}/model").config.num_pseudo_tokens == 4


def test_the_evaluation_commands(encoder_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_cirr(tmp_path / "cirr_dataset")
    model = HyCIRModel.from_encoder(str(encoder_folder), 3)
    model.save_pretrained("MODEL")
    build_processor().save_pretrained("MODEL")
    CombinerHead(model.config.feature_size).save_pretrained("COMBINER")
    with FakeLLM() as server:
        replaced = {"BLIP": str(EMOJI / "captioner"), "http://127.0.0.1:8000/v1": server.url}
        [val, files, scoring, compare, combiner, cirevl] = lines("hycir evaluate", **replaced)
        assert main(val[1:]) == 0 and Path("report.html").stat().st_size
        assert main(files[1:]) == 0 and Path("files/cirr_test1_recall.json").stat().st_size
        assert main([*val[1:], "--submission", "."]) == 0
        Path("cirr_val_recall.json").rename("recall.json")
        for command in (scoring, compare, combiner, cirevl):
            capsys.readouterr()
            assert main(command[1:]) == 0
            assert ("| all R@1 |" if command is compare else "| R@1 |") in capsys.readouterr().out
        assert server.requests


def test_the_make_commands_are_what_ci_runs():
    assert {"make demo", "make test"} <= {text.strip() for text in blocks("bash")}
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert {"make demo", "make test", "make syncir"} <= set(ci)
