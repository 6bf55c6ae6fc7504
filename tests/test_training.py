"""The trainer: right, exact over processes and chunks, exactly resumable, and clear about what is wrong."""

import contextlib
import gc
import importlib.util
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from children import CONTEXT, exit_status, start
from conftest import MAX_LENGTH, random_picture
from safetensors import SafetensorError
from torch.nn import functional as F

from hycir_hf import HyCIRModel, HyCIRProcessor, training
from hycir_hf.hub_checks import find_leaks
from hycir_hf.images import FeatureStore, build_features, open_images
from hycir_hf.training import CombinerHead, HybridTrainer, HybridTrainingArguments
from hycir_hf.training import trainer as trainer_module
from hycir_hf.training.checkpoints import CheckpointFolder
from hycir_hf.training.data import Share, TrainingBatches
from hycir_hf.training.data.batches import CONCEPT
from hycir_hf.training.prompts import PromptEncoder
from hycir_hf.training.setup import load_model, open_streams, schedule_factor

HYBRID = {"unlabeled_batch_size": 8, "triplet_batch_size": 4, "learning_rate": 1e-3, "progress": False}


@pytest.fixture
def settings(encoder_path, picture_folder, syncir_folder, tmp_path):
    """Settings of a small hybrid training from pixels: an epoch is 2 steps of images, 5 of triplets."""
    return {
        **HYBRID,
        "encoder": str(encoder_path),
        "unlabeled": str(picture_folder),
        "triplets": str(syncir_folder),
        "steps": 7,
        "cache_features": False,
        "output_dir": str(tmp_path / "output"),
    }


def build_trainer(settings, **changes):
    return HybridTrainer(HybridTrainingArguments(**settings | changes), accelerator=Accelerator(cpu=True))


def set_up(settings, **changes):
    trainer = build_trainer(settings, **changes)
    trainer.setup()
    trainer.model.train()
    trainer.trained.train()
    return trainer


def batch_of(trainer, step=0):
    return next(iter(TrainingBatches(trainer.streams, step, step + 1)))


def gradients(trainer, step=0):
    """The loss terms of a step, and the gradient as one vector."""
    trainer.optimizer.zero_grad()
    values = trainer.backward(batch_of(trainer, step))
    return values, torch.cat([parameter.grad.flatten() for parameter in trainer.trained.parameters()])


def weights(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.trained.parameters()]).clone()


# Right


def test_zero_shot_term_is_pic2words_loss(settings):
    """Pic2Word's own way: encode the images, pad the prompts to the full length, one cross-entropy each way."""
    trainer = set_up(settings, objective="zs", mapper_dropout=0.0)
    batch = batch_of(trainer)
    values = trainer.backward(batch)
    model, processor = trainer.model, trainer.processor
    with torch.no_grad():
        images = model.encoder.get_image_features(pixel_values=batch.unlabeled.images.inputs["pixel_values"])
        tokens = model.mapper(images.pooler_output)
        ids = processor(text=[""] * 8)["input_ids"]
        ids = F.pad(ids, (0, MAX_LENGTH - ids.shape[1]), value=processor.tokenizer.pad_token_id)
        texts = F.normalize(model._encode_prompts(ids, None, tokens).pooler_output, dim=-1)
        images = F.normalize(images.pooler_output, dim=-1)
        scale = model.encoder.logit_scale.exp()
        labels = torch.arange(8)
        expected = (
            F.cross_entropy(scale * images @ texts.T, labels) + F.cross_entropy(scale * texts @ images.T, labels)
        ) / 2
    assert values["zs"] == pytest.approx(expected.item(), abs=1e-6)


def test_a_step_changes_only_the_mapper(settings):
    trainer = set_up(settings)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    figures = trainer.take_step(batch_of(trainer))
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith("mapper.")}
    assert all(parameter.grad is None for parameter in trainer.model.encoder.parameters())
    assert figures["loss"] == pytest.approx(figures["zs"] + figures["triplet"], abs=1e-5)


def test_weights_of_the_terms(settings):
    trainer = set_up(settings, zs_weight=0.5, triplet_weight=2.0)
    values = trainer.backward(batch_of(trainer))
    assert values["loss"] == pytest.approx(0.5 * values["zs"] + 2 * values["triplet"], abs=1e-5)


def test_it_learns_and_saves_a_model_that_loads(settings):
    state = build_trainer(settings, objective="zs", steps=12, learning_rate=1e-2, log_steps=1).train()
    losses = [entry["loss"] for entry in state.log]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    folder = Path(settings["output_dir"]) / "model"
    for name in ("curves.png", "README.md", "trainer_state.json", "training_config.yaml", "model.safetensors"):
        assert (folder / name).stat().st_size
    model, processor = HyCIRModel.from_pretrained(folder), HyCIRProcessor.from_pretrained(folder)
    composed = model.get_composed_features(**processor(images=[random_picture()], text=["night"], return_tensors="pt"))
    assert composed.shape == (1, 24)
    again = yaml.safe_load((folder / "training_config.yaml").read_text())
    paths = {name: settings[name] for name in settings.keys() & again.keys() if str(settings[name]).startswith("/")}
    assert HybridTrainingArguments(**again | paths | {"output_dir": settings["output_dir"]}) == HybridTrainingArguments(
        **settings | {"objective": "zs", "steps": 12, "learning_rate": 1e-2, "log_steps": 1}
    )
    assert find_leaks({path.name: path for path in folder.iterdir() if path.suffix != ".py"}) == []
    assert build_trainer(settings, objective="zs", steps=12, learning_rate=1e-2, log_steps=1).train() == state


def test_few_files_lie_between_an_unlabeled_image_and_its_loss(settings):
    """The command (cli/train.py) and at most six files, besides the settings and what looks for checkpoints."""
    package, seen = Path(training.__file__).parents[1], set()
    trainer = build_trainer(settings, objective="zs", chunk_size=4)
    sys.setprofile(lambda frame, event, value: seen.add(frame.f_code.co_filename))
    try:
        trainer.setup()
        trainer.backward(batch_of(trainer))
    finally:
        sys.setprofile(None)
    files = {Path(name).relative_to(package).as_posix() for name in seen if name.startswith(str(package))}
    files = {name for name in files if name.startswith("training/") or name == "losses.py"}
    files -= {f"training/{name}.py" for name in ("arguments", "checkpoints")}
    print(f"{1 + len(files)} files: cli/train.py, {', '.join(sorted(files))}")
    assert "training/data/batches.py" in files and 1 + len(files) <= 7


def test_learning_rate_schedule():
    factors = [schedule_factor(step, 10, 2, "cosine") for step in range(10)]
    assert factors[:3] == [0.5, 1.0, 1.0] and factors == sorted(factors[:2]) + sorted(factors[2:], reverse=True)
    assert schedule_factor(6, 10, 2, "linear") == 0.5 and schedule_factor(9, 10, 0, "constant") == 1.0


# Exact


@pytest.mark.parametrize("objective", ["hybrid", "combiner"])
def test_chunks_change_nothing(settings, objective):
    """Also with dropout in the mapper, which lies before the chunks."""
    whole_values, whole = gradients(set_up(settings, objective=objective))
    values, chunked = gradients(set_up(settings, objective=objective, chunk_size=3))
    assert values == pytest.approx(whole_values, abs=1e-6)
    assert whole.abs().max() > 0
    torch.testing.assert_close(chunked, whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", ["clip", "clip_legacy", "metaclip_2", "blip"])
def test_prompts_after_a_shared_beginning_are_the_whole_prompts(family):
    from conftest import NUM_PSEUDO_TOKENS, build_model, build_processor

    model = build_model(family)
    prompts = build_processor()(text=["make it red", "", "more dog and cat in the snow", "night"])
    tokens = model.get_pseudo_tokens(image_features=torch.randn(4, 24)).detach()
    assert tokens.shape[1] == NUM_PSEUDO_TOKENS
    wholes = tokens.clone().requires_grad_()
    expected = model.get_composed_features(**prompts, pseudo_tokens=wholes)
    expected.square()[:, 0].sum().backward()
    lengths = []
    handle = model.get_input_embeddings().register_forward_hook(lambda _, args, out: lengths.append(out.shape[1]))
    encoder, parts = PromptEncoder(model, chunk_size=2), tokens.clone().requires_grad_()
    groups = encoder.groups(prompts)
    found = torch.cat([encoder.encode(prompts, parts, rows, normalize=True) for rows in groups])
    found = found[torch.argsort(torch.cat(groups))]
    found.square()[:, 0].sum().backward()
    handle.remove()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(parts.grad, wholes.grad, atol=1e-5, rtol=0)
    shared, longest = 4, prompts["input_ids"].shape[1]  # <s> a photo of
    assert max(lengths) == (longest if family == "blip" else longest - shared)


def _in_double_precision(set_attribute):
    """Float32's own rounding hides differences between two ways of the same sum."""
    set_attribute(torch.Tensor, "float", torch.Tensor.double)
    set_attribute(trainer_module, "load_model", lambda arguments: _doubled(*load_model(arguments)))
    set_attribute(trainer_module, "CombinerHead", lambda width: CombinerHead(width).double())


def _doubled(model, processor):
    return model.double(), processor


def _two_processes(rank, port, settings, path):
    os.environ |= {
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
    }
    _in_double_precision(setattr)
    trainer = set_up(settings)
    assert trainer.share.count == 2 and torch.distributed.get_backend() == "gloo"
    values, gradient = gradients(trainer, step=1)
    torch.save((values, gradient), f"{path}/{rank}.pt")
    batch = batch_of(trainer)
    batch.triplets.num_broken = rank + 1
    assert not trainer.is_stopped
    trainer.stop_signals.is_asked = rank == 1
    assert "num_broken" not in trainer.take_step(batch) and trainer.state.num_broken == 3
    assert trainer.is_stopped  # in both, though one was asked
    end_training = trainer.accelerator.end_training
    trainer.accelerator.end_training = lambda: (_check_no_wrapper_is_left(), end_training())
    trainer.release()
    assert not torch.distributed.is_initialized()


def _check_no_wrapper_is_left():
    """A reducer that outlives its process group can wait for ever."""
    kinds = (torch.nn.parallel.DistributedDataParallel, torch.distributed.Reducer)
    assert not [one for one in gc.get_objects() if isinstance(one, kinds)] and torch.distributed.is_initialized()


@pytest.mark.parametrize("launcher", ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_processes_that_do_not_see_each_other_are_refused(settings, monkeypatch, launcher):
    accelerator = Accelerator(cpu=True)  # before: accelerate's own state must not be made from these variables
    monkeypatch.setenv(launcher, "2")
    with pytest.raises(ValueError, match=r"\b2\b.*\b1\b.*output_dir.*ACCELERATE_USE_CPU"):
        HybridTrainer(HybridTrainingArguments(**settings), accelerator=accelerator)


@pytest.fixture
def further_triplets(syncir_folder, picture_folder, tmp_path):
    """A second source: a table whose images have the first one's ids and other contents. 3 triplets of 4 are its."""
    images, table = tmp_path / "other_images", tmp_path / "further.csv"
    images.mkdir()
    for number, path in enumerate(sorted(picture_folder.glob("*.png"))[:6]):
        random_picture(seed=100 + number).save(images / path.name)
    rows = [f"{number:02}.png,{(number + 1) % 6:02}.png,make it text {number}" for number in range(6)]
    table.write_text("\n".join(["reference_id,target_id,query_text", *rows]))
    return [{"path": str(table), "images": str(images), "share": 0.7}]


@pytest.mark.parametrize(
    "changes",
    [{}, {"chunk_size": 3}, {"objective": "combiner"}, {"hn_alpha": 0.5, "hn_beta": 0.3}, {"further_triplets": True}],
)
def test_two_processes_are_one(settings, further_triplets, tmp_path, monkeypatch, changes):
    """Each takes half of the same global batch: the same loss and gradient as one process with the whole of it."""
    settings = settings | changes
    if "further_triplets" in changes:
        settings["further_triplets"] = further_triplets
    _in_double_precision(monkeypatch.setattr)
    values, gradient = gradients(set_up(settings), step=1)
    assert gradient.dtype == torch.float64
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start(_two_processes, rank, port, settings, str(tmp_path)) for rank in range(2)]
    assert [exit_status(process) for process in processes] == [0, 0]
    for rank in range(2):
        found_values, found = torch.load(tmp_path / f"{rank}.pt")
        assert found_values == pytest.approx(values, abs=1e-12)
        assert (found - gradient).abs().max() <= 1e-12


def _train_and_die(settings, step, place):
    """Train until a step, and be killed there: after it, or within the writing of its checkpoint."""
    trainer = build_trainer(settings)
    take_step, save_model = trainer.take_step, trainer_module.save_model

    def take_and_die(batch):
        figures = take_step(batch)
        if place == "step" and trainer.state.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return figures

    def save_and_die(*inputs):
        save_model(*inputs)
        if place == "save" and trainer.state.step >= step:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer.take_step = take_and_die
    trainer_module.save_model = save_and_die
    trainer.train()


@pytest.mark.parametrize("is_streaming", [False, True])
def test_killed_at_any_step_it_comes_to_the_same_weights(
    settings, syncir_folder, further_triplets, tmp_path, is_streaming
):
    """Steps 1 (before any checkpoint), 3 (in the second epoch), 5 and the saving itself, kill -9 each time."""
    settings |= {"save_steps": 2, "optimizer": "adamw", "schedule": "cosine", "weight_decay": 0.1}
    if is_streaming:
        settings |= {"further_triplets": further_triplets}  # and two sources of triplets
        images = {"unlabeled": f"{syncir_folder}:images", "unlabeled_streaming": True, "stream_buffer_size": 6}
        settings |= images
    whole = build_trainer(settings, output_dir=str(tmp_path / "whole"))
    whole.train()
    for step, place in ((1, "step"), (3, "step"), (4, "save"), (5, "step")):
        assert exit_status(start(_train_and_die, settings, step, place)) == -signal.SIGKILL
        found = build_trainer(settings).checkpoints.steps()
        assert found == [done for done in (2, 4) if done < step]
    resumed = build_trainer(settings)
    resumed.train()
    assert torch.equal(weights(resumed), weights(whole))
    logs = [[(entry["step"], entry["loss"]) for entry in trainer.state.log] for trainer in (whole, resumed)]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_saves_the_running_step(settings, tmp_path, number, caplog):
    whole = build_trainer(settings, output_dir=str(tmp_path / "whole"))
    whole.train()
    trainer, handler = build_trainer(settings), signal.getsignal(number)
    take_step = trainer.take_step

    def take_and_interrupt(batch):
        if batch.step == 2:
            signal.raise_signal(number)
        return take_step(batch)

    trainer.take_step = take_and_interrupt
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.checkpoints.steps() == [3] and "step 3" in caplog.text
    assert signal.getsignal(number) is handler
    resumed = build_trainer(settings)
    resumed.train()
    assert torch.equal(weights(resumed), weights(whole))


def test_a_second_interrupt_stops_at_once(settings):
    trainer = build_trainer(settings)

    def interrupt_twice(batch):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    trainer.take_step = interrupt_twice
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.checkpoints.steps() == []


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_saves_the_running_step(settings, tmp_path):
    """The terminal sends it to the processes that read images too."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings | {"steps": 100_000, "num_workers": 2}))
    command = [sys.executable, "-m", "hycir_hf.cli", "train", "--config", str(config), "--progress"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    lines = []
    for line in process.stderr:  # tqdm's lines end in \r, which text mode reads as an end
        lines.append(line)
        if "loss=" in line and "interrupted" not in lines:
            os.killpg(process.pid, signal.SIGINT)
            break
    lines.append(process.stderr.read())
    assert process.wait(60) == 130
    [step] = CheckpointFolder(tmp_path / "output" / "checkpoints").steps()
    assert f"step {step}" in lines[-1] and "Traceback" not in lines[-1]


def test_features_are_stored_once_by_default(settings):
    settings = settings | {"cache_features": True, "steps": 3}
    trainer = build_trainer(settings)
    trainer.train()
    for name in ("unlabeled", "triplet"):
        assert FeatureStore.open(Path(settings["output_dir"]) / "features" / name).num_views == 1
    assert isinstance(trainer.streams["unlabeled"].images, FeatureStore)
    assert isinstance(trainer.streams["triplets"].sources[0].features, FeatureStore)


def test_the_same_command_again_does_nothing(settings, monkeypatch):
    first = build_trainer(settings, steps=2).train()
    monkeypatch.setattr(HybridTrainer, "setup", lambda self: pytest.fail("it trained again"))
    assert build_trainer(settings, steps=2).train() == first
    with pytest.raises(ValueError, match=r"output.*learning_rate.*0\.001.*0\.5"):
        build_trainer(settings, steps=2, learning_rate=0.5).train()


def test_stored_features_give_what_pixels_give(settings, encoder_path, tmp_path):
    """In float32 to the last digits; the first epoch makes it, the second run only reads it."""
    caches = {"unlabeled_features": str(tmp_path / "u"), "triplet_features": str(tmp_path / "t")}
    expected_values, expected = gradients(set_up(settings))
    for _ in range(2):
        values, gradient = gradients(set_up(settings, **caches, features_dtype="float32"))
        assert values == pytest.approx(expected_values, abs=1e-5)
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=0)
        settings = {name: value for name, value in settings.items() if name != "unlabeled"}


def test_two_sources_of_triplets_have_their_shares_their_images_and_their_order(settings, further_triplets, tmp_path):
    alone = set_up(settings, triplet_batch_size=1).streams["triplets"]
    mixed = set_up(settings, further_triplets=further_triplets).streams["triplets"]
    again = set_up(settings, further_triplets=further_triplets).streams["triplets"]
    texts = []
    for step in range(9):
        batch = mixed.batch(step)
        assert batch.query_texts[:1] == alone.batch(step).query_texts
        assert all(text.startswith("make it text") for text in batch.query_texts[1:])
        assert batch.query_texts == again.batch(step).query_texts
        texts += batch.query_texts[1:]
    assert len(set(texts[:6])) == len(set(texts)) == 6 and texts[:6] != texts[6:12]  # each epoch has its order
    # Stored features give what pixels give: equal ids of two sources are two images.
    expected_values, expected = gradients(set_up(settings, further_triplets=further_triplets))
    stored = [{**further_triplets[0], "features": str(tmp_path / "f")}]
    caches = {"triplet_features": str(tmp_path / "t"), "features_dtype": "float32", "further_triplets": stored}
    for _ in range(2):
        values, gradient = gradients(set_up(settings, **caches))
        assert values == pytest.approx(expected_values, abs=1e-5)
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=0)


def test_hard_negatives_reach_the_loss(settings):
    plain, hard = (gradients(set_up(settings, **more))[0] for more in ({}, {"hn_beta": 1.0}))
    assert hard["zs"] > plain["zs"] and hard["triplet"] > plain["triplet"]


def test_a_setting_that_came_later_does_not_end_older_trainings(settings, tmp_path):
    first = build_trainer(settings, steps=2).train()
    state = tmp_path / "output" / "model" / "trainer_state.json"
    found = json.loads(state.read_text())
    del found["settings"]["hn_beta"], found["settings"]["further_triplets"]
    state.write_text(json.dumps(found))
    assert build_trainer(settings, steps=2).train() == first
    with pytest.raises(ValueError, match=r"hn_beta.*0\.5"):
        build_trainer(settings, steps=2, hn_beta=0.5).train()


def _open_streams_late(rank, barrier, settings):
    arguments = HybridTrainingArguments(**settings)
    model, processor = load_model(arguments)
    time.sleep(rank)  # the other is done by then: it alone has images to encode
    streams = open_streams(["unlabeled"], arguments, model, processor, Share(rank, 2), lambda: barrier.wait(60))
    assert len(streams["unlabeled"].images) == 20


def test_processes_that_store_features_wait_for_each_other(settings, tmp_path):
    """Also where one comes so late that the others could have finished the cache without it."""
    settings |= {"objective": "zs", "unlabeled_features": str(tmp_path / "features")}
    barrier = CONTEXT.Barrier(2)
    processes = [start(_open_streams_late, rank, barrier, settings) for rank in range(2)]
    assert [exit_status(process) for process in processes] == [0, 0]


@pytest.fixture
def other_images(picture_folder, tmp_path):
    """Makes a folder of images: the same ones elsewhere, others with the same names, ..."""

    def build(kind):
        folder = shutil.copytree(picture_folder, tmp_path / kind)
        for number, path in enumerate(sorted(folder.iterdir())):
            os.utime(path, (1, 1))
            if kind == "others":
                random_picture(100 + number).save(path)
            elif kind == "renamed":
                path.rename(path.with_stem(f"x{path.stem}"))
        if kind == "fewer":
            (folder / "07.png").unlink()
        return folder

    return build


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("moved", None),
        ("others", r"\.png"),
        ("renamed", r"x00\.png"),
        ("fewer", r"07\.png"),
    ],
)
def test_features_of_other_images_are_refused(settings, tmp_path, other_images, kind, message):
    settings |= {"objective": "zs", "unlabeled_features": str(tmp_path / "features"), "encode_batch_size": 20}
    set_up(settings)
    settings["unlabeled"] = str(other_images(kind))
    with pytest.raises(ValueError, match=rf"/features .*{message}") if message else contextlib.nullcontext():
        set_up(settings)


def test_the_triplets_images_are_those_of_their_features(settings, tmp_path, other_images):
    """The cache may hold more; where both have an image, it is the same."""
    settings |= {"objective": "triplet", "triplet_features": str(tmp_path / "features")}
    build_trainer(settings, objective="zs", unlabeled_features=settings["triplet_features"]).setup()
    set_up(settings)
    with pytest.raises(ValueError, match=r"/features .*\.png"):
        set_up(settings, triplet_images=str(other_images("others")))


def test_stored_features_are_used_without_their_images(settings, tmp_path, caplog):
    settings |= {"objective": "zs", "unlabeled_features": str(tmp_path / "features")}
    set_up(settings)
    set_up(settings, unlabeled="/nowhere")
    assert settings["unlabeled_features"] in caplog.text and "/nowhere" in caplog.text


# Checkpoints and validation


def test_checkpoints_are_kept_by_count_and_by_metric(settings):
    figures = iter([0.1, 0.5, 0.2, 0.3, 0.4])
    arguments = HybridTrainingArguments(
        **settings | {"save_steps": 1, "save_total_limit": 2, "validation_steps": 1, "metric": "recall", "steps": 5}
    )
    seen = []

    def validate(model, processor):
        seen.append((model.mapper.training, torch.is_grad_enabled()))
        return {"recall": next(figures)}

    trainer = HybridTrainer(arguments, validate, Accelerator(cpu=True))
    state = trainer.train()
    assert trainer.checkpoints.steps() == [2, 4, 5] and state.best_step == 2 and state.best_metric == 0.5
    assert seen == [(False, False)] * 5 and trainer.model.mapper.training
    HyCIRModel.from_pretrained(trainer.checkpoints.path(2))
    assert [entry["validation/recall"] for entry in state.log if "validation/recall" in entry] == [
        0.1,
        0.5,
        0.2,
        0.3,
        0.4,
    ]


def test_early_stopping_and_the_best_weights(settings):
    figures = iter([0.1, 0.5, 0.2, 0.3])
    changes = {
        "validation_steps": 1,
        "metric": "r",
        "early_stopping_patience": 2,
        "load_best_at_end": True,
        "steps": 50,
    }
    trainer = HybridTrainer(
        HybridTrainingArguments(**settings | changes), lambda *_: {"r": next(figures)}, Accelerator(cpu=True)
    )
    assert trainer.train().step == 4
    best = trainer.checkpoints.load(2)["trained"]
    assert all(torch.equal(value, best[name]) for name, value in trainer.model.mapper.state_dict().items())


def test_a_validation_by_name(settings):
    """A module's function as the settings name it, with options; a wrong name is said at once."""
    changes = {"validation": "conftest:count_parameters", "validation_options": {"factor": 2}, "steps": 1}
    state = build_trainer(settings, **changes).train()
    assert state.log[-1]["validation/parameters"] > 0
    with pytest.raises(ValueError, match="conftest:nothing"):
        build_trainer(settings, validation="conftest:nothing")


def test_a_validation_on_a_table_is_one_setting(settings, picture_folder, tmp_path):
    """The images lie beside the table, or where the options say; mistakes and broken images are found at the start."""
    photos = shutil.copytree(picture_folder, tmp_path / "photos")
    table = photos / "queries.csv"
    table.write_text("reference_id,query_text,target_ids\n00.png,make it night,01.png\n02.png,red,03.png\n")
    changes = {"validation": str(table), "validation_steps": 1, "steps": 2, "metric": "R@5", "load_best_at_end": True}
    state = build_trainer(settings, **changes).train()
    figures = [entry for entry in state.log if "validation/R@5" in entry]
    assert [set(entry) for entry in figures] == [{"step", "validation/R@1", "validation/R@5", "validation/R@10"}] * 2
    assert state.best_metric == max(entry["validation/R@5"] for entry in figures)
    elsewhere = {"validation": str(table), "validation_options": {"images": str(picture_folder), "ranks": [3]}}
    combiner = {"objective": "combiner", "output_dir": str(tmp_path / "combiner"), "steps": 1, "validation_steps": 1}
    state = build_trainer(settings, **elsewhere, **combiner).train()
    assert any("validation/R@3" in entry for entry in state.log)
    for wrong, fact in (({"imges": "x"}, "imges"), ({"ranks": [30]}, "30")):
        with pytest.raises(ValueError, match=fact):
            build_trainer(settings, **changes | {"validation_options": wrong})
    (photos / "19.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"19\.png"):
        build_trainer(settings | {"output_dir": str(tmp_path / "new")}, **changes).train()


def test_a_metric_that_is_no_number_is_never_the_best(settings):
    figures = iter([float("nan"), 0.5, float("nan"), 0.2])
    arguments = HybridTrainingArguments(**settings | {"validation_steps": 1, "metric": "r", "steps": 4})
    state = HybridTrainer(arguments, lambda *_: {"r": next(figures)}, Accelerator(cpu=True)).train()
    assert (state.best_step, state.best_metric, state.validations_without_better) == (2, 0.5, 2)


def test_a_metric_without_validation_is_refused(settings):
    with pytest.raises(ValueError, match=r"metric.*'recall'.*validation"):
        build_trainer(settings, metric="recall")


@pytest.mark.parametrize(
    ("missing", "changes", "message"),
    [
        ({"matplotlib"}, {}, r"matplotlib.*pip install hycir_hf\[train\]"),
        ({"comet_ml"}, {"report_to": ["tensorboard", "comet_ml"]}, "report_to.*pip install comet_ml"),
        ({"tensorboard", "tensorboardX"}, {"report_to": ["tensorboard"]}, "report_to.*pip install tensorboard"),
        ({"tensorboard"}, {"report_to": ["tensorboard"]}, None),
    ],
)
def test_what_is_not_installed_is_said_at_the_beginning(settings, monkeypatch, missing, changes, message):
    """Not by silence, nor after the last step."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else name)
    with pytest.raises(ImportError, match=message) if message else contextlib.nullcontext():
        build_trainer(settings, **changes)


# Faults


def test_nan_loss_stops_and_keeps_the_batch(settings, tmp_path, monkeypatch):
    changes = {"objective": "zs", "unlabeled_features": str(tmp_path / "features"), "steps": 20}
    trainer, read = set_up(settings, **changes), FeatureStore.read

    def read_broken(store, rows, views=0):
        features = read(store, rows, views)
        features[[store.ids[row] == "03.png" for row in rows]] = float("nan")
        return features

    monkeypatch.setattr(FeatureStore, "read", read_broken)
    with pytest.raises(FloatingPointError, match=r"step \d+") as caught:
        build_trainer(settings, **changes, unlabeled=None).train()  # the images would show that the features are broken
    (place,) = (tmp_path / "output").glob("*.pt")
    assert str(place) in str(caught.value)
    batch = torch.load(place, weights_only=False)
    row = batch.unlabeled.images.ids.index("03.png")
    assert batch.unlabeled.images.features[row].isnan().all()
    assert not (tmp_path / "output" / "model").exists() and torch.isfinite(weights(trainer)).all()


def test_a_nan_loss_on_a_full_disk_is_still_the_loss(settings, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    trainer = set_up(settings)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FloatingPointError, match=r"loss nan.*No space left"):
        trainer._check_finite(batch_of(trainer), {"loss": float("nan")})
    assert not [path for path in (tmp_path / "output").iterdir() if path.is_file()]


def test_the_losses_are_reduced_over_processes_once_a_step(settings, monkeypatch):
    trainer, calls = set_up(settings), []
    means = trainer._means
    monkeypatch.setattr(trainer, "_means", lambda values: (calls.append(1), means(values))[1])
    trainer.take_step(batch_of(trainer))
    assert calls == [1]


def test_a_full_disk_is_one_line_and_leaves_nothing_half(settings, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(trainer_module, "save_model", full)
        with pytest.raises(OSError, match=r"No space left.*step-00000002.*same command"):
            build_trainer(settings, save_steps=2).train()
    folder = tmp_path / "output" / "checkpoints"
    assert list(folder.iterdir()) == []
    assert build_trainer(settings, save_steps=2).train().step == 7


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (KeyError("the error"), KeyError),
        (RuntimeError("the error"), RuntimeError),
        (SafetensorError("the error"), OSError),
        (Exception("the error (os error 28)"), OSError),
    ],
)
def test_only_errors_of_the_disk_are_a_failed_save(settings, monkeypatch, tmp_path, error, kind):
    """safetensors raises its own kind on a full disk, and tokenizers a bare Exception."""

    def fail(*_):
        raise error

    monkeypatch.setattr(trainer_module, "save_model", fail)
    with pytest.raises(kind, match="the error") as caught:
        build_trainer(settings, save_steps=1).train()
    assert ("step-00000001" in str(caught.value)) == (kind is OSError)
    assert list((tmp_path / "output" / "checkpoints").iterdir()) == []


def _train_on_a_small_disk(settings):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    with pytest.raises(OSError, match="step-00000002"):
        build_trainer(settings, save_steps=2).train()


def test_files_too_large_for_the_disk(settings, tmp_path):
    """The real thing: the system refuses to write beyond a size."""
    assert exit_status(start(_train_on_a_small_disk, settings)) == 0
    assert list((tmp_path / "output" / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unlabeled_batch_size": 21}, "21 unlabeled images.*20"),
        ({"triplet_batch_size": 64}, "64 triplets"),
        ({"unlabeled": "/nowhere"}, "unlabeled=/nowhere"),
        ({"triplets": "/nowhere"}, "/nowhere"),
        ({"encoder": "/nowhere"}, "/nowhere"),
        ({"output_dir": "/proc/nowhere"}, "output_dir"),
        ({"unlabeled_features": "/nowhere/features", "unlabeled": None}, "/nowhere/features"),
    ],
)
def test_what_does_not_fit_is_said_at_setup(settings, changes, message):
    with pytest.raises((ValueError, OSError), match=message):
        build_trainer(settings, **changes).setup()


def test_features_of_another_encoder_or_preprocessing_are_refused(settings, encoder_path, picture_folder, tmp_path):
    from conftest import build_model, build_processor

    model = HyCIRModel.from_encoder(encoder_path, 3)
    processor = HyCIRProcessor.from_encoder(encoder_path, 3)
    images = open_images(str(picture_folder))
    build_features(build_model("clip_legacy"), processor, images, tmp_path / "other", progress=False)
    with pytest.raises(ValueError, match=r"/other .*encoder"):
        build_trainer(settings, unlabeled_features=str(tmp_path / "other")).setup()
    larger = build_processor()
    larger.image_processor.do_center_crop = True
    build_features(model, larger, images, tmp_path / "larger", progress=False)
    with pytest.raises(ValueError, match="preprocessing"):
        build_trainer(settings, unlabeled_features=str(tmp_path / "larger")).setup()


# Further objectives


def test_phrases_term_against_a_hand_written_one(settings, tmp_path, monkeypatch):
    """SEARLE: 1 - cosine of the phrase with the word and the phrase with the pseudo tokens."""
    path = tmp_path / "phrases.json"
    path.write_text(json.dumps({"dog": ["a dog in the snow", "category"], "cat": ["nothing of it"]}))
    trainer = set_up(settings, objective="zs+phrases", phrases=str(path), mapper_dropout=0.0)
    batch = batch_of(trainer)
    term, drawn = trainer.terms["phrases"], []
    draw = term._draw_concepts
    monkeypatch.setattr(term, "_draw_concepts", lambda features, draws: (drawn.append(draws), draw(features, draws))[1])
    values = trainer.backward(batch)
    assert (drawn[0] == batch.unlabeled.draws[:, CONCEPT]).all()  # not the view's
    model, processor = trainer.model, trainer.processor
    with torch.no_grad():
        word = model.get_text_features(**processor(text=["a dog in the snow"], compose=False))
        ids = processor.build_prompts([["a", " in the snow"]] * 8)
        pseudo = model.get_composed_features(**ids, image_features=batch.unlabeled.images.features)
    assert values["phrases"] == pytest.approx((1 - pseudo @ word.T).mean().item(), abs=1e-6)
    assert values["loss"] == pytest.approx(values["zs"] + 0.5 * values["phrases"], abs=1e-5)


def test_projection_term_needs_no_images(settings, tmp_path):
    """LinCIR: the squared error between a text's feature and that of the text with pseudo tokens for keywords."""
    texts = ["a dog on the snow", "red hat and blue hat", "night", "make it big"]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    changes = {"objective": "projection", "texts": str(tmp_path / "texts.txt"), "text_batch_size": 4}
    settings = {name: value for name, value in settings.items() if name not in ("unlabeled", "triplets")}
    trainer = set_up(settings, mapper_dropout=0.0, **changes)
    batch = batch_of(trainer)
    values = trainer.backward(batch)
    assert sorted(batch.texts.texts) == sorted(texts) and values["projection"] > 0
    model, processor = trainer.model, trainer.processor
    pieces = {
        "a dog on the snow": ["a", "on the", ""],
        "red hat and blue hat": ["", "and", ""],
        "night": ["", ""],
        "make it big": ["", "it", ""],
    }
    with torch.no_grad():
        plain = model.get_text_features(**processor(text=batch.texts.texts, compose=False), normalize=False)
        tokens = model.get_pseudo_tokens(image_features=plain + batch.texts.noise)
        masked = [
            model.get_composed_features(
                **processor.build_prompts([pieces[text]]),
                pseudo_tokens=token[None].expand(len(pieces[text]) - 1, -1, -1),
                normalize=False,
            )
            for text, token in zip(batch.texts.texts, tokens, strict=True)
        ]
    assert values["projection"] == pytest.approx(F.mse_loss(torch.cat(masked), plain).item(), abs=1e-6)


def test_combiner_learns_and_is_saved(settings):
    state = build_trainer(settings, objective="combiner", steps=10, log_steps=1, learning_rate=1e-2).train()
    assert state.log[-1]["combiner"] < state.log[0]["combiner"]
    combiner = CombinerHead.from_pretrained(f"{settings['output_dir']}/model").eval()
    composed = combiner(torch.randn(3, 24), torch.randn(3, 24))
    torch.testing.assert_close(composed.norm(dim=-1), torch.ones(3))


# Options


def test_half_precision_clipping_and_a_tracker(settings):
    changes = {
        "mixed_precision": "bf16",
        "max_grad_norm": 0.1,
        "report_to": ["tensorboard"],
        "steps": 3,
        "log_steps": 1,
    }
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        trainer = HybridTrainer(HybridTrainingArguments(**settings | changes))
        state = trainer.train()
        assert len(state.log) == 3 and all(entry["loss"] > 0 for entry in state.log)
        assert any("events" in name for _, _, names in os.walk(settings["output_dir"]) for name in names)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_only_the_text_encoder_is_compiled(settings):
    trainer = set_up(settings, compile=True)
    compiled = [name for name, module in trainer.model.named_modules() if module._compiled_call_impl is not None]
    assert compiled and all("text_model" in name for name in compiled)


@pytest.mark.slow
def test_compiled_is_the_same(settings):
    values, gradient = gradients(set_up(settings))
    compiled_values, compiled = gradients(set_up(settings, compile=True))
    assert compiled_values == pytest.approx(values, abs=1e-4)
    torch.testing.assert_close(compiled, gradient, atol=1e-4, rtol=1e-3)


def test_worker_processes_change_nothing(settings):
    alone, helped = (build_trainer(settings, output_dir=f"{settings['output_dir']}{n}", num_workers=n) for n in (0, 2))
    alone.train()
    helped.train()
    assert torch.equal(weights(alone), weights(helped))
