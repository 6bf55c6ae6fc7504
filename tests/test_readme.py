"""README's code is executed, with a tiny encoder in the place of the Hub's."""

import re
import shlex
from pathlib import Path

import pytest
from conftest import build_encoder, build_processor, random_picture

from hycir_hf import HyCIRModel
from hycir_hf.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def encoder_folder(tmp_path):
    build_encoder("clip").save_pretrained(tmp_path / "encoder")
    processor = build_processor()
    processor.tokenizer.save_pretrained(tmp_path / "encoder")
    processor.image_processor.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_the_five_lines(encoder_folder):
    code = blocks("python")[0].replace("openai/clip-vit-large-patch14", str(encoder_folder))
    pictures = [random_picture(seed) for seed in range(12)]
    names = [f"picture {seed}" for seed in range(12)]
    variables = {"images": pictures, "names": names, "reference": pictures[0]}
    exec(code, variables)
    assert len(variables["results"].ids[0]) == 10 and set(variables["results"].ids[0]) <= set(names)


def test_the_emoji_data_sets_load(monkeypatch):
    monkeypatch.chdir(ROOT)
    variables: dict = {}
    exec(blocks("python")[1], variables)
    assert set(variables["pictures"]) == {"train", "heldout_concepts", "heldout_vendor"}
    assert set(variables["queries"]) == {"val", "test"}
    assert f"{sum(map(len, variables['pictures'].values())):,} pictures" in README


def test_the_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    HyCIRModel.from_encoder(build_encoder("clip"), 3).save_pretrained("MODEL")
    build_processor().save_pretrained("MODEL")
    Path("PHOTOS").mkdir()
    for seed in range(4):
        random_picture(seed).save(f"PHOTOS/{seed}.png")
    random_picture(9).save("PHOTO", format="PNG")
    index, search = (shlex.split(line, comments=True) for line in blocks("bash")[1].splitlines())
    assert main(index[1:]) == 0 and main(search[1:]) == 0
    assert "rank" in capsys.readouterr().out and "make it night" in Path("results.html").read_text(encoding="utf-8")


def test_the_two_make_commands_are_what_ci_runs():
    assert [blocks("bash")[row].strip() for row in (0, 2)] == ["make demo", "make test"]
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert {"make demo", "make test"} <= set(ci)
