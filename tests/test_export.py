"""Tracing the model (torch.compile, torch.export, ONNX), and the ONNX folder that `hycir export` writes."""

import json

import numpy as np
import pytest
import torch
from conftest import FAMILIES, build_encoder, build_model, build_processor, image_inputs, random_picture
from torch import nn
from torch.export import Dim
from transformers.exporters import DynamoConfig, DynamoExporter, OnnxConfig, OnnxExporter
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from hycir_hf import ImageRetriever
from hycir_hf.cli import main

EVERY_FAMILY = ["clip", *(pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES if family != "clip")]
TEXTS = ("make it red", "make it red and green and blue, with a hat")


def inputs_of(family, num_rows, text):
    """Composed inputs; SigLIP 2's images have grids of patches of several shapes."""
    images = image_inputs(family, num_rows, seed=num_rows)
    if family == "siglip2":
        images["spatial_shapes"] = torch.tensor([[2, 2], [1, 3], [1, 1], [1, 4], [1, 2]][:num_rows])
        num_patches = images["spatial_shapes"].prod(-1, keepdim=True)
        images["pixel_attention_mask"] = (torch.arange(4) < num_patches).long()
    return dict(build_processor(pad_to_max_length="siglip" in family)(text=[text] * num_rows)) | images


def check_parity(run, model, family):
    """Batch and text length differ from those of the trace."""
    for num_rows, text in ((2, TEXTS[0]), (5, TEXTS[1])):
        inputs = inputs_of(family, num_rows, text)
        torch.testing.assert_close(run(**inputs), model.get_composed_features(**inputs), rtol=0, atol=1e-5)


class Composed(nn.Module):
    """`get_composed_features` as a forward method, whose arguments the exporters name."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(
        self, input_ids, attention_mask=None, pixel_values=None, pixel_attention_mask=None, spatial_shapes=None
    ):
        further = {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
        return self.model.get_composed_features(input_ids, attention_mask, pixel_values, **further)


def free_shapes(inputs):
    """Free batch, and free length where the processor does not pad to a fixed one."""
    is_free = "attention_mask" in inputs
    return {
        name: {0: Dim.DYNAMIC} | ({1: Dim.DYNAMIC} if is_free and name in ("input_ids", "attention_mask") else {})
        for name in inputs
    }


@pytest.mark.parametrize("family", EVERY_FAMILY)
@torch.no_grad()
def test_composed_features_compile_as_one_graph(family):
    torch._dynamo.reset()
    model = build_model(family)
    compiled = torch.compile(model.get_composed_features, fullgraph=True, dynamic=True, backend="eager")
    check_parity(compiled, model, family)


@pytest.mark.parametrize("family", EVERY_FAMILY)
@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
@torch.no_grad()
def test_torch_export_leaves_batch_and_length_free(family, strict):
    model = build_model(family)
    inputs = inputs_of(family, 2, TEXTS[0])
    program = torch.export.export(Composed(model).eval(), (), inputs, dynamic_shapes=free_shapes(inputs), strict=strict)
    check_parity(program.module(), model, family)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_torch_onnx_export_leaves_batch_and_length_free(family):
    pytest.importorskip("onnxruntime")
    model = build_model(family)
    inputs = inputs_of(family, 2, TEXTS[0])
    program = torch.onnx.export(
        Composed(model).eval(), (), kwargs=inputs, dynamic_shapes=free_shapes(inputs), dynamo=True
    )
    check_parity(lambda **inputs: program(**inputs)[0], model, family)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["clip", "blip", "siglip2"])
@pytest.mark.parametrize("exporter, config", [(DynamoExporter, DynamoConfig), (OnnxExporter, OnnxConfig)])
@torch.no_grad()
def test_transformers_exporters_take_the_model_itself(family, exporter, config):
    if exporter is OnnxExporter:
        pytest.importorskip("onnxruntime")
    model = build_model(family)
    exported = exporter().export(model, inputs_of(family, 2, TEXTS[0]), config(dynamic=True))
    check_parity(lambda **inputs: exported(**inputs).query_features, model, family)


@torch.no_grad()
def test_compiled_code_refuses_an_embedding_that_it_cannot_write_to():
    torch._dynamo.reset()
    model = build_model()
    embedding = build_encoder("clip").text_model.get_input_embeddings()
    model.encoder.text_model.set_input_embeddings(embedding)
    inputs = inputs_of("clip", 2, TEXTS[0])
    with pytest.raises(Exception, match="set_input_embeddings"):
        torch.compile(model.get_composed_features, fullgraph=True, backend="eager")(**inputs)
    model.set_input_embeddings(embedding)
    compiled = torch.compile(model.get_composed_features, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**inputs), model.get_composed_features(**inputs))


# --- the folder that `hycir export` writes


def save_model(folder, family="clip"):
    build_model(family).save_pretrained(folder)
    processor = build_processor(pad_to_max_length="siglip" in family)
    if family == "siglip2":
        processor.image_processor = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model's folder and its exported graphs."""
    pytest.importorskip("onnxruntime")
    place = tmp_path_factory.mktemp("export")
    assert main(["export", save_model(place / "model"), "--output", str(place / "graphs")]) == 0
    return place / "model", place / "graphs"


@pytest.mark.slow
def test_exported_graphs_give_the_features_of_the_model(folders):
    model, graphs = (ImageRetriever.from_pretrained(str(folder)) for folder in folders)
    assert type(graphs.encoder).__name__ == "OnnxEncoder"
    images = [random_picture(seed, (30 + seed, 20)) for seed in range(7)]
    texts = ["", "make it night", "a dog", "red", "green hat", "more", "make it red and green and blue with a hat"]
    rows = [images[:2], *images[1:]]  # the first query has two reference images
    for images_given, texts_given in ((images, None), (None, texts), (rows, texts)):
        expected = model.encode(images_given, texts_given)
        np.testing.assert_allclose(graphs.encode(images_given, texts_given), expected, atol=1e-5)


@pytest.mark.slow
def test_exported_graphs_index_and_search(folders, picture_folder, tmp_path, capsys):
    gallery = str(tmp_path / "gallery")
    assert main(["index", str(picture_folder), "--model", str(folders[1]), "--output", gallery]) == 0
    capsys.readouterr()
    assert main(["search", gallery, "--image", str(picture_folder / "03.png"), "--text", "red", "--json"]) == 0
    found = [one["image_id"] for one in json.loads(capsys.readouterr().out)["results"]]
    retriever = ImageRetriever.from_pretrained(str(folders[0]))
    retriever.index(picture_folder, tmp_path / "other", progress=False)
    expected = retriever.search(str(picture_folder / "03.png"), "red")[0]
    assert found == [id_ for id_, _ in expected]
    with pytest.raises(ValueError, match="encoder"):
        ImageRetriever.load(gallery, str(folders[0]))


@pytest.mark.slow
def test_exported_folder_holds_no_local_path(folders):
    for path in folders[1].iterdir():
        assert b"site-packages" not in path.read_bytes(), path.name
        assert str(folders[0]).encode() not in path.read_bytes(), path.name


@pytest.mark.slow
@pytest.mark.parametrize("family", ["blip", "siglip", "siglip2"])
def test_other_families_pass_their_own_check(family, tmp_path):
    export = pytest.importorskip("hycir_hf.integrations.export")
    found = export.export_model(save_model(tmp_path / "model", family), tmp_path / "graphs")
    assert min(found.values()) >= export.MIN_COSINE


@pytest.mark.slow
def test_int8_is_smaller_and_a_bad_export_leaves_nothing(folders, tmp_path, monkeypatch):
    export = pytest.importorskip("hycir_hf.integrations.export")
    monkeypatch.setattr(export, "MIN_COSINE_INT8", 0.5)  # random weights quantize badly
    found = export.export_model(str(folders[0]), tmp_path / "int8", int8=True)
    assert max(found.values()) < 1 - 1e-6
    size = (tmp_path / "int8" / "image.onnx.data").stat().st_size
    assert size < 0.6 * (folders[1] / "image.onnx.data").stat().st_size
    monkeypatch.setattr(export, "MIN_COSINE_INT8", 1.1)
    with pytest.raises(ValueError, match=r"1\.1"):
        export.export_model(str(folders[0]), tmp_path / "bad", int8=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8"]


def test_an_export_writes_over_nothing(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["export", "OWNER/MODEL", "--output", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err
