"""`hycir evaluate run --methods`: the mapper, a trained combiner and CIReVL's way in one table."""

import json
from pathlib import Path

import pytest
import torch
from conftest import NUM_PSEUDO_TOKENS, build_encoder, build_processor, build_tokenizer, random_picture
from fake_llm import FakeLLM, answer_to
from test_cli import failing, read_page
from test_evaluation_files import make_cirr
from test_syncir_local import TEMPLATE, build_language_model

from hycir_hf import HyCIRModel
from hycir_hf.cli.main import main
from hycir_hf.evaluation import BenchmarkPart, combiner_method, encode_images, encode_texts, language_method
from hycir_hf.evaluation.methods import CIREVL_PROMPT
from hycir_hf.syncir.llm import chat
from hycir_hf.syncir.models import load_captioner
from hycir_hf.training import CombinerHead

CAPTIONER = str(Path(__file__).parents[1] / "examples" / "emoji" / "captioner")


@pytest.fixture(scope="module")
def tiny():
    return HyCIRModel.from_encoder(build_encoder("clip"), NUM_PSEUDO_TOKENS).eval(), build_processor()


@pytest.fixture(scope="module")
def model_path(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    for part in tiny:
        part.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def cirr(tmp_path_factory):
    return make_cirr(tmp_path_factory.mktemp("cirr"))


@pytest.fixture
def evaluate(model_path, cirr, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return [
        "evaluate",
        "run",
        "--model",
        model_path,
        "--benchmark",
        "cirr",
        "--data",
        str(cirr),
        "--output",
        "results.json",
    ]


def query(**values):
    return {"query_id": "q", "reference_id": "a", "query_text": "red", "target_ids": ["b"]} | values


def test_a_head_gets_features_as_the_encoder_gives_them(tiny):
    model, processor = tiny
    images = {"a": random_picture(0), "b": random_picture(1)}
    features = dict(zip("ab", encode_images(model, processor, images), strict=True))
    seen = {}

    def head(images, texts):
        seen.update(images=images, texts=texts)
        return 3 * images + texts

    answer = combiner_method(model, processor, head)
    found = answer(BenchmarkPart("all", [query()], ["b"]), features)
    torch.testing.assert_close(seen["images"], features["a"][None])
    texts = encode_texts(model, processor, ["red"], normalize=False)
    torch.testing.assert_close(seen["texts"], texts)
    assert not torch.allclose(texts.norm(dim=-1), torch.ones(1))
    torch.testing.assert_close(found, torch.nn.functional.normalize(3 * features["a"][None] + texts, dim=-1))
    answer(BenchmarkPart("all", [query(further_reference_ids=["b"])], []), features)
    torch.testing.assert_close(seen["images"], (features["a"] + features["b"])[None] / 2)


def test_language_captions_each_reference_once_and_joins_several(tiny):
    model, processor = tiny
    pictures = {"a": random_picture(0), "b": random_picture(1)}
    captioned, asked = [], []

    def caption(images):
        captioned.extend(images)
        return [f"picture {image.getpixel((0, 0))[0]}" for image in images]

    def generate(prompts):
        asked.extend(prompts)
        return ["night snow"] * len(prompts)

    answer = language_method(model, processor, pictures, caption, generate)
    rows = [query(), query(query_text="blue"), query(further_reference_ids=["b"])]
    found = answer(BenchmarkPart("one", rows[:2], []), {})
    answer(BenchmarkPart("two", rows[2:], []), {})
    first, second = (f"picture {picture.getpixel((0, 0))[0]}" for picture in pictures.values())
    assert len(captioned) == 2
    assert asked == [
        CIREVL_PROMPT.format(caption=first, text="red"),
        CIREVL_PROMPT.format(caption=first, text="blue"),
        CIREVL_PROMPT.format(caption=f"{first} and {second}", text="red"),
    ]
    torch.testing.assert_close(found, encode_texts(model, processor, ["night snow"] * 2))


def test_every_method_in_one_table(evaluate, tiny, tmp_path, capsys):
    """A combiner as `hycir train` saves it, and CIReVL's way by an endpoint; each question is paid for once."""
    CombinerHead(tiny[0].config.feature_size).save_pretrained(tmp_path / "combiner")
    with FakeLLM() as server:
        further = ["--combiner", str(tmp_path / "combiner"), "--captioner", CAPTIONER, "--llm", "m"]
        command = [*evaluate, *further, "--base-url", server.url, "--html", str(tmp_path / "page.html")]
        assert main([*command, "--pair", "cirevl", "combiner"]) == 0
        asked = list(server.answered)
        assert main([*command, "--methods", "cirevl", "slerp"]) == 0
        assert len(server.requests) == len(asked) > 1
    assert set(server.answered.values()) == {1}
    table = capsys.readouterr().out
    assert all(f"| {name} |" in table for name in ("mapper", "slerp", "image only", "combiner", "cirevl"))
    saved = json.loads((tmp_path / "results.json").read_text())["results"]
    assert list(saved) == ["cirevl", "slerp"]
    assert "“cirevl”" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert read_page((tmp_path / "page.html").read_text(encoding="utf-8")).images


def test_the_endpoint_sees_the_caption_and_its_answer_is_what_is_looked_for(evaluate, tiny, cirr, tmp_path):
    with FakeLLM() as server:
        command = [*evaluate, "--captioner", CAPTIONER, "--llm", "m", "--base-url", server.url, "--methods", "cirevl"]
        assert main([*command, "--submission", str(tmp_path)]) == 0
    picture = random_picture(0, (4, 4))  # the first query's reference
    (caption,) = load_captioner(CAPTIONER)([picture])
    messages = [{"role": "user", "content": CIREVL_PROMPT.format(caption=caption, text="make it night")}]
    assert messages in [request["messages"] for request in server.requests]
    (query_feature,) = encode_texts(*tiny, [answer_to(messages)])
    names = [f"dev-{number}-0-img0" for number in range(1, 60)]
    gallery = encode_images(*tiny, {name: cirr / "dev" / f"{name}.png" for name in names})
    scores = torch.nn.functional.normalize(gallery, dim=-1) @ query_feature
    found = json.loads((tmp_path / "cirr_val_recall.json").read_text())["100"]
    assert found[0] == names[int(scores.argmax())]


def test_a_prompt_of_ones_own(evaluate, tmp_path, capsys):
    path = tmp_path / "prompt.txt"
    path.write_text("{text} of {caption} as {json}")
    with FakeLLM() as server:
        options = ["--captioner", CAPTIONER, "--llm", "m", "--base-url", server.url, "--methods", "cirevl"]
        assert main([*evaluate, *options, "--llm-prompt", str(path)]) == 0
        asked = [request["messages"][0]["content"] for request in server.requests]
        path.write_text("{text} alone")
        assert main([*evaluate, *options, "--llm-prompt", str(path)]) == 1
    assert all(prompt.startswith("make it night of ") and prompt.endswith(" as {json}") for prompt in asked)
    assert "{caption}" in capsys.readouterr().err


def test_cirevl_by_a_model_in_this_process(evaluate, tmp_path, capsys):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "llm")
    build_language_model().save_pretrained(tmp_path / "llm")
    command = [*evaluate, "--captioner", CAPTIONER, "--llm", str(tmp_path / "llm"), "--methods", "cirevl", "mapper"]
    assert main(command) == 0
    assert "| cirevl |" in capsys.readouterr().out
    assert list((tmp_path / ".cache" / "cirevl").glob("answers-*.jsonl"))


def test_an_endpoint_that_fails_is_one_line_and_keeps_the_answers(evaluate, capsys, monkeypatch):
    def last_line(url):
        options = ["--captioner", CAPTIONER, "--llm", "m", "--base-url", url, "--methods", "cirevl"]
        assert main([*evaluate, *options]) == 1
        return capsys.readouterr().err.strip().splitlines()[-1]  # below the progress bars

    monkeypatch.setattr(chat, "_FIRST_DELAY", 0.0)
    with FakeLLM(fault_share=1.0, faults=("500",)) as server:
        assert "HTTP 500" in last_line(server.url)
    with FakeLLM(model="other") as server:
        assert "'m'" in last_line(server.url)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "magic"], "magic"),
        (["--methods", "combiner"], "--combiner"),
        (["--methods", "mapper", "slerp", "--pair", "mapper", "image only"], "image only"),
    ],
)
def test_unknown_methods_are_one_line(evaluate, arguments, words, capsys):
    assert words in failing([*evaluate, *arguments], capsys)


def test_a_combiner_of_another_width_is_refused(evaluate, tmp_path, capsys):
    CombinerHead(5).save_pretrained(tmp_path / "combiner")
    assert "width 5" in failing([*evaluate, "--combiner", str(tmp_path / "combiner")], capsys)


def test_options_of_cirevl_go_together(evaluate, capsys):
    for options in (["--llm", "m"], ["--captioner", "c"], ["--base-url", "u"]):
        assert main([*evaluate, *options]) == 2
        assert "(--captioner, --llm)" in capsys.readouterr().err
