"""transformers' own tests of processors, on HyCIR's."""

import unittest

from conftest import NUM_PSEUDO_TOKENS, build_image_processor, build_tokenizer
from referee import common_tests, judged

from hycir_hf import HyCIRProcessor


@judged
class TestProcessor(common_tests("test_processing_common").ProcessorTesterMixin, unittest.TestCase):
    processor_class = HyCIRProcessor
    # A prompt of the tiny tokenizer takes at most 77 tokens.
    images_text_kwargs_max_length, images_text_kwargs_override_max_length = 70, 65
    images_unstructured_max_length = 60

    _setup_tokenizer = staticmethod(build_tokenizer)
    _setup_image_processor = staticmethod(build_image_processor)

    @staticmethod
    def prepare_processor_dict():
        return {"num_pseudo_tokens": NUM_PSEUDO_TOKENS}
