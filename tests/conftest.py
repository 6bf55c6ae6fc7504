"""Tiny random encoders of every family, a tiny offline tokenizer, and small pictures."""

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tests fork processes to kill them: a child of a process with OpenMP's threads would wait for them for ever.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from fake_hub import TOKEN, FakeHub
from huggingface_hub import constants, hf_api
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AltCLIPConfig,
    AutoModel,
    BertConfig,
    BlipConfig,
    BlipForImageTextRetrieval,
    ChineseCLIPConfig,
    CLIPConfig,
    MetaClip2Config,
    PreTrainedTokenizerFast,
    Siglip2Config,
    SiglipConfig,
    VisionTextDualEncoderConfig,
    ViTConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hycir_hf import HyCIRModel, HyCIRProcessor

# A shell's background jobs ignore SIGINT, and so would the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)

VOCAB_SIZE = 120
PAD, BOS, EOS = 0, VOCAB_SIZE - 2, VOCAB_SIZE - 1
IMAGE_SIZE = 16
NUM_PSEUDO_TOKENS = 3
MAX_LENGTH = 77
WORDS = (
    "a photo of the and , . ! $ make it night day red blue green hat dog cat with without on first second third more "
    "less change to is has big small image picture same but in snow summer"
).split()

FAMILIES = (
    "clip",
    "clip_legacy",
    "blip",
    "siglip",
    "siglip2",
    "altclip",
    "chinese_clip",
    "metaclip_2",
    "vision-text-dual-encoder",
)


def encoder_config(family):
    """Build a tiny config; `clip_legacy` is CLIP with `eos_token_id=2`, which pools at the largest id."""
    layers = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = dict(**layers, image_size=IMAGE_SIZE, patch_size=8, projection_dim=24)
    text = dict(
        **layers,
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=MAX_LENGTH,
        projection_dim=24,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    both = {"text_config": text, "vision_config": vision, "projection_dim": 24}
    if family == "clip":
        return CLIPConfig(**both)
    if family == "clip_legacy":
        return CLIPConfig(**(both | {"text_config": text | {"eos_token_id": 2}}))
    if family == "blip":
        text |= {"encoder_hidden_size": 32, "sep_token_id": EOS, "label_smoothing": 0.0}
        return BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=24, projection_dim=24)
    if family == "siglip":
        text |= {"projection_size": 32}
        return SiglipConfig(text_config=text, vision_config=vision)
    if family == "siglip2":
        text |= {"projection_size": 32}
        return Siglip2Config(text_config=text, vision_config=dict(**layers, patch_size=8, num_patches=4))
    if family == "altclip":
        text |= {"project_dim": 24, "max_position_embeddings": MAX_LENGTH + 1 + PAD}
        return AltCLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    if family == "chinese_clip":
        return ChineseCLIPConfig(**both)
    if family == "metaclip_2":
        return MetaClip2Config(**both)
    text_config = BertConfig(**{k: v for k, v in text.items() if k != "projection_dim"})
    vision_config = ViTConfig(**layers, image_size=IMAGE_SIZE, patch_size=8)
    return VisionTextDualEncoderConfig.from_vision_text_configs(vision_config, text_config, projection_dim=24)


def build_encoder(family, seed=0):
    """Build a tiny random encoder whose weights are large enough to tell inputs apart."""
    torch.manual_seed(seed)
    config = encoder_config(family)
    encoder = BlipForImageTextRetrieval(config) if family == "blip" else AutoModel.from_config(config)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "logit" not in name and parameter.ndim > 1:
                parameter.normal_(std=0.2)
        for module in encoder.modules():  # transformers zeroes these rows whenever it loads such an encoder
            if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx].zero_()
    return encoder.eval()


def build_model(family="clip", **kwargs):
    return HyCIRModel.from_encoder(build_encoder(family), NUM_PSEUDO_TOKENS, **kwargs)


def build_tokenizer():
    """Build a word-level tokenizer with special tokens placed as CLIP's: EOS is the largest id."""
    vocab = {"<pad>": PAD, "<unk>": 1} | {word: i + 3 for i, word in enumerate(WORDS)} | {"<s>": BOS, "</s>": EOS}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=MAX_LENGTH,
    )


def build_image_processor():
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False)


def build_processor(**kwargs):
    kwargs = {"num_pseudo_tokens": NUM_PSEUDO_TOKENS} | kwargs
    return HyCIRProcessor(build_image_processor(), build_tokenizer(), **kwargs)


def image_inputs(family, num_images=2, seed=0):
    """Make random image inputs of an encoder family."""
    generator = torch.Generator().manual_seed(seed)
    if family == "siglip2":
        return {
            "pixel_values": torch.randn(num_images, 4, 8 * 8 * 3, generator=generator),
            "pixel_attention_mask": torch.ones(num_images, 4, dtype=torch.long),
            "spatial_shapes": torch.tensor([[2, 2]] * num_images),
        }
    return {"pixel_values": torch.randn(num_images, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)}


def random_picture(seed=0, size=(20, 14), mode="RGB"):
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


@pytest.fixture
def processor():
    return build_processor()


@pytest.fixture
def model():
    return build_model()


@pytest.fixture(scope="session")
def encoder_path(tmp_path_factory):
    """A tiny CLIP's folder, as a pretrained encoder's."""
    path = tmp_path_factory.mktemp("encoder")
    build_encoder("clip").save_pretrained(path)
    build_tokenizer().save_pretrained(path)
    build_image_processor().save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory):
    """Twenty pictures, 00.png to 19.png."""
    path = tmp_path_factory.mktemp("pictures")
    for seed in range(20):
        random_picture(seed).save(path / f"{seed:02d}.png")
    return path


@pytest.fixture(scope="session")
def syncir_folder(tmp_path_factory, picture_folder):
    """SynCir's output on the pictures: configs "images" and "triplets"."""
    path = tmp_path_factory.mktemp("syncir")
    ids = [f"{number:02d}.png" for number in range(20)]
    images = [{"bytes": (picture_folder / id_).read_bytes(), "path": None} for id_ in ids]
    features = Features({"image_id": Value("string"), "image": ImageFeature()})
    Dataset.from_dict({"image_id": ids, "image": images}, features=features).to_parquet(path / "images.parquet")
    texts = ["make it red", "the same but in snow", "more dog, less cat", "night"]
    triplets = {
        "reference_id": ids,
        "target_id": ids[1:] + ids[:1],
        "query_text": [texts[number % 4] for number in range(20)],
    }
    Dataset.from_dict(triplets).to_parquet(path / "triplets.parquet")
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.parquet\n" for name in ("images", "triplets"))
    (path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return path


def count_parameters(model, processor, factor=1):
    """A validation for the trainer's tests."""
    return {"parameters": factor * sum(parameter.numel() for parameter in model.mapper.parameters())}


@pytest.fixture
def hub(monkeypatch):
    """A Hub on the loopback address, which `huggingface_hub`'s client and transformers take for the Hub."""
    with FakeHub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        # The clients that huggingface_hub's functions and transformers share, made before this test or not.
        monkeypatch.setattr(hf_api.api, "endpoint", server.url)
        monkeypatch.setattr(transformers.utils.hub.hf_api(), "endpoint", server.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants._HF_DEFAULT_ENDPOINT, server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the loopback Hub speaks LFS alone
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
