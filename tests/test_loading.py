"""Loading and saving as users do: quantized, offloaded, with the Hub's arguments, in shards, for other users."""

import copy
import json
import logging
import os
import stat

import accelerate
import pytest
import torch
from conftest import (
    NUM_PSEUDO_TOKENS,
    build_encoder,
    build_image_processor,
    build_model,
    build_processor,
    build_tokenizer,
    encoder_config,
    image_inputs,
    random_picture,
)
from fake_hub import TOKEN
from transformers import AutoModel, BitsAndBytesConfig, VisionTextDualEncoderModel

from hycir_hf import HyCIRConfig, HyCIRModel, HyCIRProcessor

EMOJI = "examples/emoji/hycir"
TINY = 60_000  # bytes of memory: less than a tiny model's weights


@pytest.fixture
def encoder_folder(tmp_path):
    build_encoder("clip").save_pretrained(tmp_path / "encoder")
    build_tokenizer().save_pretrained(tmp_path / "encoder")
    build_image_processor().save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def inputs_of(family="clip"):
    return build_processor()(text=["make it night", "red"]) | image_inputs(family)


def assert_same(found, expected, family="clip"):
    """The composed features, the loss and the encoder's fingerprint are the same."""
    inputs = inputs_of(family)
    with torch.no_grad():
        features, reference = found.get_composed_features(**inputs), expected.get_composed_features(**inputs)
        torch.testing.assert_close(features, reference, rtol=0, atol=1e-5)
        torch.testing.assert_close(found(**inputs).loss, expected(**inputs).loss)
    assert found.encoder_fingerprint() == expected.encoder_fingerprint()


# --- quantization


class IntegerLinear(torch.nn.Module):
    """A linear layer of integer weights and no bias: it has no float parameter."""

    def __init__(self, linear):
        super().__init__()
        scale = linear.weight.abs().max() / 127
        self.weight = torch.nn.Parameter((linear.weight / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale)

    def forward(self, x):
        assert x.is_floating_point()
        return x @ (self.weight * self.scale).T


@torch.no_grad()
def test_a_mapper_of_integer_weights(model):
    quantized = copy.deepcopy(model)
    for parent in quantized.mapper.modules():
        for name, layer in list(parent.named_children()):
            if isinstance(layer, torch.nn.Linear):
                setattr(parent, name, IntegerLinear(layer))
    for layer in model.mapper.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.bias.zero_()
    features, expected = (m.get_composed_features(**inputs_of()) for m in (quantized, model))
    assert torch.cosine_similarity(features, expected).min() > 0.99
    assert quantized(**inputs_of()).loss > 0


@torch.no_grad()
def test_the_mapper_may_have_another_precision(model):
    features = torch.randn(2, 24)
    expected = model.get_pseudo_tokens(features)
    model.encoder.bfloat16()
    assert torch.equal(model.get_pseudo_tokens(features), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("family", ["clip", "blip"])
@torch.no_grad()
def test_dynamic_quantization(family):
    model = build_model(family)
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, torch.qint8)
    features, expected = (m.get_composed_features(**inputs_of(family)) for m in (quantized, model))
    assert torch.cosine_similarity(features, expected).min() > 0.98
    assert quantized(**inputs_of(family)).loss > 0
    assert quantized.encoder_fingerprint() not in (None, model.encoder_fingerprint())


@pytest.mark.parametrize("bits", [4, 8])
@torch.no_grad()
def test_bitsandbytes(bits):
    pytest.importorskip("bitsandbytes")
    model, processor = HyCIRModel.from_pretrained(EMOJI), HyCIRProcessor.from_pretrained(EMOJI)
    config = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    quantized = HyCIRModel.from_pretrained(EMOJI, quantization_config=config)
    inputs = processor(images=[random_picture(i) for i in range(4)], text=["make it red", "", "a dog", "in snow"])
    expected, fingerprint = model.get_composed_features(**inputs), quantized.encoder_fingerprint()
    for _ in range(2):  # the fingerprint does not change what follows
        assert torch.cosine_similarity(quantized.get_composed_features(**inputs), expected).min() > 0.985
        assert quantized.encoder_fingerprint() == fingerprint != model.encoder_fingerprint()
    assert quantized(**inputs).loss > 0


@torch.no_grad()
def test_a_quantized_model_is_saved_whole_or_not_at_all(model, encoder_folder, tmp_path):
    pytest.importorskip("bitsandbytes")
    model.save_pretrained(tmp_path / "model")
    config = BitsAndBytesConfig(load_in_8bit=True)
    quantized = HyCIRModel.from_pretrained(tmp_path / "model", quantization_config=config)
    quantized.save_pretrained(tmp_path / "again")
    loaded = HyCIRModel.from_pretrained(tmp_path / "again")
    assert torch.equal(loaded.mapper.output.weight, quantized.mapper.output.weight)
    quantized.config.encoder_name_or_path = "ann/encoder"
    with pytest.raises(ValueError, match="quantization_config"):
        quantized.save_pretrained(tmp_path / "mapper", mapper_only=True)
    beside = HyCIRModel.from_encoder(encoder_folder, quantization_config=config)
    assert beside.mapper.output.weight.dtype == torch.float32
    assert beside.get_pseudo_tokens(**image_inputs("clip")).isfinite().all()
    for mapper_only in (False, True):
        with pytest.raises(ValueError, match="quantization_config"):
            beside.save_pretrained(tmp_path / "beside", mapper_only=mapper_only)


def test_siglip2_is_not_silently_wrong(tmp_path):
    """Its embeddings cast the images to their weight's precision."""
    pytest.importorskip("bitsandbytes")
    model, images = build_model("siglip2"), image_inputs("siglip2")
    model.save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_8bit=True)
    with pytest.raises(ValueError, match="llm_int8_skip_modules"):
        HyCIRModel.from_pretrained(tmp_path, quantization_config=config).get_image_features(**images)
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["patch_embedding"])
    quantized = HyCIRModel.from_pretrained(tmp_path, quantization_config=config)
    with torch.no_grad():
        features, expected = (m.get_image_features(**images) for m in (quantized, model))
    assert torch.cosine_similarity(features, expected).min() > 0.99


# --- offloading


def on_cpu(model, folder):
    return accelerate.cpu_offload(model, execution_device="cpu")


def encoder_on_cpu(model, folder):
    accelerate.cpu_offload(model.encoder, execution_device="cpu")
    return model


def on_disk(model, folder):
    return accelerate.disk_offload(model, folder, execution_device="cpu")


@pytest.mark.parametrize("family", ["clip", "blip"])
@pytest.mark.parametrize("offload", [on_cpu, encoder_on_cpu, on_disk])
def test_offloaded_by_accelerate(family, offload, tmp_path):
    model = build_model(family)
    offloaded = offload(copy.deepcopy(model), tmp_path / "offload")
    assert_same(offloaded, model, family)
    offloaded.save_pretrained(tmp_path / "model")
    assert_same(HyCIRModel.from_pretrained(tmp_path / "model"), model, family)


@pytest.mark.parametrize("memory", [TINY, 5 * TINY])
@pytest.mark.parametrize("mapper_only", [False, True])
def test_device_map_auto_with_little_memory(encoder_folder, tmp_path, memory, mapper_only):
    model = HyCIRModel.from_encoder(encoder_folder, NUM_PSEUDO_TOKENS)
    model.save_pretrained(tmp_path / "model", mapper_only=mapper_only)
    place = {"device_map": "auto", "max_memory": {"cpu": memory}, "offload_folder": str(tmp_path / "offload")}
    offloaded = HyCIRModel.from_pretrained(tmp_path / "model", **place)
    assert any(parameter.is_meta for parameter in offloaded.parameters())
    assert_same(offloaded, model)
    offloaded.save_pretrained(tmp_path / "again", mapper_only=mapper_only)
    assert_same(HyCIRModel.from_pretrained(tmp_path / "again"), model)


def test_an_offloaded_encoder_under_a_fresh_mapper(encoder_folder, tmp_path):
    place = {"device_map": "auto", "max_memory": {"cpu": TINY}, "offload_folder": str(tmp_path / "offload")}
    model = HyCIRModel.from_encoder(encoder_folder, NUM_PSEUDO_TOKENS, **place)
    assert any(parameter.is_meta for parameter in model.encoder.parameters())
    assert not any(parameter.is_meta for parameter in model.mapper.parameters())
    model.save_pretrained(tmp_path / "model")
    assert_same(HyCIRModel.from_pretrained(tmp_path / "model"), model)


# --- from_encoder's arguments


def test_the_hubs_arguments_reach_the_hub_and_stay_out_of_the_files(hub, encoder_folder, tmp_path, monkeypatch):
    AutoModel.from_pretrained(encoder_folder).push_to_hub("ann/encoder", private=True)
    build_tokenizer().push_to_hub("ann/encoder")
    build_image_processor().push_to_hub("ann/encoder")
    revision = hub.repo("ann/encoder").head
    build_encoder("clip", seed=1).push_to_hub("ann/encoder")
    monkeypatch.delenv("HF_TOKEN")
    arguments = {"token": TOKEN, "revision": revision, "cache_dir": str(tmp_path / "cache"), "force_download": True}
    with pytest.raises(OSError):  # a private repository
        HyCIRModel.from_encoder("ann/encoder", cache_dir=str(tmp_path / "cache"))
    model = HyCIRModel.from_encoder("ann/encoder", NUM_PSEUDO_TOKENS, **arguments)
    processor = HyCIRProcessor.from_encoder("ann/encoder", NUM_PSEUDO_TOKENS, **arguments)
    assert model.encoder_fingerprint() == build_model().encoder_fingerprint()
    assert list((tmp_path / "cache").glob("models--ann--encoder"))
    for mapper_only in (False, True):
        model.save_pretrained(tmp_path / "model", mapper_only=mapper_only)
        processor.save_pretrained(tmp_path / "model")
        texts = "".join(path.read_text() for path in (tmp_path / "model").glob("*.json"))
        assert not [secret for secret in (TOKEN, revision, str(tmp_path)) if secret in texts]


def test_loading_arguments_reach_the_encoder(encoder_folder, tmp_path):
    (tmp_path / "above").mkdir()
    encoder_folder.rename(tmp_path / "above" / "below")
    arguments = {"subfolder": "below", "torch_dtype": torch.bfloat16, "low_cpu_mem_usage": True, "proxies": None}
    arguments |= {
        "trust_remote_code": False,
        "device_map": {"": "cpu"},
        "use_safetensors": True,
        "prompt": "{text} {image}",
    }
    arguments |= {"attn_implementation": "eager", "mapper_hidden_size": 8, "local_files_only": True}
    model = HyCIRModel.from_encoder(tmp_path / "above", 2, **arguments)
    processor = HyCIRProcessor.from_encoder(tmp_path / "above", 2, max_length=20, **arguments)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.encoder.config._attn_implementation == "eager" and model.config.mapper_hidden_size == 8
    assert model.config.prompt == processor.prompt == "{text} {image}" and processor.max_length == 20
    model.save_pretrained(tmp_path / "mapper", mapper_only=True)
    assert HyCIRModel.from_pretrained(tmp_path / "mapper").encoder_fingerprint() == model.encoder_fingerprint()
    with pytest.raises((OSError, ValueError), match="config"):
        HyCIRModel.from_encoder(tmp_path / "above")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("num_pseudo_token", "num_pseudo_tokens"),
        ("revisions", "revision"),
        ("prompts", "prompt"),
        ("xyz", "HyCIRConfig"),
    ],
)
@pytest.mark.parametrize("kind", [HyCIRModel, HyCIRProcessor])
def test_unknown_arguments_are_refused(encoder_folder, kind, name, meant):
    with pytest.raises(TypeError, match=rf"'{name}'.*{meant}"):
        kind.from_encoder(encoder_folder, **{name: 1})


def test_a_loaded_encoder_is_not_loaded_again():
    with pytest.raises(TypeError, match="device_map"):
        HyCIRModel.from_encoder(build_encoder("clip"), device_map="auto")
    model = HyCIRModel.from_encoder(build_encoder("clip"), torch_dtype=torch.bfloat16, attn_implementation="eager")
    assert model.dtype == torch.bfloat16


SECRET = "hf_" + "a1B2" * 8


@pytest.mark.parametrize(
    "further",
    [
        {"token": SECRET},
        {"use_auth_token": "x"},
        {"api_key": "x"},
        {"anything": SECRET},
        {"proxies": {"https": "http://ann:x@proxy"}, "cache_dir": "/home/ann/cache"},
        {"nested": {"list": [{"hf_token": "x"}]}},
    ],
)
def test_a_config_never_stores_a_credential(further, tmp_path):
    nested = encoder_config("clip")
    for name, value in further.items():
        setattr(nested.text_config, name, value)
    config = HyCIRConfig(nested, **further)
    config.save_pretrained(tmp_path / "given")
    config.hf_token = "x"
    config.save_pretrained(tmp_path / "set")
    stored = json.loads((tmp_path / "given" / "config.json").read_text())
    stored["encoder_config"]["text_config"] |= further
    (tmp_path / "given" / "config.json").write_text(json.dumps(stored | further))  # as an earlier version wrote it
    HyCIRConfig.from_pretrained(tmp_path / "given").save_pretrained(tmp_path / "again")
    for name in ("set", "again"):
        text = (tmp_path / name / "config.json").read_text()
        assert not [secret for secret in (SECRET, '"x"', "ann:x@") if secret in text]
        assert '"bos_token_id"' in text and "cache_dir" not in json.loads(text)


# --- folders


@pytest.mark.parametrize("further", [{"max_shard_size": "200KB"}, {"variant": "half"}])
@pytest.mark.parametrize("variant", [None, "half"])
def test_a_mapper_in_shards_or_a_variant(encoder_folder, tmp_path, further, variant):
    further = further | ({} if variant is None else {"variant": variant})
    model = HyCIRModel.from_encoder(encoder_folder, NUM_PSEUDO_TOKENS)
    model.save_pretrained(tmp_path / "mapper", mapper_only=True, **further)
    loaded = {"variant": further["variant"]} if "variant" in further else {}
    assert_same(HyCIRModel.from_pretrained(tmp_path / "mapper", **loaded), model)
    if loaded:
        with pytest.raises(OSError, match="safetensors"):
            HyCIRModel.from_pretrained(tmp_path / "mapper")


@pytest.mark.parametrize("kind", [HyCIRModel, AutoModel])
@pytest.mark.parametrize("mapper_only", [False, True])
def test_saved_fields_can_be_overridden(encoder_folder, tmp_path, mapper_only, kind):
    model = HyCIRModel.from_encoder(encoder_folder, NUM_PSEUDO_TOKENS)
    model.save_pretrained(tmp_path / "model", mapper_only=mapper_only)
    loaded = kind.from_pretrained(
        tmp_path / "model", prompt="{text}: {image}", mapper_dropout=0.5, dtype=torch.bfloat16
    )
    assert (loaded.config.prompt, loaded.config.mapper_dropout) == ("{text}: {image}", 0.5)
    assert loaded.mapper.blocks[2].p == 0.5 and loaded.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="mapper_dropout"):
        kind.from_pretrained(tmp_path / "model", mapper_dropout=2)
    with pytest.raises(TypeError, match="mapper_dropuot"):
        kind.from_pretrained(tmp_path / "model", mapper_dropuot=0.5)


@pytest.mark.parametrize("size", [130, 110])
@pytest.mark.parametrize("family", ["clip", "blip", "siglip", "vision-text-dual-encoder"])
def test_a_resized_vocabulary_is_saved_with_the_model(family, size, tmp_path):
    build_encoder(family).save_pretrained(tmp_path / "encoder")
    model = HyCIRModel.from_encoder(tmp_path / "encoder", NUM_PSEUDO_TOKENS)
    model.resize_token_embeddings()
    assert model.config.encoder_name_or_path
    model.resize_token_embeddings(size)
    model.save_pretrained(tmp_path / "model")
    loaded = HyCIRModel.from_pretrained(tmp_path / "model")
    assert loaded.get_input_embeddings().weight.shape[0] == size
    assert loaded.encoder_fingerprint() == model.encoder_fingerprint()
    with pytest.raises(ValueError, match="encoder_name_or_path"):
        model.save_pretrained(tmp_path / "mapper", mapper_only=True)
    model.encoder.save_pretrained(tmp_path / "resized")
    model.config.encoder_name_or_path = str(tmp_path / "resized")
    model.save_pretrained(tmp_path / "mapper", mapper_only=True)
    again = HyCIRModel.from_pretrained(tmp_path / "mapper")
    assert torch.equal(again.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_a_whole_save_stores_no_local_path(tmp_path):
    both = build_encoder("vision-text-dual-encoder")
    both.vision_model.save_pretrained(tmp_path / "vision")
    both.text_model.save_pretrained(tmp_path / "text")
    logging.disable(logging.WARNING)
    encoder = VisionTextDualEncoderModel.from_vision_text_pretrained(tmp_path / "vision", tmp_path / "text")
    logging.disable(logging.NOTSET)
    encoder.save_pretrained(tmp_path / "encoder")
    for given in (encoder, tmp_path / "encoder"):
        model = HyCIRModel.from_encoder(given, NUM_PSEUDO_TOKENS)
        model.save_pretrained(tmp_path / "model")
        assert str(tmp_path) not in (tmp_path / "model" / "config.json").read_text()
    assert model.config.encoder_name_or_path == str(tmp_path / "encoder")
    loaded = HyCIRModel.from_pretrained(tmp_path / "model", encoder_name_or_path=str(tmp_path / "encoder"))
    loaded.save_pretrained(tmp_path / "mapper", mapper_only=True)
    assert HyCIRModel.from_pretrained(tmp_path / "mapper").encoder_fingerprint() == model.encoder_fingerprint()


def test_a_save_that_is_pushed_is_private_and_tells_no_local_path(hub, encoder_folder, tmp_path):
    model = HyCIRModel.from_encoder(encoder_folder, NUM_PSEUDO_TOKENS)
    model.save_pretrained(tmp_path / "model", push_to_hub=True, repo_id="ann/model")
    build_processor().save_pretrained(tmp_path / "processor", push_to_hub=True, repo_id="ann/processor")
    model.config.save_pretrained(tmp_path / "config", push_to_hub=True, repo_id="ann/config")
    model.config.push_to_hub("ann/pushed")
    for name in ("model", "processor", "config", "pushed"):
        repo = hub.repo(f"ann/{name}")
        assert repo.private and len(repo.files) > 1
        assert str(tmp_path).encode() not in b"".join(repo.files.values())
    model.save_pretrained(tmp_path / "model", push_to_hub=True, repo_id="ann/public", private=False)
    assert not hub.repo("ann/public").private
    with pytest.raises(ValueError, match="Hub id"):
        model.save_pretrained(tmp_path / "mapper", mapper_only=True, push_to_hub=True, repo_id="ann/mapper")
    assert ("model", "ann/mapper") not in hub.repos


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
@pytest.mark.parametrize("mapper_only", [False, True])
def test_weights_follow_the_umask(encoder_folder, tmp_path, umask, mapper_only):
    model = HyCIRModel.from_encoder(encoder_folder, NUM_PSEUDO_TOKENS)
    before = os.umask(umask)
    try:
        model.save_pretrained(tmp_path / "model", mapper_only=mapper_only, max_shard_size="200KB")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").iterdir()}
    assert modes == {0o666 & ~umask}
