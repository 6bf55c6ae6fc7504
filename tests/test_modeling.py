"""The contracts of HyCIRModel: what is injected, pooled, trained, saved."""

import copy
import logging
import threading
import warnings

import pytest
import torch
from conftest import (
    BOS,
    EOS,
    FAMILIES,
    NUM_PSEUDO_TOKENS,
    PAD,
    build_encoder,
    build_model,
    build_processor,
    encoder_config,
    image_inputs,
    random_picture,
)
from transformers import (
    AutoModel,
    BlipForConditionalGeneration,
    CLIPVisionConfig,
    RobertaConfig,
    Trainer,
    TrainingArguments,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from hycir_hf import Gallery, HyCIRConfig, HyCIRModel, PseudoTokenMapper

ORDINARY = [40, 7, 23]  # the ordinary tokens whose embeddings are injected


def text_mask(family, ids):
    return None if family.startswith("siglip") else (ids != PAD).long()


def plain_ids(start, eos=EOS):
    """Make two rows, one padded, with the ordinary tokens at `start` of each."""
    rows = [[BOS if eos == EOS else 60, 9, 10, 11, 12, 13, eos], [BOS if eos == EOS else 60, 14, 15, eos]]
    rows = [row[:start] + ORDINARY + row[start:] for row in rows]
    length = max(map(len, rows))
    return torch.tensor([row + [PAD] * (length - len(row)) for row in rows])


def with_placeholders(ids, start, placeholder):
    ids = ids.clone()
    ids[:, start : start + len(ORDINARY)] = placeholder
    return ids


def composed(model, ids, mask, tokens):
    return model._encode_prompts(ids, mask, tokens).pooler_output


def plain(model, ids, mask):
    return model._adapter.text_output(model.encoder, ids, mask).pooler_output


# --- injection and pooling


@pytest.mark.parametrize("start", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_ordinary_embedding_injected_is_the_plain_forward_bitwise(family, start):
    model, ids = build_model(family), plain_ids(start)
    mask = text_mask(family, ids)
    tokens = model.get_input_embeddings()(torch.tensor([ORDINARY, ORDINARY]))  # (I, K, H)
    prompts = with_placeholders(ids, start, model.config.placeholder_token_id)
    assert torch.equal(composed(model, prompts, mask, tokens), plain(model, ids, mask))
    other = composed(model, prompts, mask, tokens.flip(1))
    assert not torch.equal(other, plain(model, ids, mask))  # the tokens are read, and in order


@torch.no_grad()
def test_another_pair_of_models_whose_positions_start_after_padding():
    """RoBERTa counts positions over the ids that are not padding, so what stands at the placeholders matters."""
    layers = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = RobertaConfig(**layers, vocab_size=120, max_position_embeddings=79)  # <s> 0, <pad> 1, </s> 2
    vision = CLIPVisionConfig(**layers, image_size=16, patch_size=8)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=24)
    torch.manual_seed(0)
    model = HyCIRModel.from_encoder(VisionTextDualEncoderModel(config), NUM_PSEUDO_TOKENS)
    model.get_input_embeddings().weight.normal_()
    ids = torch.tensor([[0, 9, *ORDINARY, 10, 2, 1], [0, 14, *ORDINARY, 2, 1, 1]])
    tokens = model.get_input_embeddings()(torch.tensor([ORDINARY, ORDINARY]))
    mask = (ids != 1).long()
    assert torch.equal(composed(model, with_placeholders(ids, 2, -1), mask, tokens), plain(model, ids, mask))
    assert model.get_image_features(**image_inputs("clip")).shape == (2, 24)


@pytest.mark.parametrize("placeholder", [-1, 3, 55, 110, EOS - 2])
@pytest.mark.parametrize("start", [0, 1, 3])
@pytest.mark.parametrize("family", ["clip", "clip_legacy"])
@torch.no_grad()
def test_clip_pools_at_eos_wherever_the_placeholders_are(family, start, placeholder):
    """Legacy CLIP pools at the largest id: here EOS is 100, and some placeholders' ids are above it."""
    eos = 100
    model = build_model(family, placeholder_token_id=placeholder)
    if family == "clip":
        model.encoder.text_model.eos_token_id = eos
    ids = plain_ids(start, eos=eos)
    mask = (ids != PAD).long()
    tokens = model.get_input_embeddings()(torch.tensor([ORDINARY, ORDINARY]))
    prompts = with_placeholders(ids, start, placeholder)
    assert torch.equal(composed(model, prompts, mask, tokens), plain(model, ids, mask))
    states = model.encoder.text_model(input_ids=ids, attention_mask=mask)
    at_eos = states.last_hidden_state[torch.arange(2), (ids == eos).int().argmax(-1)]
    assert torch.equal(states.pooler_output, at_eos)


@torch.no_grad()
def test_pseudo_tokens_land_in_order(model):
    processor = build_processor()
    inputs = processor(text=["make it night", "red hat"])
    tokens = torch.randn(2, NUM_PSEUDO_TOKENS, 32)
    seen = []
    embeddings = model.encoder.text_model.embeddings
    spy = embeddings.register_forward_hook(lambda module, args, output: seen.append(output))
    model._encode_prompts(inputs["input_ids"], inputs["attention_mask"], tokens)
    spy.remove()
    positions = embeddings.position_embedding(torch.arange(inputs["input_ids"].shape[1]))
    at = inputs["input_ids"] == model.config.placeholder_token_id
    landed = (seen[0] - positions)[at].view(2, NUM_PSEUDO_TOKENS, 32)
    torch.testing.assert_close(landed, tokens, rtol=0, atol=1e-6)


@torch.no_grad()
def test_several_images_fill_the_rows_in_order(model):
    processor = build_processor()
    pictures = [random_picture(i) for i in range(3)]
    inputs = processor(images=[[pictures[0], pictures[1]], [pictures[2]]], text=["the first on the second", ""])
    both = model.get_composed_features(**inputs)
    alone = model.get_composed_features(
        **processor(images=[[pictures[0], pictures[1]]], text=["the first on the second"])
    )
    swapped = model.get_composed_features(**processor(images=[pictures[1::-1]], text=["the first on the second"]))
    torch.testing.assert_close(both[:1], alone)
    assert not torch.allclose(alone, swapped)


@pytest.mark.parametrize("family", [f for f in FAMILIES if not f.startswith("siglip")])
@torch.no_grad()
def test_trimmed_padding_equals_the_full_length(family):
    model, ids = build_model(family), plain_ids(2)
    tokens = model.get_input_embeddings()(torch.tensor([ORDINARY, ORDINARY]))
    prompts = with_placeholders(ids, 2, -1)
    padded = torch.nn.functional.pad(prompts, (0, 77 - ids.shape[1]), value=PAD)
    trimmed = composed(model, prompts, text_mask(family, prompts), tokens)
    torch.testing.assert_close(composed(model, padded, text_mask(family, padded), tokens), trimmed, rtol=0, atol=1e-5)


@torch.no_grad()
def test_wrong_numbers_of_placeholders_are_refused(model):
    inputs = build_processor(num_pseudo_tokens=NUM_PSEUDO_TOKENS + 1)(text=["red hat"])
    with pytest.raises(ValueError, match=rf"\b4 placeholders.* 3\b.*num_pseudo_tokens is {NUM_PSEUDO_TOKENS}"):
        model.get_composed_features(**inputs, **image_inputs("clip", 1))
    with pytest.raises(ValueError, match=r"\b4 placeholders.*compose=False"):
        model.get_text_features(**inputs)
    assert len(model.get_input_embeddings()._forward_hooks) == 1  # the one for compiled code


@torch.no_grad()
def test_the_hook_is_gone_after_an_error_and_threads_do_not_mix(model):
    ids = plain_ids(2)
    mask, prompts = (ids != PAD).long(), with_placeholders(ids, 2, -1)
    with pytest.raises(ValueError):
        model._encode_prompts(torch.nn.functional.pad(prompts, (0, 99)), None, torch.zeros(2, 3, 32))
    assert len(model.get_input_embeddings()._forward_hooks) == 1  # the one for compiled code
    tokens = [torch.full((2, 3, 32), float(i)) for i in range(4)]
    expected = [composed(model, prompts, mask, t) for t in tokens]
    wrong = []

    @torch.no_grad()
    def work(i):
        for _ in range(20):
            if not torch.equal(composed(model, prompts, mask, tokens[i]), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not wrong


# --- features and loss


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_features_have_unit_norm_and_the_joint_width(family):
    model = build_model(family)
    processor = build_processor(pad_to_max_length=family.startswith("siglip"))
    images = image_inputs(family)
    out = model(**processor(text=["make it night", ""]), **images)
    unnormalised = model.get_image_features(**images, normalize=False)
    features = [
        model.get_image_features(**images),
        model.get_text_features(**processor(text=["red hat", "a dog"], compose=False)),
        model.get_composed_features(**processor(text=["make it night", ""]), **images),
        out.target_features,
    ]
    for value in features:
        assert value.shape == (2, model.config.feature_size)
        torch.testing.assert_close(value.norm(dim=-1), torch.ones(2))
    assert model.get_pseudo_tokens(**images).shape == (2, NUM_PSEUDO_TOKENS, 32)
    assert torch.equal(model.get_pseudo_tokens(unnormalised), model.get_pseudo_tokens(**images))
    torch.testing.assert_close(out.query_features, features[2])
    torch.testing.assert_close(out.logits_per_query, model.logit_scale * features[2] @ features[3].T)


@torch.no_grad()
def test_loss_with_and_without_targets(model):
    inputs = build_processor()(text=["make it night", ""]) | image_inputs("clip")
    targets = image_inputs("clip", seed=5)["pixel_values"]
    zero_shot = model(**inputs)
    triplet = model(**inputs, target_pixel_values=targets)
    cached = model(**inputs, target_features=3 * model.get_image_features(targets))
    assert torch.equal(zero_shot.target_features, model.get_image_features(inputs["pixel_values"]))
    assert zero_shot.loss != triplet.loss
    torch.testing.assert_close(triplet.loss, cached.loss)
    assert model(**inputs, return_loss=False).loss is None


def test_missing_inputs_are_named(model):
    with pytest.raises(ValueError, match="input_ids"):
        model(pixel_values=image_inputs("clip")["pixel_values"])
    for call in (model, model.get_composed_features):
        with pytest.raises(ValueError, match=r"pixel_values .*image_features"):
            call(**build_processor()(text=["a"]))


@torch.no_grad()
def test_arguments_of_another_name_are_refused(model):
    """The image inputs are taken by `**`: Python alone would let a typo through."""
    inputs, features = build_processor()(text=["a", "b"]), torch.randn(2, 24)
    tokens = model.get_pseudo_tokens(features)
    for call in (
        lambda: model.get_image_features(**image_inputs("clip"), normalise=False),
        lambda: model.get_pseudo_tokens(features, normalise=False),
        lambda: model.get_composed_features(**inputs, pseudo_tokens=tokens, normalise=False),
        lambda: model.get_composed_features(**inputs, image_features=features, normalise=False),
    ):
        with pytest.raises(TypeError, match="'normalise'"):
            call()


def test_siglip2_names_what_its_images_lack():
    model, images = build_model("siglip2"), image_inputs("siglip2")
    inputs = build_processor(pad_to_max_length=True)(text=["make it night", ""]) | images
    with pytest.raises(ValueError, match="spatial_shapes"):
        model.get_image_features(images["pixel_values"])
    with pytest.raises(ValueError, match="target_features"):
        model(**inputs, target_pixel_values=images["pixel_values"])
    assert model(**inputs, target_features=model.get_image_features(**images)).loss > 0


def test_temperature_is_the_encoders():
    for family in ("clip", "siglip", "blip"):
        model = build_model(family)
        start = model.encoder.config.logit_scale_init_value if family == "blip" else model.encoder.logit_scale
        assert model.logit_scale.shape == ()
        assert float(model.logit_scale) == pytest.approx(float(torch.as_tensor(start).exp()))


@pytest.mark.parametrize("num_pseudo_tokens", [1, 8, 12])
def test_mapper_shapes(num_pseudo_tokens):
    config = HyCIRConfig(encoder_config=encoder_config("clip"), num_pseudo_tokens=num_pseudo_tokens)
    mapper = PseudoTokenMapper(config)
    assert mapper(torch.randn(5, 24)).shape == (5, num_pseudo_tokens, 32)
    assert [tuple(p.shape) for p in mapper.parameters() if p.ndim == 2] == [
        (512, 24),
        (512, 512),
        (num_pseudo_tokens * 32, 512),
    ]


# --- the warning of a mapper that knows nothing


def warnings_of(caplog):
    return [r for r in caplog.records if r.name == "hycir_hf.modeling_hycir" and r.levelno == logging.WARNING]


def query(model):
    with torch.no_grad():
        model.get_composed_features(**build_processor()(text=["red"]), **image_inputs("clip", 1))


@pytest.mark.parametrize(
    "call", [query, lambda model: model(**build_processor()(text=["a"]), **image_inputs("clip", 1))]
)
def test_a_fresh_mapper_warns_at_its_first_query_alone(caplog, call):
    model = build_model()
    model.get_image_features(**image_inputs("clip"))
    model.get_text_features(**build_processor()(text=["red"], compose=False))
    assert not warnings_of(caplog)
    call(model)
    query(model)
    assert len(warnings_of(caplog)) == 1


def test_a_trained_or_loaded_mapper_does_not_warn(caplog, tmp_path):
    trained, in_training, mapper_loaded, loaded = (build_model() for _ in range(4))
    train_step(trained)
    query(trained.eval())
    query(in_training.train())
    mapper_loaded.mapper.load_state_dict(trained.mapper.state_dict())
    query(mapper_loaded)
    loaded.load_state_dict(trained.state_dict())
    query(copy.deepcopy(loaded))
    trained.save_pretrained(tmp_path)
    query(HyCIRModel.from_pretrained(tmp_path))
    assert not warnings_of(caplog)
    query(copy.deepcopy(build_model()))
    assert len(warnings_of(caplog)) == 1


# --- training


def train_step(model, family="clip"):
    processor = build_processor(pad_to_max_length=family.startswith("siglip"))
    inputs = processor(text=["make it night", ""]) | image_inputs(family)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    model(**inputs).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    optimizer.step()
    return gradients


@pytest.mark.parametrize("family", FAMILIES)
def test_one_step_changes_only_the_mapper(family):
    model = build_model(family)
    before = copy.deepcopy(model.state_dict())
    gradients = train_step(model, family)
    assert gradients and all(name.startswith("mapper.") for name in gradients)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith("mapper.")}


def test_train_leaves_the_encoder_in_eval_mode(model):
    model.train()
    assert model.training and model.mapper.training
    assert not any(module.training for module in model.encoder.modules())
    model.eval()
    assert not model.mapper.training


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_on_the_text_side(family):
    model = build_model(family, mapper_dropout=0.0)
    plain_model = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable()
    calls = []
    layers = [m for m in model.encoder.modules() if isinstance(m, GradientCheckpointingLayer)]
    for layer in layers:
        if layer.gradient_checkpointing:
            function = layer._gradient_checkpointing_func
            layer._gradient_checkpointing_func = lambda *a, f=function, **k: calls.append(1) or f(*a, **k)
    gradients, expected = train_step(model, family), train_step(plain_model, family)
    assert len(calls) == 2
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name])
    training = [m for m in model.encoder.modules() if m.training]
    assert len(training) == 2 and all(m in layers for m in training)
    assert not any(m.training for m in model.encoder.vision_model.modules())


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_transformers_own_trainer_trains_it(model, tmp_path, gradient_checkpointing):
    processor = build_processor()
    rows = [{"image": random_picture(i), "text": text} for i, text in enumerate(["red", "make it night", "", "dog"])]

    def collate(batch):
        return processor(images=[row["image"] for row in batch], text=[row["text"] for row in batch])

    arguments = TrainingArguments(
        tmp_path,
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        gradient_checkpointing=gradient_checkpointing,
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    before = copy.deepcopy(model.state_dict())
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, data_collator=collate)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("mapper.") for name in changed)
    assert HyCIRModel.from_pretrained(tmp_path / "checkpoint-2").config.num_pseudo_tokens == NUM_PSEUDO_TOKENS


# --- saving and loading


def assert_same_features(model, other):
    """The weights bitwise; the features not, for where weights lie in memory moves the last bit of a product."""
    assert_same_weights(model, other)
    inputs = build_processor()(text=["make it night", ""]) | image_inputs("clip")
    with torch.no_grad():
        torch.testing.assert_close(
            other.get_composed_features(**inputs), model.get_composed_features(**inputs), rtol=0, atol=1e-5
        )


def assert_same_weights(model, other):
    expected, found = model.state_dict(), other.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


@pytest.fixture
def encoder_folder(tmp_path):
    build_encoder("clip").save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


@pytest.fixture
def no_warnings(caplog):
    """Fail if transformers or Python warns."""
    logger = logging.getLogger("transformers")
    propagate, logger.propagate = logger.propagate, True
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        yield
    logger.propagate = propagate
    records = [r for r in caplog.get_records("call") if r.name.startswith("transformers")]
    # transformers says that of its own default config whenever it saves a SigLIP
    assert not [r for r in records if "got 4940" not in r.getMessage()], records


@pytest.mark.parametrize("mapper_only", [False, True])
@pytest.mark.parametrize("auto", [False, True])
def test_save_and_load(encoder_folder, tmp_path, mapper_only, auto, no_warnings):
    model = HyCIRModel.from_encoder(encoder_folder, NUM_PSEUDO_TOKENS)
    model.save_pretrained(tmp_path / "model", mapper_only=mapper_only)
    loaded, info = (AutoModel if auto else HyCIRModel).from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(loaded) is HyCIRModel and not loaded.training
    assert {n.split(".")[0] for n, p in loaded.named_parameters() if p.requires_grad} == {"mapper"}
    assert_same_features(model, loaded)
    assert loaded.encoder_fingerprint() == model.encoder_fingerprint()
    assert loaded.name_or_path == str(tmp_path / "model")
    encoder_size = (encoder_folder / "model.safetensors").stat().st_size
    mapper_size = sum(p.numel() * 4 for p in model.mapper.parameters())
    size = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert size < mapper_size + 5000 if mapper_only else size > mapper_size + encoder_size - 20000
    loaded.save_pretrained(tmp_path / "again")  # whole again
    assert_same_features(model, HyCIRModel.from_pretrained(tmp_path / "again"))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_saves_and_loads(family, tmp_path, no_warnings):
    build_encoder(family).save_pretrained(tmp_path / "encoder")
    model = HyCIRModel.from_encoder(tmp_path / "encoder", NUM_PSEUDO_TOKENS)
    for mapper_only in (False, True):
        model.save_pretrained(tmp_path / "model", mapper_only=mapper_only)
        loaded = HyCIRModel.from_pretrained(tmp_path / "model")
        assert_same_weights(model, loaded)
        assert loaded.encoder_fingerprint() == model.encoder_fingerprint()


def test_mapper_finds_an_encoder_beside_it(encoder_folder, tmp_path):
    model = HyCIRModel.from_encoder(encoder_folder, NUM_PSEUDO_TOKENS, encoder_name_or_path="../encoder")
    model.save_pretrained(tmp_path / "mapper", mapper_only=True)
    assert_same_features(model, HyCIRModel.from_pretrained(tmp_path / "mapper"))


def test_another_encoder_under_the_mapper_is_an_error(encoder_folder, tmp_path):
    HyCIRModel.from_encoder(encoder_folder).save_pretrained(tmp_path / "mapper", mapper_only=True)
    build_encoder("clip", seed=1).save_pretrained(encoder_folder)
    with pytest.raises(ValueError, match="fingerprint"):
        HyCIRModel.from_pretrained(tmp_path / "mapper")


def test_a_moved_encoder(encoder_folder, tmp_path):
    model = HyCIRModel.from_encoder(encoder_folder, NUM_PSEUDO_TOKENS)
    model.save_pretrained(tmp_path / "mapper", mapper_only=True)
    encoder_folder.rename(tmp_path / "moved")
    with pytest.raises(OSError, match="encoder_name_or_path=") as caught:
        HyCIRModel.from_pretrained(tmp_path / "mapper")
    assert str(tmp_path / "mapper") in str(caught.value) and str(encoder_folder) in str(caught.value)
    assert_same_features(
        model, HyCIRModel.from_pretrained(tmp_path / "mapper", encoder_name_or_path=str(tmp_path / "moved"))
    )


def test_mapper_only_needs_to_know_the_encoder(model, tmp_path):
    with pytest.raises(ValueError, match="encoder_name_or_path"):
        model.save_pretrained(tmp_path, mapper_only=True)


def test_given_encoder_keeps_its_weights():
    encoder = build_encoder("clip")
    before = copy.deepcopy(encoder.state_dict())
    model = HyCIRModel.from_encoder(encoder)
    assert all(torch.equal(value, before[name]) for name, value in model.encoder.state_dict().items())
    assert HyCIRModel(model.config).encoder_fingerprint() != model.encoder_fingerprint()


def test_fingerprint_knows_weights_and_behaviour_not_precision_or_mapper(model):
    fingerprint = model.encoder_fingerprint()
    assert len(fingerprint) == 16 and int(fingerprint, 16)
    assert copy.deepcopy(model).bfloat16().encoder_fingerprint() == fingerprint
    assert build_model("clip_legacy").encoder_fingerprint() != fingerprint
    with torch.no_grad():
        model.mapper.output.weight.add_(1)
        assert model.encoder_fingerprint() == fingerprint
        model.encoder.text_projection.weight[0, 0] += 1
    assert model.encoder_fingerprint() != fingerprint


@pytest.mark.parametrize("mapper_only", [False, True])
def test_a_half_precision_file_is_one_encoder_in_every_dtype(tmp_path, mapper_only):
    build_encoder("clip").half().save_pretrained(tmp_path / "encoder")
    model = HyCIRModel.from_encoder(tmp_path / "encoder", NUM_PSEUDO_TOKENS)
    model.save_pretrained(tmp_path / "model", mapper_only=mapper_only)
    galleries, queries = [], []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for loaded in (
            HyCIRModel.from_pretrained(tmp_path / "model", dtype=dtype),
            HyCIRModel.from_encoder(tmp_path / "encoder", dtype=dtype),
        ):
            assert loaded.dtype == dtype
            assert loaded.encoder_fingerprint() == model.encoder_fingerprint()
        processor, pictures = build_processor(), [random_picture(i) for i in range(4)]
        galleries.append(Gallery.from_images(loaded, processor, pictures, progress=False))
        with torch.no_grad():
            queries.append(loaded.get_image_features(**processor(images=pictures)))
    for gallery in galleries:
        for features in queries:
            results = gallery.search(features, k=1, encoder_fingerprint=model.encoder_fingerprint())
            assert [ids[0] for ids in results.ids] == gallery.ids


def test_other_encoders_are_refused(tmp_path):
    build_encoder("vision-text-dual-encoder").text_model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'bert'"):
        HyCIRModel.from_encoder(tmp_path)


def test_a_captioner_is_no_encoder(tmp_path):
    BlipForConditionalGeneration(encoder_config("blip")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"\(blip\): \d+ .*'text_encoder\."):
        HyCIRModel.from_encoder(tmp_path)


# --- precision, placement, attention, compilation


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mapper_only", [False, True])
def test_half_precision(encoder_folder, tmp_path, dtype, mapper_only):
    model = HyCIRModel.from_encoder(encoder_folder, NUM_PSEUDO_TOKENS)
    model.save_pretrained(tmp_path / "model", mapper_only=mapper_only)
    device_map = "auto" if mapper_only else {"": "cpu"}
    half = HyCIRModel.from_pretrained(
        tmp_path / "model", dtype=dtype, device_map=device_map, attn_implementation="sdpa"
    )
    assert {p.dtype for p in half.parameters()} == {dtype}
    inputs = build_processor()(text=["make it night", "red"]) | image_inputs("clip")
    with torch.no_grad():
        features, expected = half.get_composed_features(**inputs), model.get_composed_features(**inputs)
    assert torch.cosine_similarity(features.float(), expected).min() > 0.98
    assert train_step(half)


def test_autocast_trains(model):
    with torch.autocast("cpu", torch.bfloat16):
        assert train_step(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_implementations_agree(family, tmp_path):
    model = build_model(family)
    model.save_pretrained(tmp_path)
    inputs = build_processor(pad_to_max_length=family.startswith("siglip"))(text=["red hat", ""]) | image_inputs(family)
    with torch.no_grad():
        for name in ("eager", "sdpa"):
            if (family, name) == ("blip", "sdpa"):  # transformers' BLIP has no sdpa
                with pytest.raises(ValueError, match="does not support"):
                    HyCIRModel.from_pretrained(tmp_path, attn_implementation=name)
                continue
            other = HyCIRModel.from_pretrained(tmp_path, attn_implementation=name)
            assert other._adapter.text_model(other.encoder).config._attn_implementation == name
            torch.testing.assert_close(
                other.get_composed_features(**inputs), model.get_composed_features(**inputs), rtol=0, atol=1e-5
            )


@torch.no_grad()
def test_compiled_model_still_reads_the_pseudo_tokens(model):
    processor = build_processor()
    compiled = torch.compile(copy.deepcopy(model), backend="eager")
    texts = processor(text=["red hat", "a dog"], compose=False)
    inputs = processor(text=["make it night", ""]) | image_inputs("clip")
    torch.testing.assert_close(compiled.get_text_features(**texts), model.get_text_features(**texts))
    for _ in range(2):
        torch.testing.assert_close(compiled(**inputs).query_features, model(**inputs).query_features)
    torch.testing.assert_close(compiled.get_text_features(**texts), model.get_text_features(**texts))


def test_pseudo_tokens_and_lengths_can_be_given(model, processor):
    """Tokens made before give the same features; without normalisation the same directions."""
    inputs, features = processor(text=["make it red", ""]), torch.randn(2, 24)
    composed = model.get_composed_features(**inputs, image_features=features)
    tokens = model.get_pseudo_tokens(image_features=features)
    torch.testing.assert_close(model.get_composed_features(**inputs, pseudo_tokens=tokens), composed)
    plain = model.get_composed_features(**inputs, pseudo_tokens=tokens, normalize=False)
    torch.testing.assert_close(torch.nn.functional.normalize(plain, dim=-1), composed)
    text = processor(text=["make it red"], compose=False)
    unit, raw = model.get_text_features(**text), model.get_text_features(**text, normalize=False)
    torch.testing.assert_close(torch.nn.functional.normalize(raw, dim=-1), unit)


def test_an_encoder_alone_is_no_model(encoder_path):
    with pytest.raises(ValueError, match=r"'clip'.*from_encoder"):
        HyCIRModel.from_pretrained(encoder_path)
