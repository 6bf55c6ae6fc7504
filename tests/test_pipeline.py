import os
import subprocess
import sys

import pytest
import torch
from conftest import build_encoder, build_model, build_processor, random_picture
from transformers import AutoProcessor, pipeline

import hycir_hf.integrations.transformers_pipeline
from hycir_hf import Gallery, HyCIRModel
from hycir_hf.retriever import HyCIREncoder, ImageRetriever

PICTURES = [random_picture(seed) for seed in range(12)]
QUERIES = [{"image": random_picture(20 + i), "text": text} for i, text in enumerate(["make it night", "", "red hat"])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    build_model().save_pretrained(folder)
    build_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def retrieve(folder):
    return pipeline("composed-image-retrieval", model=str(folder), gallery=PICTURES, k=4)


def expected(query, gallery, k=4, **options):
    model = build_model()
    retriever = ImageRetriever(HyCIREncoder(model, build_processor()), gallery)
    ranking = retriever.search(query["image"], query["text"], k, **options)[0]
    return [id_ for id_, _ in ranking], [score for _, score in ranking]


def test_a_query_is_ranked_as_by_hand(retrieve):
    gallery = Gallery.from_images(build_model(), build_processor(), PICTURES, progress=False)
    for query in QUERIES:
        ranking = retrieve(query)
        ids, scores = expected(query, gallery)
        assert [hit["id"] for hit in ranking] == ids
        torch.testing.assert_close(
            torch.tensor([hit["score"] for hit in ranking]), torch.tensor(scores), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_batches_and_generators_give_the_same(retrieve, batch_size):
    single = [[hit["id"] for hit in retrieve(query)] for query in QUERIES]
    for queries in (QUERIES, (query for query in QUERIES)):
        found = retrieve(queries, batch_size=batch_size)
        assert [[hit["id"] for hit in ranking] for ranking in found] == single
    assert retrieve([], batch_size=batch_size) == []


def test_a_call_has_its_own_gallery_k_and_exclusions(retrieve, tmp_path):
    gallery = Gallery.from_images(build_model(), build_processor(), PICTURES[:5], ids=list("abcde"), progress=False)
    gallery.save(tmp_path / "gallery")
    for given in (gallery, tmp_path / "gallery", str(tmp_path / "gallery")):
        assert {hit["id"] for hit in retrieve(QUERIES[0], gallery=given, k=9)} == set("abcde")
    best = retrieve(QUERIES[0], gallery=gallery, k=1)[0]["id"]
    rankings = retrieve([QUERIES[0] | {"exclude_ids": [best]}, QUERIES[0]], gallery=gallery, k=9, batch_size=2)
    assert best not in {hit["id"] for hit in rankings[0]} and rankings[1][0]["id"] == best
    assert len(retrieve(QUERIES[0])) == 4  # the pipeline's own are as before


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_string_as_exclude_ids_is_refused_whatever_the_batch(retrieve, batch_size):
    with pytest.raises(ValueError, match=r"exclude_ids.*'1'"):
        retrieve([QUERIES[0] | {"exclude_ids": "1"}, QUERIES[1]], batch_size=batch_size)


def test_a_model_in_training_mode_ranks_as_in_eval_mode(folder, retrieve):
    model = HyCIRModel.from_pretrained(folder).train()
    training = pipeline("composed-image-retrieval", model=model, processor=build_processor(), gallery=PICTURES, k=4)
    model.train()
    assert training(QUERIES) == retrieve(QUERIES)


def test_several_reference_images(retrieve):
    assert len(retrieve({"image": [PICTURES[0], PICTURES[1]], "text": "red"})) == 4


def test_wrong_use_is_named(folder, retrieve):
    with pytest.raises(ValueError, match=r"\['image'\]"):
        retrieve({"image": PICTURES[0]})
    with pytest.raises(ValueError, match=r"\bstr\b"):
        retrieve(["make it night"])
    with pytest.raises(ValueError, match=r"\['top_k'\]"):
        retrieve(QUERIES[0], top_k=3)
    with pytest.raises(ValueError, match="gallery="):
        pipeline("composed-image-retrieval", model=str(folder))(QUERIES[0])
    other = HyCIRModel.from_encoder(build_encoder("clip", seed=5), 3)
    with pytest.raises(ValueError, match=other.encoder_fingerprint()):
        retrieve(QUERIES[0], gallery=Gallery.from_images(other, build_processor(), PICTURES, progress=False))


def test_the_task_is_registered():
    assert (
        hycir_hf.integrations.transformers_pipeline.TASK
        in hycir_hf.integrations.transformers_pipeline.PIPELINE_REGISTRY.get_supported_tasks()
    )


@pytest.mark.slow
def test_a_saved_pipeline_loads_in_a_clean_process(retrieve, tmp_path):
    retrieve.save_pretrained(tmp_path / "saved")
    PICTURES[0].save(tmp_path / "picture.png")
    code = (
        "import sys; from transformers import AutoProcessor, pipeline\n"
        "retrieve = pipeline(model=sys.argv[1], trust_remote_code=True, gallery=[sys.argv[2]], k=1)\n"
        "print(type(retrieve).__module__.split('.')[0], retrieve({'image': sys.argv[2], 'text': 'red'})[0]['id'])\n"
        "retrieve.save_pretrained(sys.argv[1] + '/again')"
    )
    arguments = [str(tmp_path / "saved"), str(tmp_path / "picture.png")]
    env = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["transformers_modules", str(tmp_path / "picture.png")]
    assert (tmp_path / "saved" / "again" / "transformers_pipeline.py").is_file()


def test_a_saved_pipeline_ranks_the_same(retrieve, tmp_path):
    retrieve.save_pretrained(tmp_path)
    assert type(AutoProcessor.from_pretrained(tmp_path)) is type(retrieve.processor)
    loaded = pipeline(model=str(tmp_path), trust_remote_code=True, gallery=PICTURES, k=4)
    assert loaded(QUERIES) == retrieve(QUERIES)


def test_a_pushed_pipeline_is_whole_and_private(hub, tmp_path):
    build_encoder("clip").save_pretrained(tmp_path / "encoder")
    model = HyCIRModel.from_encoder(tmp_path / "encoder", 3)
    pipeline("composed-image-retrieval", model=model, processor=build_processor()).push_to_hub("ann/retrieve")
    repo = hub.repo("ann/retrieve")
    assert repo.private and {"transformers_pipeline.py", "modeling_hycir.py", "processor_config.json"} <= set(
        repo.files
    )
    assert not [name for name, content in repo.files.items() if str(tmp_path).encode() in content]
