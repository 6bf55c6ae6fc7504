"""Push and pull through huggingface_hub's own client, against a Hub on the loopback address."""

import io
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import NUM_PSEUDO_TOKENS, build_encoder, build_model, build_processor, random_picture
from fake_hub import TOKEN
from huggingface_hub import HfApi, ModelCard

from hycir_hf import HyCIRModel
from hycir_hf.cli import main
from hycir_hf.hub import find_repo_type, push_folder

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


def test_local_paths_stay_here(hub, folder):
    assert json.loads((folder / "config.json").read_text())["encoder_name_or_path"] == str(folder.parent / "encoder")
    results = {"benchmark": "emoji", "split": "val", "metrics": {"R@1": 0.5}, "data": str(folder / "gallery")}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "README.md").write_text(f"Evaluated on {folder / 'gallery'}, see https://x.example{folder}/gallery.\n")
    (folder / "train.yaml").write_text(f"data: {folder}/cc3m  # captions\nsteps: 5\n")
    (folder / "log.jsonl").write_text(json.dumps({"step": 1, "output": f"{folder}/run"}) + "\n")
    report = push_folder(folder, "ann/emoji")
    files = hub.repo("ann/emoji").files
    assert report.stripped == [
        *("config.json: encoder_name_or_path", "log.jsonl: output", "results.json: data", "train.yaml: data")
    ]
    assert files["train.yaml"] == b"data: cc3m  # captions\nsteps: 5\n"
    assert json.loads(files["log.jsonl"]) == {"step": 1, "output": "run"}
    assert "encoder_name_or_path" not in json.loads(files["config.json"])
    assert json.loads(files["results.json"])["data"] == "gallery" and files["README.md"].startswith(
        b"Evaluated on gallery, see https"
    )
    others = [content for name, content in files.items() if name != "README.md"]
    assert all(str(folder.parent).encode() not in content for content in others)
    assert f"https://x.example{folder}/gallery" in files["README.md"].decode()  # a URL is no path of this machine
    assert str(folder) in (folder / "README.md").read_text()  # the folder itself stays as it is


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("config.json", '{"model_type": "hycir", "api_key": "abc"}', "a value for 'api_key'"),
        ("extra.json", '{"deep": [{"hf_token": "abc"}]}', "a value for 'hf_token'"),
        ("README.md", "Log in with hf_" + "a" * 30, "a Hugging Face token"),
        ("notes.txt", "key = sk-" + "b" * 30, "an API key"),
        ("run.yaml", "llm:\n  api_key: abc\n", "a value for 'api_key'"),
        ("log.jsonl", '{"step": 1}\n{"password": "abc"}\n', "a value for 'password'"),
        ("run.yaml", "base_url: https://ann:pass@llm.example/v1", "a URL with a password"),
    ],
)
def test_secrets_are_refused_and_not_repeated(hub, folder, name, text, what):
    (folder / name).write_text(text)
    if name == "config.json":  # found before anything is made of it
        (folder / name).write_text(json.dumps(json.loads(text) | {"auto_map": {}}))
        (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"{name} holds {what}") as caught:
        push_folder(folder, "ann/emoji")
    assert "a" * 30 not in str(caught.value) and "b" * 30 not in str(caught.value) and "pass@" not in str(caught.value)
    assert hub.repos == {}


def test_a_file_that_cannot_be_searched_is_refused(hub, folder):
    (folder / "extra.json").write_text('{"token": ')
    with pytest.raises(ValueError, match=r"extra\.json to be well-formed"):
        push_folder(folder, "ann/emoji")
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


def test_a_folder_of_links_is_refused(hub, folder, tmp_path):
    (tmp_path / "cache").mkdir()
    for path in folder.iterdir():
        (tmp_path / "cache" / path.name).symlink_to(path)
    with pytest.raises(ValueError, match=r"found none to upload \(left out: .*model\.safetensors"):
        push_folder(tmp_path / "cache", "ann/emoji")
    assert hub.repos == {}


def test_a_mapper_whose_encoder_is_a_local_folder_is_pushed_whole(hub, folder, tmp_path):
    model = HyCIRModel.from_pretrained(folder)
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


def test_an_old_shard_goes_and_other_files_stay(hub, folder):
    push_folder(folder, "ann/emoji")
    repo = hub.repo("ann/emoji")
    repo.commit("by hand", repo.files | {"model-00001-of-00002.safetensors": b"old", "LICENSE": b"mine"})
    push_folder(folder, "ann/emoji")
    assert "model-00001-of-00002.safetensors" not in repo.files and repo.files["LICENSE"] == b"mine"


def test_public_asks_before(hub, folder, monkeypatch, capsys):
    command = ["push", str(folder), "ann/emoji", "--public"]
    for answer in ("", "n\n"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        assert main(command) == 1 and hub.repos == {}
    assert "Expected a yes to publish" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert main(command) == 0 and not hub.repo("ann/emoji").private
    assert "(public)" in capsys.readouterr().out
    with pytest.raises(ValueError, match="ann/emoji to be private, but it is public"):
        push_folder(folder, "ann/emoji")
    assert main([*command, "--yes"]) == 0


def test_a_wrong_token_is_an_error_that_does_not_show_it(hub, folder, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrongwrongwrong")
    assert main(["push", str(folder), "ann/emoji"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("hycir push: error:") and "hf_wrong" not in error and hub.repos == {}


def test_push_to_hub_of_the_model_itself(hub, folder):
    model = HyCIRModel.from_pretrained(folder)
    model.push_to_hub("ann/direct")
    build_processor().push_to_hub("ann/processor")
    assert hub.repo("ann/processor").private
    build_processor().push_to_hub("ann/direct")
    repo = hub.repo("ann/direct")
    assert repo.private and {"modeling_hycir.py", "processing_hycir.py", "model.safetensors"} <= set(repo.files)
    assert json.loads(repo.files["config.json"])["encoder_name_or_path"] is None
    assert model.config.encoder_name_or_path == str(folder.parent / "encoder")
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
        f"captions by {folder.parent}/captioner\n"
    )
    recipe = {"settings": {"captioner": f"{folder.parent}/captioner", "seed": 0}, "counts": {"kept": 1}}
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
    assert json.loads(repo.files["recipe.json"])["settings"]["captioner"] == "captioner"
    card = repo.files["README.md"].decode()
    assert 'load_dataset("ann/triplets", "triplets")' in card and "captions by captioner" in card
    output = run_python(hub, tmp_path, LOAD)
    assert output.splitlines()[-1] == "{'reference_id': '0.png', 'query_text': 'make it red'} 2"


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json.* or .*recipe\.json"):
        find_repo_type(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ValueError, match="found neither"):
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
