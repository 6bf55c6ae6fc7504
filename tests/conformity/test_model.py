"""transformers' own tests of models and configs, on HyCIR around a tiny CLIP and a tiny BLIP."""

import json
import unittest

import torch
from conftest import BOS, EOS, IMAGE_SIZE, NUM_PSEUDO_TOKENS, encoder_config
from referee import common_tests, judged

from hycir_hf import HyCIRConfig, HyCIRModel

ConfigTester = common_tests("test_configuration_common").ConfigTester
ModelTesterMixin = common_tests("test_modeling_common").ModelTesterMixin

PLACEHOLDER = 5


class ModelTester:
    """What the common tests ask for: a tiny config and inputs for it."""

    is_training = True
    batch_size, seq_length = 7, 9
    num_hidden_layers, num_attention_heads, hidden_size = 2, 4, 32

    def __init__(self, family):
        self.encoder_config = encoder_config(family)
        self.text_config, self.vision_config = self.encoder_config.text_config, self.encoder_config.vision_config

    def get_config(self):
        return HyCIRConfig(
            encoder_config=self.encoder_config,
            num_pseudo_tokens=NUM_PSEUDO_TOKENS,
            placeholder_token_id=PLACEHOLDER,
            mapper_hidden_size=16,
        )

    def prepare_config_and_inputs_for_common(self):
        ids = torch.randint(PLACEHOLDER + 1, BOS, (self.batch_size, self.seq_length))
        ids[:, 0], ids[:, 2 : 2 + NUM_PSEUDO_TOKENS], ids[:, -1] = BOS, PLACEHOLDER, EOS
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": torch.rand(self.batch_size, 3, IMAGE_SIZE, IMAGE_SIZE),
        }
        return self.get_config(), inputs


class HyCIRTests(ModelTesterMixin):
    all_model_classes = (HyCIRModel,)
    family = None
    additional_model_inputs = ("pixel_values",)
    _is_composite = True

    def setUp(self):
        self.model_tester = ModelTester(self.family)
        values = json.loads(self.model_tester.get_config().to_json_string(use_diff=False))
        names = ("encoder_config", "num_pseudo_tokens", "placeholder_token_id", "mapper_hidden_size", "prompt")
        self.config_tester = ConfigTester(
            self, HyCIRConfig, has_text_modality=False, common_properties=list(names), **{k: values[k] for k in names}
        )

    def test_config(self):
        self.config_tester.run_common_tests()


@judged
class TestCLIP(HyCIRTests, unittest.TestCase):
    family = "clip"


@judged
class TestBLIP(HyCIRTests, unittest.TestCase):
    family = "blip"
