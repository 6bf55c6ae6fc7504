"""The HTTP service on the loopback address, through uvicorn, httpx and OpenAI's own client."""

import base64
import concurrent.futures
import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import uvicorn
from conftest import build_model, build_processor, random_picture
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from hycir_hf.cli.main import build_app, main
from hycir_hf.hosts import listen
from hycir_hf.retriever import HyCIREncoder, ImageRetriever
from hycir_hf.serving import build_service

KEY = "s3cret"
ROOT = Path(__file__).parents[1]
SERVICE = ROOT / "examples" / "service"
HAS_DOCKER = shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved model, 24 photos and their gallery."""
    root = tmp_path_factory.mktemp("serving")
    build_model().save_pretrained(root / "model")
    build_processor().save_pretrained(root / "model")
    for number in range(24):
        path = root / "photos" / ("day", "night")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        random_picture(number).save(path)
    retriever = ImageRetriever.from_pretrained(str(root / "model"))
    retriever.index(root / "photos", root / "gallery", progress=False)
    return root


@pytest.fixture(scope="module")
def retriever(saved):
    return ImageRetriever.load(saved / "gallery")


@contextlib.contextmanager
def running(retriever, **options):
    """A service in a thread of its own; gives its address."""
    config = uvicorn.Config(build_service(retriever, watch_seconds=0.05, **options), log_config=None, access_log=False)
    server = uvicorn.Server(config)
    with listen("127.0.0.1") as sockets:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sockets]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{sockets.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def url(retriever):
    with running(retriever) as found:
        yield found


@pytest.fixture
def client(url):
    with httpx.Client(base_url=url, timeout=60) as found:
        yield found


def png(seed=0, size=(20, 14)):
    buffer = io.BytesIO()
    random_picture(seed, size).save(buffer, "PNG")
    return buffer.getvalue()


def encoded(seed=0):
    return base64.b64encode(png(seed)).decode()


def ranking(response):
    assert response.status_code == 200, response.text
    return [(one["image_id"], pytest.approx(one["score"], abs=1e-5)) for one in response.json()["results"]]


def message(response, status):
    assert response.status_code == status, response.text
    return response.json()["error"]["message"]


def metrics(address, **headers):
    text = httpx.get(f"{address}/metrics", headers=headers).text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_search_in_every_form_is_the_retrievers(client, retriever):
    expected = retriever.search("day/0.png", "make it night", k=5)[0]
    by_id = {"references": ["day/0.png"], "text": "make it night", "k": 5}
    assert ranking(client.post("/search", json=by_id)) == expected
    assert client.post("/search", json=by_id).json()["excluded"] == ["day/0.png"]
    assert ranking(client.post("/search", json=by_id | {"references": [{"id": "day/0.png"}]})) == expected
    form = {"reference_id": "day/0.png", "text": "make it night", "k": "5"}
    assert ranking(client.post("/search", data=form)) == expected
    assert ranking(client.post("/search", files={name: (None, value) for name, value in form.items()})) == expected


def test_an_upload_and_base64_are_the_same_image(client, retriever):
    expected = retriever.search(random_picture(0), "make it night", k=5)[0]
    fields = {"text": "make it night", "k": "5"}
    assert ranking(client.post("/search", files={"image": ("a.png", png())}, data=fields)) == expected
    for image in (encoded(), f"data:image/png;base64,{encoded()}"):
        asked = {"references": [{"image": image}], "text": "make it night", "k": 5}
        assert ranking(client.post("/search", json=asked)) == expected


def test_several_references_weights_and_without(client, retriever):
    images = [random_picture(0), random_picture(1)]
    expected = retriever.search(images, "red", k=24)[0]
    files = [("image", ("a.png", png(0))), ("image", ("b.png", png(1)))]
    assert ranking(client.post("/search", files=files, data={"text": "red", "k": 24})) == expected
    asked = {
        "references": [{"id": "day/0.png", "weight": 0.6}, {"image": encoded(1)}],
        "text": [{"text": "red", "weight": 1.0}, "a dog"],
        "without": ["snow", {"text": "cat", "weight": 0.2}],
        "keep_reference": True,
    }
    expected = retriever.search(
        [("day/0.png", 0.6), images[1]], ["red", "a dog"], without=["snow", ("cat", 0.2)], keep_reference=True
    )
    assert ranking(client.post("/search", json=asked)) == expected[0]


def test_exclude_filter_and_restrict_to(client, retriever):
    nights = [id_ for id_ in retriever.gallery.ids if id_.startswith("night/")]
    asked = {"text": "a red dog", "k": 24, "exclude": nights[:2], "filter": "night/*"}
    found = ranking(client.post("/search", json=asked))
    assert found == retriever.search(text="a red dog", k=24, restrict_to=nights[2:])[0]
    asked = {"text": "a red dog", "restrict_to": nights[:3], "filter": ["night/1.*", "*/11.png"]}
    assert {id_ for id_, _ in ranking(client.post("/search", json=asked))} == {"night/1.png", "night/11.png"}
    assert ranking(client.post("/search", json={"text": "red", "filter": "n*"})) == ranking(
        client.post("/search", json={"text": "red", "restrict_to": nights})
    )
    assert client.post("/search", json={"text": "red", "filter": "nowhere*"}).json()["results"] == []
    form = {"text": "red", "exclude": nights, "filter": ["day/*", "night/*"], "k": "24"}
    found = ranking(client.post("/search", data=form, files={"image": ("a.png", png())}))
    assert len(found) == 12 and all(id_.startswith("day/") for id_, _ in found)


BOMB = io.BytesIO()
Image.new("1", (13000, 13000)).save(BOMB, "PNG")


@pytest.mark.parametrize(
    ("asked", "status", "fact"),
    [
        ({}, 400, "image"),
        ({"text": "red", "k": 0}, 400, "k"),
        ({"text": "red", "k": "many"}, 400, "k"),
        ({"text": "red", "txet": "red"}, 400, "txet"),
        ({"text": "x" * 2001}, 400, "text"),
        ({"text": 7}, 400, "text"),
        ({"text": {"text": "red", "weight": -1}}, 400, "weight"),
        ({"text": "red", "without": {"text": "red", "weight": 1}}, 400, "cancel"),
        ({"without": "red"}, 400, "image"),
        ({"references": ["nosuch.png"]}, 404, "nosuch.png"),
        ({"references": ["../model/config.json"]}, 404, "config.json"),
        ({"references": ["/etc/passwd"]}, 404, "passwd"),
        ({"text": "red", "exclude": ["nosuch.png"]}, 404, "exclude"),
        ({"text": "red", "exclude": "day/0.png"}, 400, "exclude"),
        ({"references": [{}]}, 400, "id or image"),
        ({"references": [{"id": "day/0.png", "image": "aaaa"}]}, 400, "id or image"),
        ({"references": [{"image": "not base64!"}]}, 400, "base64"),
        ({"references": [{"image": ""}]}, 400, "empty"),
        ({"references": [{"image": "aGVsbG8="}]}, 400, "5 bytes"),
        ({"references": [{"image": "http://127.0.0.1:9/a.png"}]}, 400, "URL"),
        ({"references": [{"image": "file:///etc/passwd"}]}, 400, "URL"),
        ({"references": [{"image": base64.b64encode(BOMB.getvalue()).decode()}]}, 413, "pixels"),
        ({"references": ["day/0.png"] * 17}, 400, "references"),
        ({"text": "red", "filter": ""}, 400, "filter"),
        ({"text": "red", "filter": "*a" * 300}, 400, "filter"),
    ],
)
def test_what_cannot_be_answered_says_why(client, asked, status, fact):
    text = message(client.post("/search", json=asked), status)
    assert fact in text and "/tmp" not in text and "Traceback" not in text
    assert client.get("/health").json()["status"] == "ok"


def test_bodies_of_other_kinds_are_refused(client):
    assert "JSON" in message(client.post("/search", content=b"{", headers={"content-type": "application/json"}), 400)
    assert "text/plain" in message(client.post("/search", content=b"{}", headers={"content-type": "text/plain"}), 415)
    headers = {"content-type": "multipart/form-data; boundary=x"}
    message(client.post("/search", content=b"nothing of the kind", headers=headers), 400)
    message(client.post("/search", content=b"{}", headers={"content-type": "multipart/form-data"}), 400)
    assert "file" in message(client.post("/search", files={"image": (None, "cat.jpg")}), 400)
    assert "txet" in message(client.post("/search", files={"txet": (None, "red")}), 400)
    deep = b"[" * 100_000
    message(client.post("/v1/embeddings", content=deep, headers={"content-type": "application/json"}), 400)
    message(client.get("/search"), 405)
    message(client.get("/nosuch"), 404)


def test_a_client_that_leaves_is_no_failure_of_the_service(client, url, caplog):
    head = "POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    count = ("hycir_requests_total", "/search", "400")
    before = metrics(url).get(count, 0)
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        connection.sendall(head.encode())
    wait_until(lambda: metrics(url).get(count, 0) == before + 1)
    assert metrics(url)[("hycir_waiting_requests",)] == 0 and "Traceback" not in caplog.text


def test_images_that_are_gone_are_said_without_folders(retriever, saved, tmp_path):
    lost = ImageRetriever(retriever.encoder, retriever.gallery, tmp_path)
    lost.gallery.source = {"type": "folder", "path": str(tmp_path / "gone")}
    try:
        with running(lost) as address:
            text = message(httpx.post(f"{address}/search", json={"references": ["day/0.png"]}), 400)
            assert "day/0.png" in text and str(tmp_path) not in text
            assert httpx.post(f"{address}/search", json={"references": [{"image": encoded()}]}).status_code == 200
    finally:
        lost.gallery.source = ImageRetriever.load(saved / "gallery").gallery.source


@pytest.fixture
def openai_client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as found:
        yield found


def vectors(response):
    return np.array([one.embedding for one in response.data], dtype=np.float32)


def test_embeddings_through_openais_client(openai_client, retriever):
    texts = ["a red dog", "night"]
    expected = retriever.encode(texts=texts)
    for encoding in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
        found = openai_client.embeddings.create(model="any", input=texts, **encoding)
        if encoding.get("encoding_format") == "base64":
            rows = [np.frombuffer(base64.b64decode(one.embedding), "<f4") for one in found.data]
            np.testing.assert_allclose(rows, expected, atol=1e-5)
        else:
            np.testing.assert_allclose(vectors(found), expected, atol=1e-5)
        assert [one.index for one in found.data] == [0, 1] and found.model == "model"
    np.testing.assert_allclose(
        vectors(openai_client.embeddings.create(model="any", input="night", dimensions=24)), expected[1:], atol=1e-5
    )


def test_embeddings_of_images_and_of_both(openai_client, retriever):
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded(3)}"}}
    text = {"type": "text", "text": "make it night"}
    found = vectors(openai_client.embeddings.create(model="any", input=[image, text, [image, text], [image], "red"]))
    picture = random_picture(3)
    np.testing.assert_allclose(found[0], retriever.encode(images=[picture])[0], atol=1e-5)
    np.testing.assert_allclose(found[1], retriever.encode(texts=["make it night"])[0], atol=1e-5)
    np.testing.assert_allclose(found[2], retriever.encode(images=[picture], texts=["make it night"])[0], atol=1e-5)
    np.testing.assert_allclose(found[3], found[0], atol=1e-6)
    messages = [{"role": "user", "content": [image, text]}]
    by_chat = openai_client.post("/embeddings", body={"model": "any", "messages": messages}, cast_to=httpx.Response)
    np.testing.assert_allclose(by_chat.json()["data"][0]["embedding"], found[2], atol=1e-5)


@pytest.mark.parametrize(
    ("asked", "fact"),
    [
        ({"input": ""}, "Input 0"),
        ({"input": []}, "input"),
        ({"input": [[1, 2, 3]]}, "input"),
        ({"input": "red", "dimensions": 7}, "24"),
        ({"input": ["red"] * 65}, "input"),
        ({"input": [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]}, "URL"),
        ({"input": [{"type": "audio", "text": "red"}]}, "input"),
        ({"input": "red", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "red", "messages": [{"content": "red"}]}, "messages"),
        ({}, "input"),
    ],
)
def test_embeddings_that_cannot_be_made_say_why(openai_client, asked, fact):
    with pytest.raises(openai.BadRequestError, match=fact):
        openai_client.post("/embeddings", body={"model": "any", **asked}, cast_to=httpx.Response)


def test_health_metrics_and_openapi(client, url):
    health = client.get("/health").json()
    assert (health["images"], health["dim"], health["model"]) == (24, 24, "model") and health["reload_error"] is None
    before = metrics(url)
    client.post("/search", json={"text": "red"})
    client.get("/no/such/path")
    after = metrics(url)
    count = ("hycir_requests_total", "/search", "200")
    assert after[count] == before.get(count, 0) + 1 and after[("hycir_requests_total", "other", "404")] >= 1
    assert after[("hycir_gallery_images",)] == 24 and after[("hycir_waiting_requests",)] == 0
    described = client.get("/openapi.json").json()
    schemas, paths = described["components"]["schemas"], described["paths"]
    assert {"/search", "/v1/embeddings", "/health", "/metrics"} == set(paths)
    assert "http" not in json.dumps(described).replace("HTTP", "")
    for name in re.findall(r"#/components/schemas/(\w+)", json.dumps(described)):
        assert name in schemas
    assert set(paths["/search"]["post"]["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
    message(client.get("/docs"), 404)  # it would load scripts from another host


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "", "127.0.0.1.evil.example", "[::1", "10.0.0.1"])
def test_a_foreign_host_name_is_refused(client, host):
    for answer in (
        client.get("/health", headers={"host": host}),
        client.post("/search", headers={"host": host}, json={"text": "red"}),
    ):
        assert answer.status_code == 403


def test_own_host_names_are_answered(client, url):
    port = url.rpartition(":")[2]
    for host in (f"localhost:{port}", "127.0.0.1", "LOCALHOST", f"[::1]:{port}"):
        assert client.get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:1", "http://127.0.0.1", "file://"]
)
def test_a_foreign_origin_is_refused_on_every_post(client, origin):
    for path in ("/search", "/v1/embeddings", "/health"):
        assert client.post(path, headers={"origin": origin}, json={"text": "red"}).status_code == 403
    own = {"origin": str(client.base_url).rstrip("/")}
    assert client.post("/search", headers=own, json={"text": "red"}).status_code == 200


def test_hosts_and_origins_can_be_allowed(retriever):
    options = {"allowed_hosts": ["search.example"], "allowed_origins": ["https://page.example"]}
    with running(retriever, **options) as address, httpx.Client(base_url=address) as client:
        for host, origin, status in (
            ("search.example", "https://page.example", 200),
            ("search.example:8000", "https://search.example:8000", 200),
            ("search.example", "https://other.example", 403),
            ("other.example", "https://page.example", 403),
        ):
            answer = client.post("/search", headers={"host": host, "origin": origin}, json={"text": "red"})
            assert answer.status_code == status
    with running(retriever, host="0.0.0.0") as address:  # behind a proxy: any name of its own
        headers = {"host": "any.example", "origin": "https://any.example"}
        assert httpx.post(f"{address}/search", headers=headers, json={"text": "red"}).status_code == 200


def test_the_api_key(retriever):
    with running(retriever, api_key=KEY) as address, httpx.Client(base_url=address) as client:
        for key in (None, "", KEY, f"Basic {KEY}", "Bearer", "Bearer wrong", f"Bearer {KEY}x", "Bearer é".encode()):
            headers = {} if key is None else {"authorization": key}
            answer = client.post("/search", headers=headers, json={"text": "red"})
            assert answer.status_code == 401 and KEY not in answer.text
            assert client.get("/metrics", headers=headers).status_code == 401
        assert client.get("/health").status_code == 200 and client.get("/openapi.json").status_code == 200
        headers = {"authorization": f"Bearer {KEY}"}
        assert client.post("/search", headers=headers, json={"text": "red"}).status_code == 200
        assert metrics(address, **headers)[("hycir_requests_total", "/search", "401")] == 8
        with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0) as other:
            assert len(other.embeddings.create(model="any", input="red").data) == 1
    with pytest.raises(ValueError, match="api_key"):
        build_service(retriever, api_key=" ")


def chunks(size):
    for _ in range(size // 2**16):
        yield b"x" * 2**16


def test_large_requests_are_refused(retriever, client):
    noise = png(size=(2600, 2200))  # 17 MB
    assert len(ranking(client.post("/search", files={"image": noise}))) == 10
    with running(retriever, max_request_mb=1) as address, httpx.Client(base_url=address) as client:
        large = {"references": [{"image": "a" * 2**21}]}
        assert "bytes" in message(client.post("/search", json=large), 413)
        headers = {"content-type": "application/json"}
        assert "bytes" in message(client.post("/search", content=chunks(2**22), headers=headers), 413)  # no length
        assert "bytes" in message(client.post("/search", files={"image": ("a", b"x" * 2**21)}), 413)
        assert client.post("/search", json={"text": "red"}).status_code == 200


class SlowEncoder:
    """The real encoder, which waits until it may go on."""

    def __init__(self, encoder):
        self.encoder, self.may_go = encoder, threading.Event()
        self.batches = []

    def __getattr__(self, name):
        return getattr(self.encoder, name)

    def encode_texts(self, texts):
        self.batches.append(len(texts))
        assert self.may_go.wait(60)
        return self.encoder.encode_texts(texts)


def wait_until(is_true):
    for _ in range(1200):
        if is_true():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to pass within a minute")


def test_requests_that_wait_are_answered_in_one_batch_and_too_many_are_refused(retriever, saved):
    slow = SlowEncoder(retriever.encoder)
    served = ImageRetriever(slow, retriever.gallery, saved / "gallery")
    words = ["red", "blue", "green", "night", "day", "dog", "cat", "snow"]
    with running(served, max_queue=8) as address, concurrent.futures.ThreadPoolExecutor(8) as pool:

        def ask(word):
            return httpx.post(f"{address}/search", json={"text": word, "k": 3 + len(word)}, timeout=60)

        answers = [pool.submit(ask, words[0])]
        wait_until(lambda: slow.batches)
        answers += [pool.submit(ask, word) for word in words[1:]]
        wait_until(lambda: metrics(address)[("hycir_waiting_requests",)] == 8)
        refused = ask("fire")
        assert message(refused, 503) and refused.headers["retry-after"]
        slow.may_go.set()
        for word, answer in zip(words, answers, strict=True):
            assert ranking(answer.result()) == retriever.search(text=word, k=3 + len(word))[0]
    assert slow.batches == [1, 7]


class BrokenEncoder(SlowEncoder):
    """Fails on one text."""

    def encode_texts(self, texts):
        if not self.batches:
            self.batches.append(0)
            assert self.may_go.wait(60)
        if "snow" in texts:
            raise RuntimeError("secret details")
        return self.encoder.encode_texts(texts)


def test_one_request_that_fails_spoils_no_other(retriever, saved):
    broken = BrokenEncoder(retriever.encoder)
    with running(ImageRetriever(broken, retriever.gallery, saved / "gallery")) as address:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            answers = {
                word: pool.submit(httpx.post, f"{address}/search", json={"text": word}, timeout=60)
                for word in ("red", "blue", "snow", "night")
            }
            wait_until(lambda: metrics(address)[("hycir_waiting_requests",)] == 4)
            broken.may_go.set()
        assert "secret" not in message(answers["snow"].result(), 500)
        assert all(answers[word].result().status_code == 200 for word in ("red", "blue", "night"))


def test_eight_clients_while_the_gallery_is_updated(retriever, saved, tmp_path):
    photos, gallery = tmp_path / "photos", tmp_path / "gallery"
    photos.mkdir()
    for number in range(10):
        random_picture(number).save(photos / f"{number}.png")
    own = ImageRetriever(retriever.encoder)
    own.index(photos, gallery, progress=False)
    is_done = threading.Event()

    def ask(address, number):
        count = 0
        with httpx.Client(base_url=address, timeout=60) as client:
            while not is_done.is_set() or count < 5:
                kept = {"references": ["0.png"], "text": "red", "k": 100}
                found = client.post("/search", json=kept).json()["results"]
                assert len(found) in (9, 14, 4)  # one state of the gallery or another, never a mixture
                upload = client.post("/search", files={"image": ("a.png", png(number))}, data={"k": "3"})
                assert len(ranking(upload)) == 3
                gone = client.post("/search", json={"text": "red", "exclude": ["9.png"]})
                assert gone.status_code in (200, 404)
                count += 1
        return count

    with running(ImageRetriever.load(gallery)) as address, concurrent.futures.ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(ask, address, number) for number in range(8)]
        for number in range(10, 15):
            random_picture(number).save(photos / f"{number}.png")
        own.index(photos, gallery, progress=False)
        wait_until(lambda: httpx.get(f"{address}/health").json()["images"] == 15)
        for number in range(5, 15):
            (photos / f"{number}.png").unlink()
        own.index(photos, gallery, progress=False)
        wait_until(lambda: httpx.get(f"{address}/health").json()["images"] == 5)
        is_done.set()
        assert all(one.result() >= 5 for one in clients)
        health = httpx.get(f"{address}/health").json()
        assert health["reloads"] >= 1 and metrics(address)[("hycir_waiting_requests",)] == 0


def test_a_gallery_that_cannot_be_loaded_changes_nothing(retriever, saved, tmp_path, caplog):
    gallery = tmp_path / "gallery"
    ImageRetriever(retriever.encoder).index(saved / "photos", gallery, progress=False)
    manifest = gallery / "manifest.json"
    with running(ImageRetriever.load(gallery)) as address:
        other = HyCIREncoder(build_model("clip_legacy"), build_processor())
        ImageRetriever(other).index(saved / "photos", gallery, progress=False)
        wait_until(lambda: httpx.get(f"{address}/health").json()["reload_error"])
        assert metrics(address)[("hycir_gallery_is_stale",)] == 1 and "fingerprint" in caplog.text
        assert len(ranking(httpx.post(f"{address}/search", json={"text": "red"}))) == 10
    with running(retriever) as address:
        manifest.unlink()  # of another gallery: nothing happens
        assert httpx.get(f"{address}/health").json()["reload_error"] is None


def test_a_gallery_that_changed_while_the_model_was_loaded_is_seen(retriever, saved, tmp_path):
    gallery = tmp_path / "gallery"
    own = ImageRetriever(retriever.encoder)
    own.index(saved / "photos" / "day", gallery, progress=False)
    loaded = ImageRetriever.load(gallery)
    own.index(saved / "photos", gallery, progress=False)
    with running(loaded) as address:
        wait_until(lambda: httpx.get(f"{address}/health").json()["images"] == 24)


def start_command(saved, *words, **environment):
    code = "import sys; from hycir_hf.cli.main import build_app, main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "serve", str(saved / "gallery"), "--port", "0", *words]
    process = subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.PIPE, text=True)
    lines = []
    for line in process.stderr:
        lines.append(line)
        if '"listening"' in line:
            return process, json.loads(line)["url"]
    raise AssertionError("".join(lines))


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_logs_and_ends(saved, stop):
    process, address = start_command(saved, HYCIR_API_KEY=KEY)
    try:
        assert httpx.post(f"{address}/search", json={"text": "red"}).status_code == 401
        headers = {"authorization": f"Bearer {KEY}"}
        answer = httpx.post(f"{address}/search", headers=headers, json={"text": "a private text " * 60}, timeout=60)
        assert len(answer.json()["results"]) == 10
        process.send_signal(stop)
        _, log = process.communicate(timeout=60)
        assert process.returncode == 0
    finally:
        process.kill()
    records = [json.loads(line) for line in log.splitlines()]
    requests = [one for one in records if one["message"] == "request"]
    assert [(one["method"], one["path"], one["status"]) for one in requests] == [
        ("POST", "/search", 401),
        ("POST", "/search", 200),
    ]
    assert KEY not in log and "private" not in log and all(one["seconds"] >= 0 for one in requests)


@pytest.mark.slow
def test_the_example_clients(retriever, saved):
    image = str(saved / "photos" / "day" / "0.png")
    with running(retriever, api_key=KEY) as address:
        environment = os.environ | {"HYCIR_URL": address, "HYCIR_API_KEY": KEY}
        command = [sys.executable, str(SERVICE / "client.py"), image, "make it night"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        first, *_, best, vector = done.stdout.splitlines()
        expected = retriever.search(random_picture(0), "make it night", k=1)[0][0]
        assert first == f"1  {expected[1]:+.4f}  {expected[0]}"
        assert best.rpartition(" ")[2] in retriever.gallery and "24" in vector
        refused = subprocess.run(command, env=environment | {"HYCIR_API_KEY": "x"}, capture_output=True, text=True)
        assert refused.returncode == 1 and "401" in refused.stderr and "Traceback" not in refused.stderr
        if shutil.which("curl"):
            command = [str(SERVICE / "curl.sh"), image, "make it night"]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            health, by_file, by_text, _ = map(str.strip, filter(None, done.stdout.split("\n", 3)))
            assert json.loads(health)["images"] == 24 and json.loads(by_file)["results"][0]["image_id"] == expected[0]
            assert len(json.loads(by_text)["results"]) == 3


def test_the_dockerfile_copies_what_is_there_and_serves(monkeypatch):
    lines = (SERVICE / "Dockerfile").read_text(encoding="utf-8").splitlines()
    sources = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert "hycir_hf" in sources and all((ROOT / name).exists() for name in sources)
    words = [json.loads(line.partition(" ")[2]) for line in lines if line.startswith(("ENTRYPOINT", "CMD"))]
    command, bound, _ = build_app().parse_args([*words[0][1:], *words[1]])
    assert command.__name__ == "serve" and bound.arguments["host"] == "0.0.0.0" and bound.arguments["port"] == 8000


@pytest.mark.slow
@pytest.mark.skipif(not HAS_DOCKER, reason="needs docker with a running daemon")
def test_the_image_builds():
    command = ["docker", "build", "-f", str(SERVICE / "Dockerfile"), "-t", "hycir-serve-test", str(ROOT)]
    assert subprocess.run(command, capture_output=True, text=True, check=False).returncode == 0


@pytest.mark.slow
def test_the_walk_of_a_platform_engineer(tmp_path):
    walk = [sys.executable, str(ROOT / "tests" / "walks" / "service.py"), str(tmp_path / "walk")]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(walk, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "1000 requests: {200: 1000}" in done.stdout and "320 images" in done.stdout


def test_the_commands_stupid_inputs(saved, tmp_path, capsys, monkeypatch):
    assert main(["serve", str(tmp_path)]) == 1
    assert "manifest.json" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", str(saved / "gallery"), "--port", port]) == 1
    assert port in capsys.readouterr().err
    assert main(["serve", str(saved / "gallery"), "--port", "99999"]) == 1
    assert "99999" in capsys.readouterr().err
    assert main(["serve", str(saved / "gallery"), "--max-queue", "0"]) == 2
    assert "--max-queue" in capsys.readouterr().err
    monkeypatch.setenv("HYCIR_API_KEY", "")
    assert main(["serve", str(saved / "gallery")]) == 1
    assert "api_key" in capsys.readouterr().err
