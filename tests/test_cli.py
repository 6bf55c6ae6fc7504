import dataclasses
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from conftest import build_encoder, build_model, build_processor, random_picture
from markupsafe import escape
from PIL import Image

from hycir_hf import Gallery, HyCIRModel, HyCIRProcessor
from hycir_hf.cli.main import build_app, main
from hycir_hf.reports.pages import PageQuery, PageResult, PageTable, render_search_page
from hycir_hf.settings import ParameterError
from hycir_hf.syncir import SynCirConfig
from hycir_hf.training import HybridTrainingArguments

HEAVY = {"torch", "transformers", "datasets", "faiss", "numpy", "PIL"}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    build_model().save_pretrained(path)
    build_processor().save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def indexed(model_path, tmp_path_factory):
    """A folder of pictures beside the gallery made from it."""
    root = tmp_path_factory.mktemp("indexed")
    for seed in range(6):
        path = root / "pictures" / ("day", "night")[seed % 2] / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        random_picture(seed).save(path)
    (root / "pictures" / "broken.jpg").write_bytes(b"broken")
    assert main(["index", str(root / "pictures"), "--model", model_path, "--output", str(root / "gallery")]) == 0
    return root


@pytest.mark.parametrize(
    "code", ["import hycir_hf", "from hycir_hf.cli import main\ntry:\n main(['{}'])\nexcept: pass"]
)
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_import_load_nothing_heavy(code, option):
    code = f"import sys\n{code.replace('{}', option)}\nprint('LOADED', sorted(m for m in sys.modules if '.' not in m))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = set(re.findall(r"'(\w+)'", output.split("LOADED")[1]))
    assert not loaded & HEAVY and "hycir_hf" in loaded


COMMANDS = [
    *("index", "search", "app", "serve", "features", "init", "train", "convert", "export", "push"),
    *("gallery", "gallery add", "gallery remove", "gallery list", "gallery info", "gallery export"),
    *("syncir", "syncir preview", "syncir run", "syncir estimate", "syncir refilter"),
    *("evaluate", "evaluate run", "evaluate score", "evaluate compare"),
    *("benchmark", "benchmark make"),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_parses(command, capsys):
    assert main([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    examples = re.split(r"Examples?:\n", text)[1].split("\n\n")[0].replace("\\\n", "").splitlines()
    for words in map(shlex.split, examples):
        if words[0] == "accelerate":
            assert words[:3] == ["accelerate", "launch", "-m"]
            words = ["hycir", *words[4:]]
        assert words[0] == "hycir" and " ".join(words[1:]).startswith(command)
        build_app().parse_args(words[1:])


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_quick_in_modules(command):
    words = [*command.split(), "--help"]
    code = f"import sys\nfrom hycir_hf.cli import main\nmain({words})\nprint('LOADED', *sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not set(output.split("LOADED")[1].split()) & (HEAVY - {"numpy"})


def test_every_setting_is_a_flag_with_its_meaning_and_group(capsys):
    for command, settings in (("train", HybridTrainingArguments), ("syncir run", SynCirConfig)):
        assert main([*command.split(), "--help"]) == 0
        page = capsys.readouterr().out
        for entry in dataclasses.fields(settings):
            assert re.search(rf"--{entry.name.replace('_', '-')}\b", page) and entry.metadata["help"]
        assert all(
            f" {group} " in page for group in filter(None, (f.metadata["group"] for f in dataclasses.fields(settings)))
        )
    assert main(["syncir", "--help"]) == 0
    page = capsys.readouterr().out
    assert all(f"  {entry.name} " in page for entry in dataclasses.fields(SynCirConfig)) and "Query texts" in page


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["indx"], "index"),
        (["syncir", "refliter", "x"], "refilter"),
        (["search", "g", "--imgae", "a", "--text", "t"], "--image"),
        (["train", "--learning-rte", "1"], "--learning-rate"),
        (["syncir", "run", "p", "--output", "o", "--captoner", "c"], "--captioner"),
        (["train", "--optimizer", "adamww"], "adamw"),
        (["train", "--config", "{config}"], "learning_rate"),
        (["syncir", "run", "p", "--output", "o", "--config", "{config}"], "threshold"),
    ],
)
def test_a_typo_is_answered_with_the_nearest_name(arguments, suggestion, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("learning_rte: 1\nthreshhold: 0.5\n")
    assert main([word.replace("{config}", str(tmp_path / "config.yaml")) for word in arguments]) == 2
    assert re.search(rf"(?i)did you mean.*{suggestion}", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["nonsense"], "nonsense"),
        (["index"], "IMAGES"),
        (["index", "x", "--output", "o"], "--model"),
        (["index", "x", "--model", "m", "--output", "o", "--index-type", "magic"], "magic"),
        (["index", "x", "--model", "m", "--output", "o", "--batch-size", "0"], "--batch-size"),
        (["search", "g"], "--text"),
        (["search", "g", "--image", "a", "--text", "t", "-k", "-1"], "-k"),
        (["search", "g", "--image", "a", "--text", "t", "-k", "x"], "-k"),
        (["syncir", "run", "a"], "--output"),
        (["syncir", "run", "a", "b", "--output", "o"], "b"),
        (["syncir", "run", "a", "--output", "o", "--set", "x"], "--set"),
        (["syncir", "run", "a", "--output", "o", "--threshold", "3", "--concurrency", "0"], "threshold must"),
        (["syncir", "refilter", "a"], "--threshold"),
        (["train"], "output_dir is missing; give either encoder or model"),
        (["train", "--config", "/nowhere.yaml"], "/nowhere.yaml"),
        (["train", "--steps", "many"], "--steps"),
        (["evaluate", "run", "--model", "m"], "--benchmark"),
        (["evaluate", "run", "--model", "m", "--benchmark", "cirr"], "--data"),
        (["evaluate", "score", "p", "--benchmark", "cirr", "--data", "d", "--html", "h"], "--html"),
        (["evaluate", "compare", "a.json"], "SECOND"),
        (["evaluate", "compare", "a.json", "b.json", "--data", "d"], "--data"),
    ],
)
def test_wrong_usage_is_one_line_and_exits_with_2(arguments, fact, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("hycir") and fact in error and "--help`" in error


@pytest.mark.parametrize("arguments", [[], ["syncir"], ["evaluate"]])
def test_no_command_shows_the_help_and_exits_with_2(arguments, capsys):
    assert main(arguments) == 2
    assert "Usage: hycir" in capsys.readouterr().out


@pytest.mark.parametrize("module", [["hycir_hf.cli", "train"], ["hycir_hf.training"]])
def test_every_way_to_start_has_the_same_exit_codes(module):
    done = subprocess.run([sys.executable, "-m", *module, "--steps", "0"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("hycir train: error: ") and "steps must be" in done.stderr


def test_a_parameter_that_the_library_names_becomes_its_flag(monkeypatch, capsys):
    def refuse(*args, **options):
        raise ParameterError("There are several. Choose one.", "split", "unknown_here")

    monkeypatch.setattr("hycir_hf.retriever.open_for_index", refuse)
    assert main(["index", "x", "--model", "m", "--output", "o"]) == 2
    error = capsys.readouterr().err
    assert "(--split)" in error and "unknown" not in error


def test_the_completion_script_knows_commands_and_settings():
    script = build_app().generate_completion(shell="bash")
    assert all(word in script for word in ("syncir", "refilter", "--learning-rate", "--sentence-encoder", "adamw"))


def failing(arguments, capsys):
    """Run a command that must fail; returns its one line."""
    assert main(arguments) in (1, 2)
    errors = capsys.readouterr().err.strip()
    assert "\n" not in errors and re.match(rf"hycir {arguments[0]}[a-z ]*: error: ", errors)
    return errors


def test_errors_are_one_line(indexed, model_path, tmp_path, capsys):
    gallery, picture = str(indexed / "gallery"), str(indexed / "pictures" / "day" / "0.png")
    query = ["--image", picture, "--text", "make it night"]
    assert "/nowhere" in failing(["index", "/nowhere", "--model", "m", "--output", "o"], capsys)
    index = ["index", str(indexed / "pictures"), "--output", str(tmp_path / "g"), "--model"]
    assert "'./nowhere'" in failing([*index, "./nowhere"], capsys)
    assert "config.json" in failing([*index, str(tmp_path)], capsys)
    assert "manifest.json" in failing(["search", str(tmp_path), *query], capsys)
    assert "'nowhere.png'" in failing(["search", gallery, "--image", "nowhere.png", "--text", ""], capsys)
    broken = str(indexed / "pictures" / "broken.jpg")
    assert "broken.jpg" in failing(["search", gallery, "--image", broken, "--text", ""], capsys)
    assert "'x'" in failing(["search", gallery, *query, "--exclude-reference", "x"], capsys)
    with pytest.raises(FileNotFoundError):
        main(["search", str(tmp_path), *query, "--debug"])


def test_another_encoder_is_refused(indexed, tmp_path, capsys):
    HyCIRModel.from_encoder(build_encoder("clip", seed=1), 3).save_pretrained(tmp_path)
    build_processor().save_pretrained(tmp_path)
    picture = str(indexed / "pictures" / "day" / "0.png")
    command = ["search", str(indexed / "gallery"), "--image", picture, "--text", "", "--model", str(tmp_path)]
    assert "encoder" in failing(command, capsys)


def test_index_names_and_counts_the_broken_file(indexed, model_path, tmp_path, capsys):
    command = ["index", str(indexed / "pictures"), "--model", model_path, "--output", str(tmp_path / "g"), "--json"]
    assert main([*command, "--index-type", "hnsw"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert (report["count"], report["encoded"], report["reused"], report["index_type"]) == (6, 6, 0, "hnsw")
    assert [entry["image_id"] for entry in report["skipped"]] == ["broken.jpg"]
    lines = re.split(r"[\r\n]+", err)
    assert sum("skipped broken.jpg: " in line for line in lines) == 1
    assert any("images/s" in line for line in lines)
    assert main(command[:-1]) == 0  # the same again, over the gallery that is there
    assert re.search(r"skipped 1: broken\.jpg: ", capsys.readouterr().out)
    assert Gallery.load(tmp_path / "g").index_type == "flat"


def test_search_leaves_the_reference_out_and_says_so(indexed, capsys):
    picture = str(indexed / "pictures" / "day" / "0.png")
    command = ["search", str(indexed / "gallery"), "--image", picture, "--text", "make it night", "-k", "4"]
    assert main(command) == 0
    table = capsys.readouterr().out
    assert len(re.findall(r"^ +\d+ +[+-]\d\.\d{4}  \S+$", table, re.MULTILINE)) == 4
    assert re.search(r"[Ll]eft out.*day/0\.png", table)
    assert main([*command, "--json"]) == 0
    by_path = json.loads(capsys.readouterr().out)
    assert by_path["excluded"] == ["day/0.png"] and [entry["rank"] for entry in by_path["results"]] == [1, 2, 3, 4]
    assert "day/0.png" not in {entry["image_id"] for entry in by_path["results"]}
    command[3] = "day/0.png"  # the same by its id
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"] == by_path["results"]
    assert main([*command, "--json", "--keep-reference", "-k", "99"]) == 0
    kept = json.loads(capsys.readouterr().out)
    assert kept["excluded"] == [] and len(kept["results"]) == 6
    assert main([*command, "--image", "night/1.png", "--json"]) == 0  # two references
    assert json.loads(capsys.readouterr().out)["excluded"] == ["day/0.png", "night/1.png"]


def test_search_of_a_copy_can_name_its_id(indexed, tmp_path, capsys):
    random_picture(0).save(tmp_path / "copy.png")
    command = ["search", str(indexed / "gallery"), "--image", str(tmp_path / "copy.png"), "--text", "", "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["excluded"] == []
    assert main([*command, "--exclude-reference", "day/0.png"]) == 0
    assert "day/0.png" not in capsys.readouterr().out.split('"results"')[1]


class PageReader(HTMLParser):
    """Collects images, external addresses and unclosed tags."""

    VOID = frozenset({"meta", "img", "br", "wbr", "link", "!doctype"})

    def __init__(self):
        super().__init__()
        self.open, self.images, self.addresses = [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(attrs)
        self.addresses += [attrs[name] for name in ("src", "href") if name in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read_page(text):
    reader = PageReader()
    reader.feed(text)
    assert reader.open == []
    assert all(address.startswith("data:image/") for address in reader.addresses)
    assert all(image["alt"].strip() for image in reader.images)
    assert "<script" not in text and "@import" not in text and "url(" not in text
    return reader


def test_search_page_is_self_contained(indexed, tmp_path, capsys):
    page = tmp_path / "new" / "found.html"
    picture = str(indexed / "pictures" / "day" / "0.png")
    text = '<b>"night"</b> & snow'
    command = ["search", str(indexed / "gallery"), "--image", picture, "--text", text, "--html", str(page)]
    assert main(command) == 0
    assert f"Page: {page}" in capsys.readouterr().out
    reader = read_page(page.read_text(encoding="utf-8"))
    assert len(reader.images) == 1 + 5
    assert str(escape(text)) in page.read_text(encoding="utf-8")
    assert "day/0.png" in page.read_text(encoding="utf-8")


def test_file_names_of_any_kind_are_shown(model_path, tmp_path, capsysbinary, monkeypatch):
    """Not UTF-8, a newline, a terminal's command, markup: neither table nor page breaks."""
    names = [os.fsdecode(b"bad-\xff.png"), "new\nline.png", "red\x1b[31m.png", "<b>&'\".png", "日本 👩‍🚒.png"]
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed, name in enumerate(names):
        try:
            random_picture(seed).save(folder / name)
        except (OSError, UnicodeError):
            pytest.skip("this file system refuses such names")
    (folder / "broken\n.png").write_bytes(b"broken")
    gallery, page = str(tmp_path / "gallery"), tmp_path / "found.html"
    assert main(["index", str(folder), "--model", model_path, "--output", gallery]) == 0
    assert rb"skipped broken\n.png: " in capsysbinary.readouterr().err
    command = ["search", gallery, "--image", "new\nline.png", "--text", "", "--keep-reference", "--html", str(page)]
    assert main(command) == 0
    table = capsysbinary.readouterr().out.decode().splitlines()[1:6]
    shown = {line.split("  ")[-1] for line in table}
    assert shown == {r"bad-\udcff.png", r"new\nline.png", r"red\x1b[31m.png", "<b>&'\".png", "日本 👩‍🚒.png"}
    assert len(read_page(page.read_text(encoding="utf-8")).images) == 6
    # A terminal that knows ASCII only.
    ascii_output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_output)
    assert main(command) == 0
    assert rb"\u65e5\u672c" in ascii_output.buffer.getvalue()


def test_a_moved_gallery_finds_its_pictures_and_a_missing_one_is_named(indexed, model_path, tmp_path, capsys):
    shutil.copytree(indexed, tmp_path / "old")
    arguments = [
        str(tmp_path / "old" / "pictures"),
        "--model",
        model_path,
        "--output",
        str(tmp_path / "old" / "gallery"),
    ]
    assert main(["index", *arguments]) == 0
    (tmp_path / "old").rename(tmp_path / "new")
    (tmp_path / "new" / "pictures" / "night" / "1.png").unlink()
    capsys.readouterr()
    page, picture = tmp_path / "found.html", tmp_path / "new" / "pictures" / "day" / "0.png"
    command = ["search", str(tmp_path / "new" / "gallery"), "--image", str(picture), "--text", "", "--html", str(page)]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert re.search(r"[Ll]eft out.*day/0\.png", out) and "night/1.png" in err
    assert len(read_page(page.read_text(encoding="utf-8")).images) == 1 + 4


def test_page_of_many_queries_with_targets_and_figures():
    picture = Image.new("RGB", (700, 500), "teal")
    results = [PageResult("a", 0.9, picture, is_target=True), PageResult("b", -0.1, None, is_target=False, label="dog")]
    queries = [PageQuery([picture, picture], "make it <night>", results, "a note"), PageQuery([picture], "", [])]
    table = PageTable("R@K", ["method", "R@1"], [["mapper", "0.40"], ["sum & more", "0.36"]])
    text = render_search_page(queries, title="Demo & more", intro="Ten queries.", tables=[table])
    reader = read_page(text)
    assert len(reader.images) == 4 and text.count("✓ target") == 1 and "0.40" in text and "sum &amp; more" in text
    assert "no text: the image alone" in text and "Nothing was found" in text and "prefers-color-scheme:dark" in text


def test_interrupt_is_one_line_and_130(monkeypatch, capsys):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("hycir_hf.retriever.open_for_index", interrupt)
    assert main(["index", "x", "--model", "m", "--output", "o"]) == 130
    assert re.fullmatch(r"hycir: interrupted\..*\n", capsys.readouterr().err)

    def interrupt_an_import(*args, **options):
        try:
            interrupt()
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error  # as C extensions do

    monkeypatch.setattr("hycir_hf.retriever.open_for_index", interrupt_an_import)
    assert main(["index", "x", "--model", "m", "--output", "o"]) == 130
    assert re.fullmatch(r"hycir: interrupted\..*\n", capsys.readouterr().err)


def test_features_then_train(encoder_path, picture_folder, tmp_path, capsys):
    features, output = str(tmp_path / "features"), str(tmp_path / "output")
    command = ["features", str(picture_folder), "--model", str(encoder_path), "--output", features]
    assert main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["is_complete"] and printed["shape"] == [20, 1, 24] and printed["skipped"] == []
    assert main(command) == 0 and "20 images" in capsys.readouterr().out
    command = ["train", "--encoder", str(encoder_path), "--objective", "zs", "--unlabeled-features", features]
    command += ["--unlabeled-batch-size", "8", "--steps", "2", "--output-dir", output, "--no-progress"]
    assert main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["steps"] == 2 and printed["last"]["loss"] > 0
    assert HyCIRModel.from_pretrained(printed["model"]).config.num_pseudo_tokens == 4
    assert main(command) == 0 and "2 steps, loss" in capsys.readouterr().out
    assert "steps was 2 and is now 3" in failing([*command, "--steps", "3"], capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["features", "/nowhere", "--model", "m", "--output", "o"], "/nowhere"),
        (["features", "{pictures}", "--model", "/nowhere", "--output", "o"], "/nowhere"),
        (["features", "{pictures}", "--model", "{pictures}", "--output", "o"], "config.json"),
        (["features", "{pictures}", "--model", "m", "--output", "o", "--num-shards", "2"], "shard"),
    ],
)
def test_errors_of_features_are_one_line(arguments, message, picture_folder, capsys):
    assert message in failing([word.replace("{pictures}", str(picture_folder)) for word in arguments], capsys)


def test_init_makes_a_model_that_can_be_trained(tmp_path):
    build_model("clip_legacy").encoder.save_pretrained(tmp_path / "clip")
    build_processor().image_processor.save_pretrained(tmp_path / "clip")
    build_processor().tokenizer.save_pretrained(tmp_path / "clip")
    command = ["init", str(tmp_path / "clip"), "--output", str(tmp_path / "model"), "-k", "2"]
    assert main(command) == 0
    model = HyCIRModel.from_pretrained(tmp_path / "model")
    assert model.config.num_pseudo_tokens == 2 == HyCIRProcessor.from_pretrained(tmp_path / "model").num_pseudo_tokens
    assert json.loads((tmp_path / "model" / "config.json").read_text())[
        "mapper_only"
    ]  # the encoder is named, not copied
    assert main(command) == 2  # it is not overwritten
    assert main(["init", str(tmp_path / "nothing"), "--output", str(tmp_path / "other")]) == 1
    assert not (tmp_path / "other").exists()
