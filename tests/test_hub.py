"""Push and pull through huggingface_hub's own client, against a Hub on the loopback address."""

import io
import json
import os
import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from aiohttp import web
from conftest import NUM_PSEUDO_TOKENS, build_encoder, build_model, build_processor, random_picture
from credentials import credentials
from fake_hub import TOKEN
from huggingface_hub import DatasetCard, HfApi, ModelCard, constants
from safetensors.torch import save

from hycir_hf import HyCIRModel
from hycir_hf import hub as hub_module
from hycir_hf.cli.main import main
from hycir_hf.hub import find_repo_type, plan_push, push_folder

PULL = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hycir_hf":
            raise ImportError("hycir_hf is blocked in this test")

sys.meta_path.insert(0, Blocker())
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor
repo_id, revision, picture, features = sys.argv[1:]
torch.set_num_threads(1)
processor = AutoProcessor.from_pretrained(repo_id, revision=revision, trust_remote_code=True)
model = AutoModel.from_pretrained(repo_id, revision=revision, trust_remote_code=True)
inputs = processor(images=[Image.open(picture)], text=["make it night"])
with torch.no_grad():
    found = [model.get_composed_features(**inputs), model.get_image_features(inputs["pixel_values"])]
torch.save([found, model.state_dict()], features)
"""


def run_python(hub, tmp_path, code, *arguments):
    """Run code in a clean process that knows the loopback Hub alone."""
    env = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def features_of(model, processor, picture):
    inputs = processor(images=[picture], text=["make it night"])
    with torch.no_grad():
        return [model.get_composed_features(**inputs), model.get_image_features(inputs["pixel_values"])]


@pytest.fixture
def folder(tmp_path):
    build_encoder("clip").save_pretrained(tmp_path / "encoder")
    model = HyCIRModel.from_encoder(tmp_path / "encoder", NUM_PSEUDO_TOKENS)
    model.save_pretrained(tmp_path / "model")
    build_processor().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_push_then_pull_in_a_clean_process_bit_by_bit(hub, folder, tmp_path, capsys):
    random_picture().save(tmp_path / "picture.png")
    assert main(["push", str(folder), "ann/emoji", "--json"]) == 0
    output = capsys.readouterr().out
    report = json.loads(output)
    repo = hub.repo("ann/emoji")
    assert repo.private and report["is_private"] and report["commit"] == repo.head
    assert {"modeling_hycir.py", "processing_hycir.py", "model.safetensors", "README.md"} <= set(report["uploaded"])
    model = HyCIRModel.from_pretrained(folder)
    with torch.no_grad():
        model.mapper.output.bias.add_(1)  # a second commit; the first is still there by its hash
    model.save_pretrained(folder)
    second = push_folder(folder, "ann/emoji")
    picture, results = str(tmp_path / "picture.png"), {}
    for revision in (report["commit"], "main"):
        run_python(hub, tmp_path, PULL, "ann/emoji", revision, picture, str(tmp_path / "features.pt"))
        results[revision] = torch.load(tmp_path / "features.pt")
    features, state = results["main"]
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    # The clean process lays its weights out as this one does once they come from a file too.
    expected = features_of(HyCIRModel.from_pretrained(folder), build_processor(), random_picture())
    assert all(torch.equal(found, value) for found, value in zip(features, expected, strict=True))
    assert not torch.equal(features[0], results[report["commit"]][0][0])
    assert second.commit == repo.head != report["commit"]
    assert TOKEN not in output and all(TOKEN.encode() not in content for content in repo.files.values())
    assert {authorization for _, path, authorization in hub.requests if "commit" in path} == {f"Bearer {TOKEN}"}


def test_secrets_and_local_paths_are_refused_and_named(hub, folder, monkeypatch, capsys):
    config = json.loads((folder / "config.json").read_text())
    assert config["encoder_name_or_path"] is None
    (folder / "config.json").write_text(json.dumps(config | {"encoder_name_or_path": str(folder.parent / "encoder")}))
    secret = credentials()["huggingface"]
    (folder / "train.yaml").write_text(f"seed: 0\ntoken: {secret}\n")
    monkeypatch.setattr(hub_module, "_self_contained", None)  # no model is loaded
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=r"config\.json \(encoder_name_or_path\)") as caught:
        push_folder(folder, "ann/emoji")
    assert "train.yaml (token)" in str(caught.value) and secret not in str(caught.value)
    assert main(["push", str(folder), "ann/emoji", "--dry-run"]) == 0
    listed = capsys.readouterr().out
    assert "config.json (encoder_name_or_path)" in listed and secret not in listed
    assert all(re.search(rf"{path.stat().st_size:,} +{re.escape(path.name)}\n", listed) for path in folder.iterdir())
    assert main(["push", str(folder), "ann/emoji", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert {leak["file"] for leak in plan["leaks"]} == {"config.json", "train.yaml"}
    assert plan["sizes"]["config.json"] == (folder / "config.json").stat().st_size
    assert hub.requests == [] and before == {path: path.read_bytes() for path in folder.iterdir()}


def test_a_dry_run_of_a_good_folder_sends_nothing(hub, folder, capsys):
    assert plan_push(folder).leaks == []
    assert main(["push", str(folder), "ann/emoji", "--public", "--dry-run"]) == 0
    assert "model.safetensors" in capsys.readouterr().out and hub.requests == []


def test_what_is_given_with_a_push_is_searched(hub, folder):
    with pytest.raises(ValueError, match="commit message"):
        push_folder(folder, "ann/emoji", commit_message=f"token {credentials()['huggingface']}")
    assert hub.repos == {}


def test_an_evaluated_models_figures_are_in_the_pushed_card(hub, folder):
    figure = {"mean": 0.25, "low": 0.2, "high": 0.3}
    results = {"format": "hycir-evaluation", "format_version": 1, "benchmark": "cirr", "split": "val"}
    (folder / "results.json").write_text(json.dumps(results | {"results": {"mapper": {"all": {"R@1": figure}}}}))
    (folder / "README.md").write_text("---\ntags: [mine]\n---\n\n# My model\n")
    push_folder(folder, "ann/emoji")
    [result] = ModelCard(hub.repo("ann/emoji").files["README.md"].decode()).data.eval_results
    assert (result.dataset_type, result.metric_type, result.metric_value) == ("cirr", "R@1", 25.0)
    assert (folder / "README.md").read_text() == "---\ntags: [mine]\n---\n\n# My model\n"


def test_special_tokens_are_no_secrets(hub, folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["pad_token"] == "<pad>"
    assert "tokenizer_config.json" in push_folder(folder, "ann/emoji").uploaded


def test_what_is_no_part_of_the_model_stays_here(hub, folder):
    for name in ("optimizer.pt", ".cache/x.json", "checkpoint-5/model.safetensors", "__pycache__/x.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    (folder.parent / "private.txt").write_text("private")
    (folder / "link.txt").symlink_to(folder.parent / "private.txt")
    report = push_folder(folder, "ann/emoji")
    expected = {"optimizer.pt", ".cache/x.json", "checkpoint-5/model.safetensors", "__pycache__/x.py", "link.txt"}
    assert set(report.left_out) == expected and not expected & set(hub.repo("ann/emoji").files)


def test_linked_code_is_pushed_as_files(hub, folder, tmp_path):
    """As in examples/emoji/hycir."""
    (tmp_path / "code").mkdir()
    names = [path.name for path in folder.glob("*.py")]
    for name in names:
        (folder / name).rename(tmp_path / "code" / name)
        (folder / name).symlink_to(tmp_path / "code" / name)
    assert set(names) <= set(push_folder(folder, "ann/emoji").uploaded) and "modeling_hycir.py" in names


def test_a_folder_of_links_is_refused(hub, folder, tmp_path):
    (tmp_path / "cache").mkdir()
    for path in folder.iterdir():
        (tmp_path / "cache" / path.name).symlink_to(path)
    with pytest.raises(ValueError, match=r"left out: .*model\.safetensors"):
        push_folder(tmp_path / "cache", "ann/emoji")
    assert hub.repos == {}


def test_a_mapper_whose_encoder_is_a_local_folder_is_pushed_whole(hub, folder, tmp_path):
    model = HyCIRModel.from_pretrained(folder, encoder_name_or_path=str(tmp_path / "encoder"))
    model.save_pretrained(tmp_path / "mapper", mapper_only=True)
    build_processor().save_pretrained(tmp_path / "mapper")
    push_folder(tmp_path / "mapper", "ann/emoji")
    files = hub.repo("ann/emoji").files
    assert not json.loads(files["config.json"])["mapper_only"]
    (tmp_path / "pulled").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "pulled" / name).write_bytes(files[name])
    pulled = HyCIRModel.from_pretrained(tmp_path / "pulled").state_dict()
    assert all(torch.equal(pulled[name], value) for name, value in model.state_dict().items())


def test_an_old_shard_goes_and_other_files_stay(hub, folder, capsys):
    push_folder(folder, "ann/emoji")
    repo = hub.repo("ann/emoji")
    mine = dict.fromkeys(("LICENSE", "adapter.safetensors", "other/model.safetensors", "rows.parquet"), b"mine")
    repo.commit("by hand", repo.files | mine | {"model-00001-of-00002.safetensors": b"old"})
    assert main(["push", str(folder), "ann/emoji"]) == 0
    assert "Old parts deleted there: model-00001-of-00002.safetensors\n" in capsys.readouterr().out
    assert "model-00001-of-00002.safetensors" not in repo.files and mine.items() <= repo.files.items()


def test_what_a_model_saved_anew_drops_is_named(hub, folder, tmp_path, capsys):
    model = HyCIRModel.from_pretrained(folder, encoder_name_or_path=str(tmp_path / "encoder"))
    model.save_pretrained(tmp_path / "mapper", mapper_only=True)
    build_processor().save_pretrained(tmp_path / "mapper")
    own = ["custom.py", "extra.safetensors", *(f"{number}.pt" for number in range(5))]
    for name in own:
        (tmp_path / "mapper" / name).write_bytes(save({}))
    assert set(push_folder(tmp_path / "mapper", "ann/emoji").left_out) == set(own)
    assert main(["push", str(tmp_path / "mapper"), "ann/emoji"]) == 0
    assert "Left out: 0.pt, 1.pt, 2.pt, 3.pt, 4.pt and 2 more\n" in capsys.readouterr().out


TRAINED = """---
library_name: hycir_hf
tags: [hycir]
---

# Mapper

```python
model = HyCIRModel.from_pretrained(folder)
processor = HyCIRProcessor.from_pretrained(folder)
```
"""


def test_a_trained_models_card_is_completed(hub, folder):
    (folder / "README.md").write_text(TRAINED)
    config = json.loads((folder / "config.json").read_text())
    encoder = {"encoder_name_or_path": "openai/clip-vit-large-patch14"}
    (folder / "config.json").write_text(json.dumps(config | encoder))
    options = ["--license", "apache-2.0", "--dataset", "ann/triplets", "--dataset", "ann/cc3m"]
    assert main(["push", str(folder), "ann/emoji", *options]) == 0
    card = ModelCard(hub.repo("ann/emoji").files["README.md"].decode())
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "tags": ["hycir"],
        "pipeline_tag": "image-feature-extraction",
        "base_model": "openai/clip-vit-large-patch14",
        "license": "apache-2.0",
        "datasets": ["ann/triplets", "ann/cc3m"],
    }
    assert card.text.count('from_pretrained("ann/emoji")') == 2 and "(folder)" not in card.text
    (folder / "README.md").unlink()
    push_folder(folder, "ann/emoji", license="mit", datasets=["ann/triplets"])
    card = ModelCard(hub.repo("ann/emoji").files["README.md"].decode())
    assert (card.data.license, card.data.datasets) == ("mit", ["ann/triplets"])


def test_what_a_card_says_itself_stays(hub, folder):
    (folder / "README.md").write_text(
        "---\nlibrary_name: other\nlicense: mit\n---\nfolder = '.'; x.from_pretrained(folder)"
    )
    push_folder(folder, "ann/emoji")
    card = ModelCard(hub.repo("ann/emoji").files["README.md"].decode())
    assert (card.data.library_name, card.data.license) == ("other", "mit") and "(folder)" in card.text


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", "{", r"config\.json.*JSON"),
        ("config.json", "[1]", r"config\.json.*a list"),
        ("README.md", "---\nlicense: [\n---\n# x", r"README\.md"),
        ("processor_config.json", None, r"processor_config\.json"),
        ("results.json", '{"format": "hycir-evaluation"}', r"'format_version' in .*results\.json"),
    ],
)
def test_a_broken_folder_is_one_line_and_makes_no_repository(hub, folder, capsys, name, text, message):
    (folder / name).unlink(missing_ok=True)
    if text is not None:
        (folder / name).write_text(text)
    assert main(["push", str(folder), "ann/emoji"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert re.search(message, lines[-1]) and lines[-1].endswith(".") and hub.repos == {}


@pytest.mark.parametrize("name", ["emoji", "a/b/c", "a b/c", "ann/"])
def test_a_name_without_its_owner_is_refused_before_anything_is_made(hub, folder, capsys, name):
    assert main(["push", str(folder), name]) == 1
    assert "OWNER/NAME" in capsys.readouterr().err and hub.repos == {} and hub.requests == []


def test_a_hub_that_does_not_answer_is_one_line(hub, folder, monkeypatch, capsys):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert main(["push", str(folder), "ann/emoji"]) == 1
    assert re.search("ann/emoji.*HF_ENDPOINT", capsys.readouterr().err.splitlines()[-1])


def test_a_card_that_the_hub_refuses(hub, folder, capsys, monkeypatch):
    answer = web.json_response({"errors": [{"message": '"license" must be one of these'}]}, status=400)
    monkeypatch.setattr(hub, "validate", lambda body: answer)
    assert main(["push", str(folder), "ann/emoji", "--license", "none"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "README.md" in error and '"license" must be one of these' in error


def test_public_asks_before(hub, folder, monkeypatch, capsys):
    command = ["push", str(folder), "ann/emoji", "--public"]
    for answer in ("", "n\n"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        assert main(command) == 1 and hub.repos == {}
    assert "--yes" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert main(command) == 0 and not hub.repo("ann/emoji").private
    assert "(public)" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"ann/emoji is public.*private=False"):
        push_folder(folder, "ann/emoji")
    assert main([*command, "--yes"]) == 0
    push_folder(folder, "ann/private")
    capsys.readouterr()
    assert main(["push", str(folder), "ann/private", "--public", "--yes"]) == 0
    assert "ann/private was private and stays" in capsys.readouterr().out and hub.repo("ann/private").private


def test_a_wrong_token_is_an_error_that_does_not_show_it(hub, folder, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrongwrongwrong")
    assert main(["push", str(folder), "ann/emoji"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("hycir push: error: ") and "ann/emoji" in error and "401" in error
    assert error.count("\n") == 1 and "hf_wrong" not in error and hub.repos == {}


def test_push_to_hub_of_the_model_itself(hub, folder):
    model = HyCIRModel.from_pretrained(folder)
    model.push_to_hub("ann/direct")
    build_processor().push_to_hub("ann/processor")
    assert hub.repo("ann/processor").private
    build_processor().push_to_hub("ann/direct")
    repo = hub.repo("ann/direct")
    assert repo.private and {"modeling_hycir.py", "processing_hycir.py", "model.safetensors"} <= set(repo.files)
    assert json.loads(repo.files["config.json"])["encoder_name_or_path"] is None
    assert str(folder.parent).encode() not in b"".join(repo.files.values())


@pytest.mark.parametrize("name", ["../ann", "/ann", "C:\\Users\\ann\\encoder", "C:/encoder", "~/encoder", "a/b/c"])
def test_no_local_encoder_is_named_in_a_push_to_hub(hub, name):
    model = build_model(encoder_name_or_path=name)
    model.push_to_hub("ann/direct")
    assert json.loads(hub.repo("ann/direct").files["config.json"])["encoder_name_or_path"] is None
    assert model.config.encoder_name_or_path == name


def test_a_hub_encoder_is_named_in_a_push_to_hub(hub):
    build_model(encoder_name_or_path="openai/clip-vit-large-patch14").push_to_hub("ann/direct")
    config = json.loads(hub.repo("ann/direct").files["config.json"])
    assert config["encoder_name_or_path"] == "openai/clip-vit-large-patch14"


def write_triplets(folder, number_of_parts):
    """A folder as SynCir leaves it."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / ".work").mkdir(exist_ok=True)
    (folder / ".work" / "answers.jsonl").write_text("{}")
    for part in (folder / "images").iterdir():
        part.unlink()
    for number in range(number_of_parts):
        pq.write_table(pa.table({"image_id": [f"{number}.png"]}), folder / "images" / f"part-{number}.parquet")
    pq.write_table(pa.table({"reference_id": ["0.png"], "query_text": ["make it red"]}), folder / "triplets.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: triplets\n  default: true\n  data_files:\n"
        "  - {split: train, path: triplets.parquet}\n- config_name: images\n  data_files:\n"
        '  - {split: train, path: images/part-*.parquet}\n---\n\ntriplets = load_dataset("PATH", "triplets")\n'
        "captions by captioner\n"
    )
    recipe = {"settings": {"captioner": "captioner", "seed": 0}, "counts": {"kept": 1}}
    (folder / "recipe.json").write_text(json.dumps(recipe))


LOAD = """
from datasets import load_dataset
triplets, images = (load_dataset("ann/triplets", name, split="train") for name in ("triplets", "images"))
print(triplets[0], len(images))
"""


def test_a_syncir_data_set(hub, tmp_path):
    write_triplets(tmp_path / "triplets", 3)
    push_folder(tmp_path / "triplets", "ann/triplets")
    repo = hub.repo("ann/triplets", "dataset")
    write_triplets(tmp_path / "triplets", 2)
    report = push_folder(tmp_path / "triplets", "ann/triplets")
    assert repo.private and report.left_out == [".work/answers.jsonl"] and ".work/answers.jsonl" not in repo.files
    assert sorted(path for path in repo.files if path.startswith("images/")) == [
        "images/part-0.parquet",
        "images/part-1.parquet",
    ]
    card = repo.files["README.md"].decode()
    assert 'load_dataset("ann/triplets", "triplets")' in card
    assert report.deleted == ["images/part-2.parquet"]
    output = run_python(hub, tmp_path, LOAD)
    assert output.splitlines()[-1] == "{'reference_id': '0.png', 'query_text': 'make it red'} 2"


def test_a_data_sets_licence_is_in_its_card(hub, tmp_path):
    write_triplets(tmp_path / "triplets", 1)
    push_folder(tmp_path / "triplets", "ann/triplets", license="cc-by-4.0")
    card = DatasetCard(hub.repo("ann/triplets", "dataset").files["README.md"].decode())
    assert card.data.license == "cc-by-4.0" and len(card.data.configs) == 2 and "ann/triplets" in card.text
    with pytest.raises(ValueError, match="datasets="):
        push_folder(tmp_path / "triplets", "ann/triplets", datasets=["ann/cc3m"])


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json.*recipe\.json"):
        find_repo_type(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ValueError, match=r"recipe\.json"):
        find_repo_type(tmp_path)


def test_the_client_reads_what_was_pushed(hub, folder):
    report = push_folder(folder, "ann/emoji", commit_message="first")
    info = HfApi().model_info("ann/emoji")
    assert info.sha == report.commit and info.private
    assert report.url.endswith("/ann/emoji")


def test_a_model_saved_without_code_gets_it(hub, tmp_path):
    build_model().save_pretrained(tmp_path / "model")
    build_processor().save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    del config["auto_map"]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    push_folder(tmp_path / "model", "ann/emoji")
    assert "modeling_hycir.py" in hub.repo("ann/emoji").files
