"""HyCIRConfig: what it nests, what it refuses, what it saves."""

import pytest
from conftest import FAMILIES, build_encoder, encoder_config
from transformers import AutoConfig, BertConfig

from hycir_hf import HyCIRConfig


@pytest.mark.parametrize("family", FAMILIES)
def test_config_survives_a_round_trip(family, tmp_path):
    config = HyCIRConfig(
        encoder_config=encoder_config(family), num_pseudo_tokens=5, encoder_name_or_path="some/encoder"
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is HyCIRConfig
    assert type(loaded.encoder_config) is type(config.encoder_config)
    assert loaded.encoder_config.text_config.vocab_size == config.encoder_config.text_config.vocab_size
    assert (loaded.num_pseudo_tokens, loaded.encoder_name_or_path) == (5, "some/encoder")


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_the_encoders(family):
    config = HyCIRConfig(encoder_config=encoder_config(family))
    assert config.text_hidden_size == 32
    assert config.feature_size == (32 if family.startswith("siglip") else 24)
    assert build_encoder(family).config.model_type == config.encoder_config.model_type


def test_defaults_are_the_papers():
    config = HyCIRConfig()
    assert (config.num_pseudo_tokens, config.mapper_hidden_size, config.mapper_num_layers) == (4, 512, 2)
    assert (config.mapper_dropout, config.prompt) == (0.1, "a photo of {image}, {text}")


def test_trust_remote_code_is_stripped_from_the_encoder(tmp_path):
    nested = encoder_config("clip")
    nested.trust_remote_code = True
    nested.text_config.trust_remote_code = True
    for given in (nested, nested.to_dict()):
        HyCIRConfig(encoder_config=given).save_pretrained(tmp_path)
        assert "trust_remote_code" not in (tmp_path / "config.json").read_text()
    assert nested.trust_remote_code  # the caller's own config is left alone


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_pseudo_tokens", 0),
        ("num_pseudo_tokens", 1.5),
        ("mapper_hidden_size", 0),
        ("mapper_num_layers", -1),
        ("mapper_dropout", 1.0),
        ("mapper_activation", "tanh"),
        ("placeholder_token_id", 120),
        ("placeholder_token_id", -2),
        ("prompt", "a photo of {text}"),
        ("prompt", "{image} {image} {text}"),
    ],
)
def test_bad_values_are_named(field, value):
    with pytest.raises(ValueError, match=f"HyCIRConfig: {field} "):
        HyCIRConfig(encoder_config=encoder_config("clip"), **{field: value})


def test_all_complaints_come_at_once():
    with pytest.raises(ValueError, match=r"num_pseudo_tokens.*mapper_dropout"):
        HyCIRConfig(encoder_config=encoder_config("clip"), num_pseudo_tokens=-3, mapper_dropout=2)


@pytest.mark.parametrize("given", [BertConfig(), {"model_type": "bert"}, {}])
def test_other_encoders_are_refused(given):
    with pytest.raises(ValueError, match="VisionTextDualEncoderModel"):
        HyCIRConfig(encoder_config=given)


def test_the_encoders_folder_does_not_travel_inside_its_config(tmp_path):
    nested = encoder_config("clip")
    nested._name_or_path = "/somewhere/private"
    HyCIRConfig(encoder_config=nested).save_pretrained(tmp_path)
    assert "private" not in (tmp_path / "config.json").read_text(encoding="utf-8")
