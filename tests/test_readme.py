"""README's code is executed, with a tiny encoder in the place of the Hub's."""

import re
import shlex
from pathlib import Path

import pytest
from conftest import build_encoder, build_processor, random_picture

from hycir_hf import HyCIRModel
from hycir_hf.cli import build_parser, main

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


@pytest.mark.parametrize("command", ["hycir syncir", "hycir train", "hycir evaluate"])
def test_the_other_commands_are_what_the_command_line_takes(command):
    lines = [line for line in block("bash", command).splitlines() if line.startswith("hycir ")]
    assert len(lines) >= 2
    for line in lines:
        build_parser().parse_args(shlex.split(line, comments=True)[1:])


def test_the_make_commands_are_what_ci_runs():
    assert {"make demo", "make test"} <= {text.strip() for text in blocks("bash")}
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert {"make demo", "make test", "make syncir"} <= set(ci)
