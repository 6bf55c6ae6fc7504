"""The search page: its actions as values, then in a real browser, and the Space through Gradio's own client."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import gradio
import httpx
import pytest
from datasets import Image as ImageFeature
from datasets import load_dataset
from PIL import Image

from hycir_hf import Gallery, ImageRetriever
from hycir_hf.app import METHODS, GallerySearcher, build_app, launch_app
from hycir_hf.app.page import _search_endpoint
from hycir_hf.app.rendering import render_gallery, render_header, render_results
from hycir_hf.app.session import MAX_HISTORY, PAGE_SIZE, Browsing, Session, go_back, pick, pick_id, search, upload
from hycir_hf.app.session import search_again as again
from hycir_hf.cli.main import main

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "examples" / "emoji" / "hycir"
HOSTILE = "<img src=x onerror=document.title='owned'>${1+1}{{x}}.webp"
UPLOADED = re.compile("uploaded (picture|image)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
# Chromium's own background requests would hide what the page asks for.
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# A busy machine may need longer than httpx's five seconds.
http_delete = partial(httpx.delete, timeout=60)
http_get = partial(httpx.get, timeout=60)
http_post = partial(httpx.post, timeout=60)


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    """Sixty emoji images and a name that is code, with their gallery."""
    root = tmp_path_factory.mktemp("app")
    (root / "pictures").mkdir()
    rows = load_dataset(str(ROOT / "examples" / "emoji" / "data"), "images", split="heldout_vendor")
    for row in rows.cast_column("image", ImageFeature(decode=False)).select(range(0, 3780, 63)):
        name = row["image_id"].replace("/", "-")
        (root / "pictures" / f"{name}.webp").write_bytes(row["image"]["bytes"])
    (root / "pictures" / HOSTILE).write_bytes(row["image"]["bytes"])
    assert main(["index", str(root / "pictures"), "--model", str(MODEL), "--output", str(root / "gallery")]) == 0
    return root


@pytest.fixture(scope="module")
def searcher(emoji):
    return GallerySearcher(ImageRetriever.load(emoji / "gallery"))


@pytest.fixture(scope="module")
def served(searcher, emoji):
    page = build_app(ImageRetriever.load(emoji / "gallery"))
    yield launch_app(page, "127.0.0.1", max_upload_mb=1, block=False).rstrip("/")
    page.close()


def picture_bytes(color="red", size=(40, 30)):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_mapper_answers_as_hycir_search_does(searcher, emoji, capsys):
    session = search(replace(pick(Session(), searcher, 5), query_text="make it red", k=7), searcher)
    name = searcher.ids[5]
    capsys.readouterr()
    assert main(["search", str(emoji / "gallery"), "--image", name, "--text", "make it red", "-k", "7"]) == 0
    printed = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()[1:8]]
    found = [(searcher.ids[row], f"{score:+.4f}") for row, score in session.answer.ranking]
    assert found == [(id_, score) for _, score, id_ in printed] and name not in dict(found)
    assert "left out" in session.message


@pytest.mark.parametrize("method", METHODS)
def test_every_method_ranks_and_says_what_it_does_not_look_at(searcher, method):
    session = search(replace(pick(Session(), searcher, 3), query_text="a red heart", method=method, k=100), searcher)
    scores = [score for _, score in session.answer.ranking]
    assert scores == sorted(scores, reverse=True) and all(-1.001 <= score <= 1.001 for score in scores)
    assert len(scores) == len(searcher.ids) - (method != "text only")
    says = {"image only": "does not read the text", "text only": "does not use the reference"}
    assert ("does not" in session.message) == (method in says) and says.get(method, "") in session.message
    without_text = search(replace(session, query_text=" "), searcher)
    if method == "text only":
        assert without_text.is_error and "text" in without_text.message
    else:
        assert not without_text.is_error
        assert ("No text: searched by" in without_text.message) == (method != "image only")


def test_the_sum_without_text_is_the_image_alone(searcher):
    asked = replace(pick(Session(), searcher, 3), method="image only")
    alone = search(asked, searcher).answer.ranking
    for method in ("image + text", "slerp"):
        assert search(replace(asked, method=method), searcher).answer.ranking == alone


def test_what_is_missing_is_said_and_fields_stay(searcher):
    asked = search(replace(Session(), query_text="a red heart"), searcher)
    assert asked.is_error and "reference" in asked.message and asked.query_text == "a red heart"
    refused = upload(replace(asked, query_text="typed ahead"), searcher, b"not a picture")
    assert refused.is_error and "13 bytes" in refused.message and "\n" not in refused.message
    assert refused.reference is None and refused.query_text == "typed ahead"
    assert pick(asked, searcher, 10**6).is_error
    assert search(replace(asked, method="magic"), searcher).is_error


@pytest.mark.parametrize("size", [(13000, 13000), (14000, 14000), (60000, 1)])
def test_a_huge_picture_in_a_small_file_is_refused_undecoded(searcher, monkeypatch, size):
    buffer = io.BytesIO()
    Image.new("1", size).save(buffer, "PNG")
    assert len(buffer.getvalue()) < 50_000
    monkeypatch.setattr("hycir_hf.images.uploads.load_image", None)
    refused = upload(Session(), searcher, buffer.getvalue())
    found = (
        "more than 50,000,000" if size[0] == 14000 else f"{size[0]} x {size[1]}"
    )  # beyond PIL's own limit no size is told
    assert refused.is_error and found in refused.message


def test_a_result_becomes_the_reference_and_history_goes_back(searcher):
    first = search(replace(upload(Session(), searcher, picture_bytes()), query_text="a heart", k=3), searcher)
    assert first.answer.reference.row is None and not first.message
    second = pick(first, searcher, first.answer.ranking[0][0])
    assert second.query_text == "" and second.answer is first.answer  # the used text goes, the results stay
    assert pick(replace(first, query_text="typed ahead"), searcher, 0).query_text == "typed ahead"
    second = search(replace(second, query_text="make it blue"), searcher)
    assert [one.query_text for one in second.history] == ["make it blue", "a heart"]
    back = go_back(second, searcher, 1)
    assert (back.reference, back.query_text, back.answer) == (first.reference, "a heart", first.answer)
    assert go_back(second, searcher, 9) == second
    assert len(search(second, searcher).history) == 2  # the same query stands once
    slerp = again(replace(second, method="slerp"), searcher)
    assert len(slerp.history) == 3 and slerp.answer.method == "slerp"
    edited = replace(second, method="slerp", query_text="not searched yet")
    assert again(edited, searcher) == edited
    for number in range(MAX_HISTORY + 3):
        second = search(replace(second, query_text=str(number)), searcher)
    assert len(second.history) == MAX_HISTORY


def test_ids_are_found_and_pages_turn(searcher):
    name = searcher.ids[7]
    assert pick_id(Session(), searcher, name).reference.name == name
    assert "part of 61" in pick_id(Session(), searcher, ".WEBP").message
    assert "part of 0" in pick_id(Session(), searcher, "nowhere").message
    assert Browsing(name.upper()).rows(searcher) == [7]
    everything = list(range(len(searcher.ids)))
    assert Browsing().rows(searcher) == everything != Browsing(seed=0).rows(searcher)
    assert sorted(Browsing(seed=0).rows(searcher)) == everything
    line, cards, last = render_gallery(Browsing(page=-1), searcher)
    assert line == "49–61 of 61" and last.page == 2 and cards.count("<li>") == 61 - 2 * PAGE_SIZE
    assert render_gallery(Browsing("nowhere"), searcher)[:2] == ("No id contains this.", "")


def test_a_name_that_is_code_stays_text(searcher):
    cards = render_gallery(Browsing(HOSTILE), searcher)[1]
    assert "<img src=x" not in cards and "&lt;img src=x" in cards


def test_without_pictures_ids_are_shown(emoji, searcher, tmp_path):
    shutil.copytree(emoji / "gallery", tmp_path / "moved")
    gallery = Gallery.load(tmp_path / "moved")
    gallery.source = {"type": "dataset", "path": str(tmp_path / "gone"), "config": "images", "split": "test"}
    gallery.source |= {"relative": "../gone", "image_column": "image", "id_column": None}
    blind = GallerySearcher(ImageRetriever(searcher.encoder, gallery, tmp_path / "moved"))
    header = render_header(blind)
    assert re.search("61 [a-z]+ of gone / images / test", header) and 'role="alert"' in header
    assert str(tmp_path) not in header
    session = search(replace(Session(), query_text="a heart", method="text only"), blind)
    page = render_results(session, blind)
    assert page.count('class="missing"') == len(session.answer.ranking) == 12
    assert pick(session, blind, 0).is_error and blind.ids[0] in pick(session, blind, 0).message


def test_another_encoder_is_refused(emoji, searcher):
    gallery = Gallery.load(emoji / "gallery")
    gallery.encoder_fingerprint = "another"
    with pytest.raises(ValueError, match="encoder"):
        build_app(ImageRetriever(searcher.encoder, gallery, emoji / "gallery"))


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "{picture}",
        "{gallery}/manifest.json",
        "../../etc/passwd",
        "%2Fetc%2Fpasswd",
        "http://127.0.0.1/",
    ],
)
@pytest.mark.parametrize("route", ["/gradio_api/file=", "/file=", "/gradio_api/file%3D", "/gradio_api/file/"])
def test_no_file_is_served(served, emoji, route, path):
    path = path.format(picture=next((emoji / "pictures").glob("twemoji*")), gallery=emoji / "gallery")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(served + route + path, timeout=20)
    assert caught.value.code in (403, 404) and b"root:" not in caught.value.read()


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Origin": "null"}])
def test_another_site_cannot_reach_the_page(served, headers):
    data = {"data": ["make it red", "", "text only", 3]}
    assert http_post(f"{served}/gradio_api/call/search", json=data).status_code == 200
    assert http_post(f"{served}/gradio_api/call/search", json=data, headers=headers).status_code == 403
    own = {"Origin": served}
    assert http_post(f"{served}/gradio_api/call/search", json=data, headers=own).status_code == 200


def test_uploads_are_limited_and_never_served(served):
    small, large = (
        http_post(served + "/gradio_api/upload", files={"files": ("a.png", b"x" * size)}) for size in (1000, 1_100_000)
    )
    assert (small.status_code, large.status_code) == (200, 413)
    assert http_get(f"{served}/gradio_api/file={small.json()[0]}").status_code == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "192.168.0.1"]
)
@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/info", "/gradio_api/queue/data?session_hash=a"])
def test_other_host_names_are_refused(served, host, path):
    headers = {"Host": host and f"{host}:{urlsplit(served).port}"}
    assert http_get(served + path, headers=headers).status_code == 403


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.2", "[::1]"])
def test_local_host_names_are_answered(served, host):
    name = f"{host}:{urlsplit(served).port}"
    assert http_get(f"{served}/config", headers={"Host": name}).status_code == 200
    answer = http_post(f"{served}/gradio_api/queue/join", json={}, headers={"Host": name, "Origin": f"http://{name}"})
    assert answer.status_code == 422  # passed on: the form is wrong


@pytest.mark.parametrize(
    "headers",
    [
        *({"Origin": origin} for origin in ("https://evil.example", "null", "http://localhost:1", "file://", "")),
        *({"Origin": origin} for origin in ("http://127.0.0.1", "http://evil@127.0.0.1")),
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "https://evil.example", "X-Forwarded-Host": "evil.example"},
    ],
)
def test_other_sites_pages_change_nothing(served, headers):
    for path in ("/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/call/search", "/gradio_api/cancel"):
        assert http_post(served + path, json={}, headers=headers).status_code == 403, path
        assert http_delete(served + path, headers=headers).status_code == 403, path


def test_uploads_are_limited_in_number_and_total_size(served, monkeypatch):
    upload_url, file = f"{served}/gradio_api/upload", ("a.png", b"x" * 1000)
    assert http_post(upload_url, files=[("files", file), ("files", file)]).status_code == 413
    assert http_post(upload_url, content=b"x", headers={"Content-Type": "text/plain"}).status_code == 413
    chunks = (b"x" * 2**16 for _ in range(40))  # of unknown length
    assert http_post(f"{served}/gradio_api/queue/join", content=chunks).status_code == 413
    assert http_post(upload_url, files={"files": file}).status_code == 200
    for name in ("MAX_KEPT_UPLOADS", "MAX_KEPT_MB"):
        with monkeypatch.context() as patch:
            patch.setattr(f"hycir_hf.app.guard.{name}", 0)
            assert http_post(upload_url, files={"files": file}).status_code == 429
    assert http_post(upload_url, files={"files": file}).status_code == 200


@pytest.mark.parametrize("position", [1, 4])  # the text's field and the file's
def test_no_url_is_fetched(served, monkeypatch, position):
    fetched = []

    async def fetch(url, *args, **kwargs):
        fetched.append(url)

    monkeypatch.setattr(gradio.processing_utils, "async_ssrf_protected_download", fetch)
    dependencies = http_get(f"{served}/config").json()["dependencies"]
    [number] = [one["id"] for one in dependencies if any(event == "upload" for _, event in one["targets"])]
    small = http_post(f"{served}/gradio_api/upload", files={"files": ("a.png", picture_bytes())}).json()[0]
    for path, is_answered in (("https://x.example/a.png", False), (small, True)):
        data = [None, "", "mapper", 5, {"path": small, "meta": {"_type": "gradio.FileData"}}]
        if not is_answered:
            data[position] = {"path": path, "meta": {"_type": "gradio.FileData"}}
        event = {"fn_index": number, "data": data, "session_hash": f"visitor{position}{is_answered}"}
        assert http_post(f"{served}/gradio_api/queue/join", json=event).status_code == 200
        answers = http_get(
            f"{served}/gradio_api/queue/data", params={"session_hash": event["session_hash"]}, timeout=60
        )
        assert bool(UPLOADED.search(answers.text)) == is_answered
        assert ("found a URL" in answers.text) != is_answered
    assert fetched == []


def test_wrong_ports_and_texts_are_named(searcher, emoji, capsys):
    assert main(["app", str(emoji / "gallery"), "--model", str(MODEL), "--port", "99999"]) == 1
    assert "99999" in capsys.readouterr().err
    with pytest.raises(gradio.Error, match=r"text.*None"):
        _search_endpoint(searcher)(None, searcher.ids[0])


def test_a_host_that_is_not_loopback_is_warned_of(searcher, emoji, caplog):
    page = build_app(ImageRetriever.load(emoji / "gallery"))
    with pytest.raises(OSError, match=r"192\.0\.2\.1"):  # no machine has this address
        launch_app(page, "192.0.2.1", block=False)
    assert "192.0.2.1: everybody" in caplog.text
    caplog.clear()
    assert launch_app(page, "localhost", block=False).startswith("http://localhost:")
    page.close()
    assert "everybody" not in caplog.text


@pytest.fixture
def browser_page(served):
    if CHROMIUM is None:
        pytest.skip("needs Chromium in PATH (chromium, chromium-browser, google-chrome or chrome)")
    api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(20_000)
        requests, errors = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(served)
        yield page
        browser.close()
    schemes = {urlsplit(url).scheme for url in requests}
    hosts = {urlsplit(url).hostname for url in requests if urlsplit(url).scheme not in ("data", "blob")}
    assert hosts == {"127.0.0.1"} and schemes <= {"http", "data", "blob"} and not errors


def test_a_visit_in_the_browser(browser_page):
    page, text = browser_page, browser_page.get_by_label("What should change?")
    results, history = page.locator("#results button"), page.locator("#history button")
    reference, message = page.locator("#reference figure"), page.locator("#message p")
    assert re.search("61 [a-z]+ of pictures", page.locator("header").inner_text())
    page.locator("#grid button").nth(PAGE_SIZE - 1).wait_for()

    drop = page.locator("input[type=file]")
    drop.set_input_files([{"name": "red.png", "mimeType": "image/png", "buffer": picture_bytes()}])
    reference.get_by_text(UPLOADED).wait_for()
    text.fill("a heart")
    text.press("Enter")
    results.nth(11).wait_for()
    assert re.match(r"1\s+[01]\.\d{3}\s", results.first.inner_text()) and history.count() == 1

    name = results.nth(2).locator(".id").get_attribute("title")
    results.nth(2).click()
    reference.get_by_text(name).wait_for()
    assert text.input_value() == ""
    text.fill("make it blue")
    page.get_by_role("button", name="Search").click()
    history.nth(1).wait_for()
    message.get_by_text("left out").wait_for()
    shown = page.locator("#results .id").evaluate_all("names => names.map(name => name.title)")
    assert len(shown) == 12 and name not in shown

    page.get_by_label("slerp").check()
    history.nth(2).wait_for()
    history.nth(2).click()
    reference.get_by_text(UPLOADED).wait_for()
    assert text.input_value() == "a heart" and page.get_by_label("pseudo tokens").is_checked()

    drop.set_input_files([{"name": "bad.png", "mimeType": "image/png", "buffer": b"not a picture"}])
    page.locator("#message p[role=alert]").wait_for()
    assert "13 bytes" in message.inner_text()
    drop.set_input_files([{"name": "big.png", "mimeType": "image/png", "buffer": b"x" * 1_100_000}])
    page.get_by_text('exceed the maximum allowed size of 1.0 Mb: "big.png"').wait_for()

    page.get_by_role("tab", name="Gallery").click()
    page.get_by_placeholder("Find an id").fill("onerror")
    page.locator("#shown").get_by_text("1–1 of 1").wait_for()
    page.get_by_placeholder("Find an id").press("Enter")
    reference.get_by_text("${1+1}{{x}}").wait_for()
    assert page.title() == "Composed image search"


def test_a_phone_needs_no_sideways_scrolling(browser_page):
    page, text = browser_page, browser_page.get_by_label("What should change?")
    page.set_viewport_size({"width": 390, "height": 844})
    page.locator("#grid button").first.click()
    page.locator("#reference figure").wait_for()
    for number in range(3):
        text.fill(f"make it red and show it from the other side, {number}")
        text.press("Enter")
        page.locator("#history button").nth(number).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def run_space(folder, **environment):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run([sys.executable, "app.py"], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_a_space_without_gallery_or_model_says_so_in_one_line(emoji, tmp_path):
    space = tmp_path / "space"
    shutil.copytree(ROOT / "examples" / "space", space, ignore=shutil.ignore_patterns("gallery"))
    done = run_space(space)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "Set HYCIR_GALLERY to a gallery that `hycir index` made" in done.stderr.splitlines()[-1]
    shutil.copytree(emoji / "gallery", space / "gallery")
    manifest = space / "gallery" / "manifest.json"
    for name, found in ((None, "does not say which model"), ("/nosuch/model", "/nosuch/model")):
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"model": name}))
        done = run_space(space)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert found in done.stderr.splitlines()[-1] and "HYCIR_MODEL" in done.stderr.splitlines()[-1]


def test_a_space_without_local_paths_finds_its_pictures(emoji, searcher, tmp_path):
    """The Space's README gives the command that removes the path of the images."""
    shutil.copytree(emoji / "pictures", tmp_path / "pictures")
    shutil.copytree(emoji / "gallery", tmp_path / "gallery")
    [line] = re.findall(r"^sed .*manifest\.json", (ROOT / "examples" / "space" / "README.md").read_text(), re.MULTILINE)
    subprocess.run(line, shell=True, cwd=tmp_path, check=True)
    assert str(emoji) not in (tmp_path / "gallery" / "manifest.json").read_text()
    moved = Gallery.load(tmp_path / "gallery")
    assert moved.source == {"type": "folder", "path": "pictures", "relative": "../pictures"}
    assert GallerySearcher(ImageRetriever(searcher.encoder, moved, tmp_path / "gallery")).thumbnail(0)


@pytest.mark.slow
def test_the_space_answers_through_the_client(emoji, tmp_path):
    from gradio_client import Client

    environment = os.environ | {"HYCIR_GALLERY": str(emoji / "gallery"), "PYTHONPATH": str(ROOT)}
    environment |= {"HYCIR_MODEL": str(MODEL), "PYTHONUNBUFFERED": "1"}
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "examples" / "space" / "app.py")], env=environment, stderr=file, stdout=file
        )
    try:
        found = None
        while not found and process.poll() is None:
            time.sleep(0.2)
            found = re.search(r"The page is at (http://127\.0\.0\.1:\d+)/?\n", log.read_text())
        assert found, log.read_text()
        client = Client(found[1], verbose=False)
        name = Gallery.load(emoji / "gallery").ids[0]
        ranking = client.predict("make it red", name, "mapper", 4, api_name="/search")
        assert len(ranking) == 4 and set(ranking[0]) == {"id", "score"} and name not in {one["id"] for one in ranking}
        with pytest.raises(Exception, match="/etc/passwd"):
            client.predict("make it red", "/etc/passwd", "mapper", 4, api_name="/search")
        with urllib.request.urlopen(f"{found[1]}/gradio_api/heartbeat/a_page", timeout=60):  # as an open page does
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()
