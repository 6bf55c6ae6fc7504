"""README and the pages of docs/: their Python runs, their commands parse, their links and figures are right.

Python blocks of a page run in order and share their variables, in a folder of stand-ins: `photos` holds random images,
`searle` is the emoji model, `demo/gallery` a few emoji. `<!-- skip: why -->` above a block leaves it out.
"""

import json
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import random_picture
from datasets import load_dataset

from hycir_hf.cli.main import build_app, main
from hycir_hf.retriever import ImageRetriever

ROOT = Path(__file__).parents[1]
EMOJI = ROOT / "examples" / "emoji"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"(?:<!-- skip: (?P<skip>.+?) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S)
NAMES = ("woman firefighter", "man firefighter", "firefighter", "singer", "supervillain", "man cook", "woman cook")


@dataclass(frozen=True)
class Block:
    page: Path
    language: str
    text: str
    skip: str | None = None


def blocks(page: Path) -> list[Block]:
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [Block(page, one["language"], one["text"], one["skip"]) for one in found]


def commands(page: Path) -> list[list[str]]:
    """The words of each line of a page's shell blocks, continued lines joined."""
    lines = [
        line for one in blocks(page) if one.language == "bash" for line in one.text.replace("\\\n", "").splitlines()
    ]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def hycir_commands(page: Path) -> list[list[str]]:
    """What stands behind `hycir`, or behind `accelerate launch -m hycir_hf.cli`."""
    starts = {"hycir", "hycir_hf.cli"}
    found = [(words, next((n for n, word in enumerate(words) if word in starts), None)) for words in commands(page)]
    return [words[start + 1 :] for words, start in found if start is not None]


def relative(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def pages_with(language: str) -> list[Path]:
    return [page for page in PAGES if any(one.language == language and not one.skip for one in blocks(page))]


@pytest.fixture(scope="module")
def small_gallery(tmp_path_factory):
    """A gallery of the emoji that README's first search shows, and some others."""
    folder = tmp_path_factory.mktemp("small")
    emoji = load_dataset(str(EMOJI / "data"), "images", split="heldout_vendor")
    (folder / "people").mkdir()
    emoji.filter(lambda name: name in NAMES, input_columns="name").to_parquet(folder / "people" / "people.parquet")
    retriever = ImageRetriever.from_pretrained(str(EMOJI / "hycir"))
    retriever.index(str(folder / "people"), folder / "gallery", split="train", id_column="name", progress=False)
    return folder / "gallery"


@pytest.fixture
def workplace(small_gallery, tmp_path, monkeypatch):
    """The folder that a reader works in."""
    monkeypatch.chdir(tmp_path)
    for name in ("examples", "hycir_hf", "dataset_scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "searle").symlink_to(EMOJI / "hycir")
    (tmp_path / "photos").mkdir()
    for seed, name in enumerate(("cat.jpg", "dog.jpg", "hat.jpg")):
        random_picture(seed, (64, 64)).save(tmp_path / "photos" / name)
    (tmp_path / "demo").mkdir()
    shutil.copytree(small_gallery, tmp_path / "demo" / "gallery")
    return tmp_path


@pytest.mark.parametrize("page", pages_with("python"), ids=relative)
def test_python_blocks_run(page, workplace, capsys):
    """What a block prints is what the comment behind `print` says."""
    variables: dict = {}
    for block in blocks(page):
        if block.language != "python" or block.skip:
            continue
        code = block.text.replace("openai/clip-vit-large-patch14", str(EMOJI / "encoder"))
        capsys.readouterr()
        exec(compile(code, relative(page), "exec"), variables)
        printed = capsys.readouterr().out.splitlines()
        for said in re.findall(r"^print\(.*\)  # (.+)$", block.text, re.MULTILINE):
            assert said in printed


def test_the_first_search_finds_what_the_readme_prints(workplace, capsys):
    [search] = [words for words in commands(ROOT / "README.md") if words[:3] == ["hycir", "search", "demo/gallery"]]
    assert main(search[1:]) == 0
    row = re.compile(r"^ +(\d+) +\+(0\.\d+) +(.+)$", re.MULTILINE)
    [shown] = [one.text for one in blocks(ROOT / "README.md") if one.language == "text"]
    found, said = row.findall(capsys.readouterr().out), row.findall(shown)
    assert [(rank, name) for rank, _, name in found] == [(rank, name) for rank, _, name in said]
    assert [float(score) for _, score, _ in found] == pytest.approx([float(score) for _, score, _ in said], abs=1e-3)
    assert Path(search[search.index("--html") + 1]).stat().st_size > 1000


@pytest.mark.parametrize("page", [page for page in PAGES if any(hycir_commands(page))], ids=relative)
def test_commands_parse(page):
    """By the real parser: it refuses unknown commands, options and settings, and values of a wrong type."""
    app = build_app()
    for words in hycir_commands(page):
        app.parse_args(words)


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_scripts_targets_and_links_exist(page):
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    made = [word for words in commands(page) if words[0] == "make" for word in words[1:]]
    assert {*made, *re.findall(r"`make ([a-z-]+)`", text)} <= targets
    for path in re.findall(r"(?:examples|dataset_scripts|docs)/[\w/]+\.(?:py|md|sh|yaml)\b", FENCE.sub("", text)):
        assert (ROOT / path).is_file() or (page.parent / path).is_file(), path
    for path in re.findall(r"python (\S+\.py)", text):
        assert (ROOT / path).is_file(), path
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", FENCE.sub("", text)):
        assert (page.parent / link).exists(), link


def test_the_readmes_figures_are_the_measured_ones():
    measured = json.loads((EMOJI / "hycir" / "results.json").read_text(encoding="utf-8"))["parts"]["heldout_vendor"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", readme, re.MULTILINE)
    assert len(rows) == len(measured)
    for name, *figures in rows:
        method = "mapper" if "mapper" in name else name
        assert figures == [f"{100 * measured[method][f'R@{k}']:.2f}" for k in (1, 5, 10, 50)], name


def test_the_emoji_world_has_the_size_that_the_docs_say():
    text = (ROOT / "docs" / "results" / "emoji.md").read_text(encoding="utf-8")
    images = load_dataset(str(EMOJI / "data"), "images")
    sizes = {name: len(load_dataset(str(EMOJI / "syncir"), name, split="train")) for name in ("triplets", "dropped")}
    assert f"{sum(map(len, images.values())):,} images" in text and f"{sizes['triplets']:,} triplets" in text
    assert sizes == {"triplets": 3671, "dropped": 5329}


def test_ci_runs_the_readmes_commands():
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.findall(r"^make (\S+)", ci, re.MULTILINE)[-2:] == ["demo", "syncir"]
    assert re.search(r"^make test", ci, re.MULTILINE)


@pytest.mark.slow
def test_the_documentation_builds_strictly(tmp_path):
    build = pytest.importorskip("mkdocs.commands.build")
    config = pytest.importorskip("mkdocs.config")
    pytest.importorskip("mkdocstrings")
    build.build(config.load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True))
    assert "num_pseudo_tokens" in (tmp_path / "site" / "reference" / "settings" / "index.html").read_text()
