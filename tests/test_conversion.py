"""Original checkpoints, small but with the originals' key layout, against a forward pass written out by hand."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from conftest import IMAGE_SIZE, build_image_processor, build_tokenizer, random_picture
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, AutoProcessor, BlipConfig, BlipForImageTextRetrieval, CLIPConfig, CLIPModel

from hycir_hf import HyCIRModel
from hycir_hf.cli.main import main
from hycir_hf.integrations.conversion import convert_checkpoint, find_layout

WIDTH, JOINT, HEADS, PATCH, LENGTH, VOCAB = 128, 24, 2, 8, 77, 120  # OpenAI's CLIP has one head for each 64 dimensions
PICTURE = random_picture(3)
GOLDEN = Path(__file__).parent / "golden"


def save_encoder(folder, encoder):
    encoder.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    build_image_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    layers = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
    layers |= {"hidden_act": "quick_gelu", "projection_dim": JOINT}
    text = dict(**layers, vocab_size=VOCAB, max_position_embeddings=LENGTH, bos_token_id=118, eos_token_id=119)
    vision = dict(**layers, image_size=IMAGE_SIZE, patch_size=PATCH)
    torch.manual_seed(1)
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=JOINT))
    return save_encoder(tmp_path_factory.mktemp("clip"), clip)


@pytest.fixture(scope="module")
def blip_folder(tmp_path_factory):
    layers = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = dict(**layers, vocab_size=VOCAB, encoder_hidden_size=32, max_position_embeddings=LENGTH)
    text |= {"bos_token_id": 118, "pad_token_id": 0, "sep_token_id": 119, "eos_token_id": 119}
    vision = dict(**layers, image_size=IMAGE_SIZE, patch_size=PATCH)
    config = BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=JOINT, projection_dim=JOINT)
    torch.manual_seed(1)
    return save_encoder(tmp_path_factory.mktemp("blip"), BlipForImageTextRetrieval(config))


def random_state(shapes, seed=0, prefix=""):
    generator = torch.Generator().manual_seed(seed)
    return {prefix + name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}


def linear_shapes(name, width_in, width_out):
    return {f"{name}.weight": (width_out, width_in), f"{name}.bias": (width_out,)}


def norm_shapes(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def openai_clip_shapes():
    shapes = {
        "positional_embedding": (LENGTH, WIDTH),
        "text_projection": (WIDTH, JOINT),
        "logit_scale": (),
        "visual.class_embedding": (WIDTH,),
        "visual.positional_embedding": ((IMAGE_SIZE // PATCH) ** 2 + 1, WIDTH),
        "visual.proj": (WIDTH, JOINT),
        "visual.conv1.weight": (WIDTH, 3, PATCH, PATCH),
        "token_embedding.weight": (VOCAB, WIDTH),
    }
    for name in ("visual.ln_pre", "visual.ln_post", "ln_final"):
        shapes |= norm_shapes(name, WIDTH)
    for block in [f"{side}transformer.resblocks.{i}" for side in ("visual.", "") for i in range(2)]:
        shapes |= {f"{block}.attn.in_proj_weight": (3 * WIDTH, WIDTH), f"{block}.attn.in_proj_bias": (3 * WIDTH,)}
        shapes |= linear_shapes(f"{block}.attn.out_proj", WIDTH, WIDTH)
        shapes |= norm_shapes(f"{block}.ln_1", WIDTH) | norm_shapes(f"{block}.ln_2", WIDTH)
        shapes |= linear_shapes(f"{block}.mlp.c_fc", WIDTH, 4 * WIDTH)
        shapes |= linear_shapes(f"{block}.mlp.c_proj", 4 * WIDTH, WIDTH)
    return shapes


def im2text_shapes(hidden=40):
    return (
        linear_shapes("fc_out", hidden, WIDTH)
        | linear_shapes("layers.0.0", JOINT, hidden)
        | linear_shapes("layers.1.0", hidden, hidden)
    )


def phi_shapes(hidden=96):
    return (
        linear_shapes("layers.0", JOINT, hidden)
        | linear_shapes("layers.3", hidden, hidden)
        | linear_shapes("layers.6", hidden, WIDTH)
    )


def linear(state, name, x):
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def norm(state, name, x, eps=1e-5):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def attend(queries, keys, values, heads, mask=None):
    def split(x):
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    scores = split(queries) @ split(keys).transpose(-1, -2) / math.sqrt(queries.shape[-1] // heads)
    scores = scores if mask is None else scores + mask
    return (scores.softmax(-1) @ split(values)).transpose(1, 2).flatten(2)


def openai_transformer(state, prefix, x, mask=None):
    for i in range(2):
        block = f"{prefix}transformer.resblocks.{i}"
        y = norm(state, f"{block}.ln_1", x)
        y = F.linear(y, state[f"{block}.attn.in_proj_weight"], state[f"{block}.attn.in_proj_bias"])
        x = x + linear(state, f"{block}.attn.out_proj", attend(*y.chunk(3, -1), HEADS, mask))
        y = linear(state, f"{block}.mlp.c_fc", norm(state, f"{block}.ln_2", x))
        x = x + linear(state, f"{block}.mlp.c_proj", y * torch.sigmoid(1.702 * y))
    return x


def openai_image(state, pixel_values):
    x = F.conv2d(pixel_values, state["visual.conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    x = torch.cat([state["visual.class_embedding"].expand(len(x), 1, -1), x], 1) + state["visual.positional_embedding"]
    x = openai_transformer(state, "visual.", norm(state, "visual.ln_pre", x))
    return norm(state, "visual.ln_post", x[:, 0]) @ state["visual.proj"]


def openai_composed(state, ids, token):
    """CLIP's text side with the pseudo token written over the ids that are -1."""
    x = torch.where((ids == -1)[..., None], token[:, None], state["token_embedding.weight"][ids.clamp(min=0)])
    x = x + state["positional_embedding"][: ids.shape[1]]
    mask = torch.full((ids.shape[1], ids.shape[1]), float("-inf")).triu(1)
    x = norm(state, "ln_final", openai_transformer(state, "", x, mask))
    return x[torch.arange(len(x)), (ids == VOCAB - 1).int().argmax(-1)] @ state["text_projection"]


def im2text(state, x):
    for i in range(2):
        x = F.relu(linear(state, f"layers.{i}.0", x))
    return linear(state, "fc_out", x)


def phi(state, x):
    for i in (0, 3):
        x = F.gelu(linear(state, f"layers.{i}", x))
    return linear(state, "layers.6", x)


def load(folder):
    return HyCIRModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)


def check_composed(folder, clip, mapper, text, prompt_ids):
    """Compare a converted folder's features with the originals' own arithmetic."""
    model, processor = load(folder)
    inputs = processor(images=[PICTURE], text=[text])
    assert inputs["input_ids"].tolist() == [prompt_ids(processor)]
    image = openai_image(clip, inputs["pixel_values"])
    expected = openai_composed(clip, inputs["input_ids"], mapper(image))
    with torch.no_grad():
        found = model.get_composed_features(**inputs)
        torch.testing.assert_close(
            model.get_image_features(inputs["pixel_values"]), F.normalize(image), atol=1e-5, rtol=0
        )
    torch.testing.assert_close(found, F.normalize(expected), atol=1e-5, rtol=0)
    assert len(model.get_pseudo_tokens(pixel_values=inputs["pixel_values"])[0]) == 1


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_pic2word_with_its_own_clip(tmp_path, clip_folder, prefix):
    clip, mapper = random_state(openai_clip_shapes(), 5), random_state(im2text_shapes(), 6)
    stored = {
        "epoch": 30,
        "name": "pic2word",
        "state_dict": {prefix + name: value for name, value in clip.items()},
        "state_dict_img2text": {prefix + name: value for name, value in mapper.items()},
        "optimizer": {"state": {}, "param_groups": []},
    }
    torch.save(stored, tmp_path / "pic2word_model.pt")
    assert convert_checkpoint(tmp_path / "pic2word_model.pt", tmp_path / "hycir", clip_folder) == "pic2word"

    def ids(processor):
        words = processor.tokenizer.convert_tokens_to_ids(["a", "photo", "of", ",", "make", "it", "night"])
        return [118, *words[:3], -1, *words[3:], 119]

    check_composed(tmp_path / "hycir", clip, lambda image: im2text(mapper, image), "make it night", ids)


def openai_state_of(folder):
    """The weights of a CLIPModel folder in OpenAI's layout (q, k, v joined, projections transposed)."""
    state = CLIPModel.from_pretrained(folder).state_dict()
    result = {}
    for name in openai_clip_shapes():
        source = name.replace("visual.transformer.resblocks", "vision_model.encoder.layers")
        source = source.replace("transformer.resblocks", "text_model.encoder.layers")
        for old, new in (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"), ("c_fc", "fc1"), ("c_proj", "fc2")):
            source = source.replace(old, new)
        source = source.replace(".attn.", ".self_attn.")
        if "in_proj_" in source:
            result[name] = torch.cat([state[source.replace("in_proj_", f"{part}_proj.")] for part in "qkv"])
        elif source in state:
            result[name] = state[source]
    result["text_projection"] = state["text_projection.weight"].T
    result["visual.proj"] = state["visual_projection.weight"].T
    result["positional_embedding"] = state["text_model.embeddings.position_embedding.weight"]
    result["visual.positional_embedding"] = state["vision_model.embeddings.position_embedding.weight"]
    result["visual.class_embedding"] = state["vision_model.embeddings.class_embedding"]
    result["visual.conv1.weight"] = state["vision_model.embeddings.patch_embedding.weight"]
    result["token_embedding.weight"] = state["text_model.embeddings.token_embedding.weight"]
    for name, source in (
        ("visual.ln_pre", "vision_model.pre_layrnorm"),
        ("visual.ln_post", "vision_model.post_layernorm"),
        ("ln_final", "text_model.final_layer_norm"),
    ):
        result |= {f"{name}.{kind}": state[f"{source}.{kind}"] for kind in ("weight", "bias")}
    return result


def test_searle_and_lincir_phi_on_the_named_encoder(tmp_path, clip_folder):
    mapper = random_state(phi_shapes(), 7)
    torch.save({"epoch": 100, "Phi": mapper}, tmp_path / "SEARLE_ViT-L14.pt")
    assert convert_checkpoint(tmp_path / "SEARLE_ViT-L14.pt", tmp_path / "hycir", clip_folder) == "phi"

    def ids(processor):
        words = processor.tokenizer.convert_tokens_to_ids(["a", "photo", "of", "that", "is", "red"])
        return [118, *words[:3], -1, *words[3:], 119]

    check_composed(tmp_path / "hycir", openai_state_of(clip_folder), lambda image: phi(mapper, image), "is red", ids)


def test_half_precision_checkpoints_become_float32(tmp_path, clip_folder):
    mapper = {name: value.half() for name, value in random_state(phi_shapes(), 7).items()}
    torch.save({"epoch": 1, "Phi": mapper}, tmp_path / "phi_best.pt")
    convert_checkpoint(tmp_path / "phi_best.pt", tmp_path / "hycir", clip_folder)
    assert {p.dtype for p in load(tmp_path / "hycir")[0].parameters()} == {torch.float32}


class OriginalPhi(nn.Module):
    """Linear-GELU-Dropout twice and an output layer, for the order of dropout in training."""

    def __init__(self):
        super().__init__()
        blocks = [nn.Linear(JOINT, 96), nn.GELU(), nn.Dropout(0.5), nn.Linear(96, 96), nn.GELU(), nn.Dropout(0.5)]
        self.layers = nn.Sequential(*blocks, nn.Linear(96, WIDTH))


def test_phi_also_trains_as_the_original(tmp_path, clip_folder):
    original = OriginalPhi()
    torch.save({"epoch": 1, "Phi": original.state_dict()}, tmp_path / "phi.pt")
    convert_checkpoint(tmp_path / "phi.pt", tmp_path / "hycir", clip_folder)
    mapper, features = load(tmp_path / "hycir")[0].mapper.train(), torch.randn(5, JOINT)
    torch.manual_seed(0)
    expected = original.train().layers(features)
    torch.manual_seed(0)
    torch.testing.assert_close(mapper(features)[:, 0], expected)


def lavis_shapes():
    shapes = {
        "visual_encoder.cls_token": (1, 1, 32),
        "visual_encoder.pos_embed": (1, 5, 32),
        "visual_encoder.patch_embed.proj.weight": (32, 3, PATCH, PATCH),
        "visual_encoder.patch_embed.proj.bias": (32,),
        "text_encoder.embeddings.word_embeddings.weight": (VOCAB, 32),
        "text_encoder.embeddings.position_embeddings.weight": (LENGTH, 32),
    }
    shapes |= norm_shapes("visual_encoder.norm", 32) | norm_shapes("text_encoder.embeddings.LayerNorm", 32)
    for i in range(2):
        block, layer = f"visual_encoder.blocks.{i}", f"text_encoder.encoder.layer.{i}"
        shapes |= norm_shapes(f"{block}.norm1", 32) | norm_shapes(f"{block}.norm2", 32)
        shapes |= linear_shapes(f"{block}.attn.qkv", 32, 96) | linear_shapes(f"{block}.attn.proj", 32, 32)
        shapes |= linear_shapes(f"{block}.mlp.fc1", 32, 128) | linear_shapes(f"{block}.mlp.fc2", 128, 32)
        for attention in ("attention", "crossattention"):
            for name in ("self.query", "self.key", "self.value", "output.dense"):
                shapes |= linear_shapes(f"{layer}.{attention}.{name}", 32, 32)
            shapes |= norm_shapes(f"{layer}.{attention}.output.LayerNorm", 32)
        shapes |= linear_shapes(f"{layer}.intermediate.dense", 32, 128) | linear_shapes(
            f"{layer}.output.dense", 128, 32
        )
        shapes |= norm_shapes(f"{layer}.output.LayerNorm", 32)
    for name, width in (("vision_proj", JOINT), ("text_proj", JOINT), ("itm_head", 2)):
        shapes |= linear_shapes(name, 32, width)
    return shapes


def lavis_state():
    """All that blip_coco_retrieval.pth holds: also the momentum copies, the queues and the buffers."""
    state = random_state(lavis_shapes(), 8)
    for name in ("visual_encoder", "text_encoder", "vision_proj", "text_proj"):
        copies = {
            key.replace(name, f"{name}_m", 1): value + 1 for key, value in state.items() if key.startswith(f"{name}.")
        }
        state |= copies
    for name in ("text_encoder", "text_encoder_m"):
        state[f"{name}.embeddings.position_ids"] = torch.arange(LENGTH)[None]
    state |= {"image_queue": torch.randn(JOINT, 16), "text_queue": torch.randn(JOINT, 16), "temp": torch.tensor(0.02)}
    return state | {"idx_queue": torch.full((1, 16), -100), "queue_ptr": torch.zeros(1, dtype=torch.long)}


def lavis_image(state, pixel_values):
    x = F.conv2d(
        pixel_values,
        state["visual_encoder.patch_embed.proj.weight"],
        state["visual_encoder.patch_embed.proj.bias"],
        stride=PATCH,
    )
    x = torch.cat([state["visual_encoder.cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
    x = x + state["visual_encoder.pos_embed"]
    for i in range(2):
        block = f"visual_encoder.blocks.{i}"
        qkv = linear(state, f"{block}.attn.qkv", norm(state, f"{block}.norm1", x, 1e-6))
        x = x + linear(state, f"{block}.attn.proj", attend(*qkv.chunk(3, -1), 4))
        y = F.gelu(linear(state, f"{block}.mlp.fc1", norm(state, f"{block}.norm2", x, 1e-6)))
        x = x + linear(state, f"{block}.mlp.fc2", y)
    return linear(state, "vision_proj", norm(state, "visual_encoder.norm", x, 1e-6)[:, 0])


def lavis_text(state, ids, eps):
    x = state["text_encoder.embeddings.word_embeddings.weight"][ids]
    x = x + state["text_encoder.embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm(state, "text_encoder.embeddings.LayerNorm", x, eps)
    for i in range(2):
        layer = f"text_encoder.encoder.layer.{i}"
        parts = [linear(state, f"{layer}.attention.self.{name}", x) for name in ("query", "key", "value")]
        y = linear(state, f"{layer}.attention.output.dense", attend(*parts, 4))
        x = norm(state, f"{layer}.attention.output.LayerNorm", x + y, eps)
        y = linear(state, f"{layer}.output.dense", F.gelu(linear(state, f"{layer}.intermediate.dense", x)))
        x = norm(state, f"{layer}.output.LayerNorm", x + y, eps)
    return linear(state, "text_proj", x[:, 0])


@pytest.mark.parametrize("wrapped", [True, False])
def test_lavis_blip_retrieval(tmp_path, blip_folder, wrapped):
    state = lavis_state()
    torch.save({"model": state, "epoch": 5} if wrapped else state, tmp_path / "blip_coco_retrieval.pth")
    assert convert_checkpoint(tmp_path / "blip_coco_retrieval.pth", tmp_path / "hycir", blip_folder) == "blip"
    model, processor = load(tmp_path / "hycir")
    inputs = processor(images=[PICTURE], text=["red hat"], compose=False)
    eps = model.config.encoder_config.text_config.layer_norm_eps
    with torch.no_grad():
        image = model.get_image_features(inputs["pixel_values"])
        text = model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
    torch.testing.assert_close(image, F.normalize(lavis_image(state, inputs["pixel_values"])), atol=1e-5, rtol=0)
    torch.testing.assert_close(text, F.normalize(lavis_text(state, inputs["input_ids"], eps)), atol=1e-5, rtol=0)
    assert float(model.logit_scale) == pytest.approx(1 / 0.02)
    assert model.config.num_pseudo_tokens == 4 and isinstance(AutoModel.from_pretrained(tmp_path / "hycir"), HyCIRModel)


def test_lavis_own_outputs(tmp_path):
    """A checkpoint and features that salesforce-lavis wrote itself; tests/golden/README.md says how."""
    layers = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = dict(**layers, vocab_size=60, encoder_hidden_size=16, max_position_embeddings=35)
    text |= {"bos_token_id": 58, "pad_token_id": 0, "sep_token_id": 59, "eos_token_id": 59}
    vision = dict(**layers, image_size=32, patch_size=16)
    config = BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=12, projection_dim=12)
    encoder = save_encoder(tmp_path / "encoder", BlipForImageTextRetrieval(config))
    assert convert_checkpoint(GOLDEN / "lavis_blip_retrieval.pth", tmp_path / "hycir", encoder) == "blip"
    model, golden = load(tmp_path / "hycir")[0], load_file(GOLDEN / "lavis_blip_features.safetensors")
    with torch.no_grad():
        image = model.get_image_features(pixel_values=golden["pixel_values"])
        text = model.get_text_features(golden["input_ids"], golden["attention_mask"])
    torch.testing.assert_close(image, golden["image_features"], atol=1e-5, rtol=0)
    torch.testing.assert_close(text, golden["text_features"], atol=1e-5, rtol=0)
    assert float(model.logit_scale) == pytest.approx(1 / 0.02)


class Runs:
    """An object whose unpickling would run a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_checkpoint_runs_no_code(tmp_path, clip_folder):
    torch.save({"Phi": Runs(str(tmp_path / "ran"))}, tmp_path / "phi.pt")
    with pytest.raises(ValueError, match=r"phi\.pt"):
        convert_checkpoint(tmp_path / "phi.pt", tmp_path / "hycir", clip_folder)
    assert not (tmp_path / "ran").exists()


def test_what_does_not_fit_is_refused(tmp_path, clip_folder, blip_folder):
    with pytest.raises(ValueError, match=r"missing\.pt"):
        convert_checkpoint(tmp_path / "missing.pt", tmp_path / "out", clip_folder)
    with pytest.raises(ValueError, match=r"\['model'\]"):
        find_layout({"model": {}})
    torch.save({"Phi": random_state(linear_shapes("layers.0", JOINT + 1, WIDTH))}, tmp_path / "phi.pt")
    with pytest.raises(ValueError, match=r"(?s)phi\.pt.*size mismatch"):
        convert_checkpoint(tmp_path / "phi.pt", tmp_path / "out", clip_folder)
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt.*\blist\b"):
        convert_checkpoint(tmp_path / "list.pt", tmp_path / "out", clip_folder)
    torch.save(lavis_state(), tmp_path / "blip.pth")
    with pytest.raises(ValueError, match=r"\bblip\b.*'clip'"):
        convert_checkpoint(tmp_path / "blip.pth", tmp_path / "out", clip_folder)
    (tmp_path / "text.pt").write_text("no checkpoint\nat all\n")
    for stored, message in (({"model": 5}, r"\['model'\]"), ({"Phi": 5}, r"'Phi'.*\bint\b")):
        torch.save(stored, tmp_path / "other.pt")
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(tmp_path / "other.pt", tmp_path / "out", clip_folder)
    with pytest.raises(ValueError, match=r"text\.pt.*\(\w+\)"):
        convert_checkpoint(tmp_path / "text.pt", tmp_path / "out", clip_folder)
    with pytest.raises(ValueError, match="/nosuch/encoder"):
        convert_checkpoint(tmp_path / "phi.pt", tmp_path / "out", "/nosuch/encoder")
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over(tmp_path, clip_folder):
    torch.save({"Phi": random_state(phi_shapes(), 7)}, tmp_path / "phi.pt")
    (tmp_path / "file").write_text("mine")
    before = (clip_folder / "config.json").read_bytes()
    for output in (clip_folder, tmp_path / "file"):
        with pytest.raises(ValueError, match=str(output)):
            convert_checkpoint(tmp_path / "phi.pt", output, clip_folder)
    assert (clip_folder / "config.json").read_bytes() == before and (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert convert_checkpoint(tmp_path / "phi.pt", tmp_path / "empty", clip_folder) == "phi"


def test_the_command(tmp_path, clip_folder, capsys):
    torch.save({"epoch": 1, "Phi": random_state(phi_shapes(), 7)}, tmp_path / "phi.pt")
    command = ["convert", str(tmp_path / "phi.pt"), "--encoder", str(clip_folder), "--output", str(tmp_path / "hycir")]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"output": str(tmp_path / "hycir"), "layout": "phi"}
    assert main([*command[:3], str(tmp_path / "nowhere"), *command[4:]]) == 1
