import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import build_encoder, build_model, build_processor, random_picture

from hycir_hf import HyCIRModel

pytest.importorskip("sentence_transformers")
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.util import semantic_search

from hycir_hf.integrations.sentence_transformer import as_sentence_transformer

PICTURES = [random_picture(seed) for seed in range(5)]
QUERIES = [
    {"image": picture, "text": text}
    for picture, text in zip(PICTURES, ("make it night", "", "red", "a", "hat"), strict=True)
]


def composed(model, processor, queries=QUERIES):
    inputs = processor(images=[query["image"] for query in queries], text=[query["text"] for query in queries])
    with torch.no_grad():
        return model.get_composed_features(**inputs).numpy()


@pytest.mark.parametrize("family", ["clip", "blip"])
def test_encode_gives_the_models_features(family):
    model, processor = build_model(family), build_processor()
    encoder = as_sentence_transformer(model, processor)
    np.testing.assert_allclose(encoder.encode(QUERIES, batch_size=2), composed(model, processor), atol=1e-5)
    with torch.no_grad():
        images = model.get_image_features(processor(images=PICTURES)["pixel_values"]).numpy()
        texts = model.get_text_features(**processor(text=["red hat"], compose=False)).numpy()
    np.testing.assert_allclose(encoder.encode(PICTURES), images, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(["red hat"]), texts, atol=1e-5)
    np.testing.assert_allclose(encoder.encode([{"image": picture} for picture in PICTURES]), images, atol=1e-5)
    assert encoder.get_embedding_dimension() == model.config.feature_size == images.shape[1]


def test_a_path_is_an_image_and_the_key_order_does_not_matter(tmp_path):
    PICTURES[0].save(tmp_path / "picture.png")
    model, processor = build_model(), build_processor()
    encoder = as_sentence_transformer(model, processor)
    found = encoder.encode([{"text": "red", "image": str(tmp_path / "picture.png")}])
    np.testing.assert_allclose(found, composed(model, processor, [{"image": PICTURES[0], "text": "red"}]), atol=1e-5)
    np.testing.assert_allclose(encoder.encode([str(tmp_path / "picture.png")]), encoder.encode(PICTURES[:1]), atol=1e-5)


def test_saved_and_loaded_in_its_format(tmp_path):
    model, processor = build_model(), build_processor()
    encoder = as_sentence_transformer(model, processor)
    encoder.save_pretrained(str(tmp_path / "saved"))
    modules = json.loads((tmp_path / "saved" / "modules.json").read_text())
    assert [module["type"] for module in modules] == ["hycir_hf.integrations.sentence_transformer.HyCIRModule"]
    loaded = SentenceTransformer(str(tmp_path / "saved"), device="cpu", trust_remote_code=True)
    np.testing.assert_allclose(loaded.encode(QUERIES), composed(model, processor), atol=1e-5)
    plain = HyCIRModel.from_pretrained(tmp_path / "saved").state_dict()
    assert all(torch.equal(plain[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("family", ["clip", "blip", "siglip"])
def test_a_plain_folder_is_a_sentence_transformer(family, tmp_path):
    model, processor = build_model(family), build_processor(pad_to_max_length=family == "siglip")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    encoder = SentenceTransformer(str(tmp_path), device="cpu")
    expected = as_sentence_transformer(model, processor)
    for inputs in (PICTURES, ["red hat", "a dog"], QUERIES, [{"text": "red", "image": PICTURES[0]}]):
        np.testing.assert_allclose(encoder.encode(inputs), expected.encode(inputs), atol=1e-5)
    assert encoder.get_embedding_dimension() == model.config.feature_size


@pytest.mark.slow
def test_a_saved_folder_loads_in_a_clean_process(tmp_path):
    as_sentence_transformer(build_model(), build_processor()).save_pretrained(str(tmp_path / "saved"))
    PICTURES[0].save(tmp_path / "picture.png")
    code = (
        "import sys; from sentence_transformers import SentenceTransformer\n"
        "model = SentenceTransformer(sys.argv[1], device='cpu', trust_remote_code=True)\n"
        "print(model.encode([{'image': sys.argv[2], 'text': 'red'}]).shape)"
    )
    arguments = [str(tmp_path / "saved"), str(tmp_path / "picture.png")]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 24)"


def test_a_push_tells_no_local_path(hub, tmp_path):
    build_encoder("clip").save_pretrained(tmp_path / "encoder")
    model = HyCIRModel.from_encoder(tmp_path / "encoder", 3)
    as_sentence_transformer(model, build_processor()).push_to_hub("ann/encoder", private=True)
    repo = hub.repo("ann/encoder")
    assert repo.private and json.loads(repo.files["config.json"])["encoder_name_or_path"] is None
    assert not [name for name, content in repo.files.items() if str(tmp_path).encode() in content]
    assert model.config.encoder_name_or_path == str(tmp_path / "encoder")


def test_semantic_search_and_its_evaluator():
    encoder = as_sentence_transformer(build_model(), build_processor())
    queries, gallery = encoder.encode(QUERIES, convert_to_tensor=True), encoder.encode(PICTURES, convert_to_tensor=True)
    hits = semantic_search(queries, gallery, top_k=3)
    ranking = (queries @ gallery.T).argsort(descending=True)[:, :3]
    assert [[hit["corpus_id"] for hit in row] for row in hits] == ranking.tolist()
    relevant = {str(row): {str(int(found[0]))} for row, found in enumerate(ranking)}  # each query's first hit
    evaluator = InformationRetrievalEvaluator(
        queries={str(row): query for row, query in enumerate(QUERIES)},
        corpus={str(row): picture for row, picture in enumerate(PICTURES)},
        relevant_docs=relevant,
        mrr_at_k=[5],
        ndcg_at_k=[5],
        accuracy_at_k=[1],
        precision_recall_at_k=[1],
        map_at_k=[5],
    )
    assert evaluator(encoder)["cosine_accuracy@1"] == 1.0
