"""What a push refuses: made-up credentials of every kind, in every kind of place, and local paths."""

import io
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from credentials import credentials
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hycir_hf.hub import UPLOADED_SUFFIXES
from hycir_hf.hub_checks import find_leaks

EMOJI = Path(__file__).parents[1] / "examples" / "emoji"


def in_text(secret):
    return {"notes.md": f"Some text.\n\n{secret}\n".encode()}


def in_json(secret):
    escaped = "".join(f"\\u{ord(character):04x}" for character in secret)
    return {"deep.json": f'{{"deep": [{{"note": "see {escaped} there"}}]}}'.encode()}


def in_yaml_comment(secret):
    return {"run.yaml": ("seed: 0\n" + "".join(f"# {line}\n" for line in secret.split("\n"))).encode()}


def in_table(table):
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return {"rows.parquet": buffer.getvalue()}


def in_column(secret):
    return in_table(pa.table({"row": [{"texts": ["make it red", secret]}, {"texts": []}]}))


def in_table_metadata(secret):
    return in_table(pa.table({"x": [1]}).replace_schema_metadata({"note": secret}))


def in_field_metadata(secret):
    return in_table(pa.table({"x": [1]}, pa.schema([pa.field("x", pa.int64(), metadata={"note": secret})])))


def image_with(secret, format, **options):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + secret.encode()  # UserComment
    Image.new("RGB", (4, 4)).save(buffer, format, **({"exif": exif} | options))
    return buffer.getvalue()


def in_png_text(secret):
    info = PngInfo()
    info.add_text("parameters", secret, zip=True)
    return {"a.png": image_with("", "PNG", pnginfo=info)}


def in_exif(secret):
    return {"a.jpg": image_with(secret, "JPEG")}


def in_exif_of_a_row(secret):
    return in_table(pa.table({"image": [{"bytes": image_with(secret, "WEBP"), "path": "a.webp"}]}))


def in_tensor_metadata(secret):
    header = json.dumps({"__metadata__": {"note": secret}}).encode()
    return {"model.safetensors": len(header).to_bytes(8, "little") + header}


def in_file_name(secret):
    return {f"images/{secret}.png": image_with("", "PNG")}


PLACES = [
    *(in_text, in_json, in_yaml_comment, in_column, in_table_metadata, in_field_metadata, in_png_text, in_exif),
    *(in_exif_of_a_row, in_tensor_metadata, in_file_name),
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("seed", [0, 1])
def test_no_kind_of_credential_passes(place, seed):
    kinds = credentials(seed)
    if place is in_file_name:  # what a file can be called
        kinds = {kind: secret for kind, secret in kinds.items() if len(secret) < 250 and not set("/\n") & set(secret)}
    assert len(kinds) >= 60
    found = {kind: find_leaks(place(secret)) for kind, secret in kinds.items()}
    assert [kind for kind, leaks in found.items() if not leaks] == []
    for kind, leaks in found.items():
        for leak in leaks:
            assert leak.file == next(iter(place(kinds[kind]))) and leak.place
            assert place is in_file_name or kinds[kind] not in str(leak)


@pytest.mark.parametrize(
    "key", ["api_key", "hf_token", "clientSecret", "secretKey", "passphrase", "x-api-key", "API_KEYS"]
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.yaml", "a.parquet"])
def test_any_value_of_a_secret_setting_is_refused(name, key):
    record = {"deep": {key: "abc"}}
    content = in_table(pa.Table.from_pylist([record]))["rows.parquet"] if name == "a.parquet" else json.dumps(record)
    [leak] = find_leaks({name: content if isinstance(content, bytes) else content.encode()})
    assert leak.file == name and key in leak.place and repr(key) in leak.what


def test_a_key_that_stands_twice_is_searched_twice():
    assert find_leaks({"a.json": b'{"api_key": "abc", "api_key": ""}'})


@pytest.mark.parametrize(
    "text",
    [
        *(
            "https://{0}@huggingface.co/x",
            "x_{0}",
            "({0})",
            "token={0}",
            "<b>{0}</b>",
            "'{0}',",
            "{0}\\n",
            "a/{0}/b",
            "ü{0}",
        ),
    ],
)
def test_credentials_within_other_texts_are_found(text):
    for kind in ("huggingface", "npm", "stripe-secret", "aws-access-key", "sendgrid", "anthropic"):
        assert find_leaks({"a.md": text.format(credentials()[kind]).encode()}), kind


def test_places_are_named():
    secret = credentials()["github-classic"]
    table = pa.table({"id": ["a", "b", "c"], "query_text": ["x", "y", secret]})
    texts = {"a.md": f"x\ny\n{secret}".encode(), "a.json": json.dumps({"x": "a", "note": secret}).encode()}
    leaks = find_leaks(texts | in_table(table) | in_file_name(secret))
    assert {leak.file: leak.place for leak in leaks} == {
        "a.md": "line 3",
        "a.json": "note",
        "rows.parquet": "column query_text, row 2",
        f"images/{secret}.png": "file name",
    }


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "latin-1"])
def test_other_encodings_are_read(encoding):
    assert find_leaks({"a.txt": f"für {credentials()['huggingface']}".encode(encoding)})


@pytest.mark.parametrize(
    "path",
    [
        "/home/ann/x.yaml",
        "--output-dir=/root/out",
        "file:///srv/x.parquet",
        "C:\\Users\\ann\\x",
        "C:/Users/ann/y",
        "/Users/ann/Pictures and more",
        "-v /home/ann/a:/mnt/ann/b c",
        "(~/ann/x)",
        "~/encoder",
        "/workspace/run/1",
        "/data/cc3m",
    ],
)
@pytest.mark.parametrize("place", PLACES[:-1])
def test_local_paths_are_refused(place, path):
    [leak] = {(leak.file, leak.what) for leak in find_leaks(place(path))}
    assert leak[1] == "a local path"


def test_a_path_that_exists_here_is_refused(tmp_path):
    (tmp_path / "a folder").mkdir()
    assert find_leaks({"a.json": json.dumps({"x": f"{tmp_path}/a folder"}).encode()})
    assert find_leaks({"a.md": b"see /etc/passwd."}) and not find_leaks({"a.md": b"see /etc/nosuchfile."})
    assert find_leaks({"a.json": json.dumps({str(tmp_path): 1}).encode()})


@pytest.mark.parametrize(
    "text",
    [
        *("https://x.example/home/ann/x", "and/or /hdr/ a/b", 'ask(f"Q:\\nWhat? A:\\n")', "{a:\\d}", "[/data/]"),
        *(
            "</html></div>",
            "sk-learn-is-a-library-for-machines",
            "git@github.com:ann/x.git",
            "https://x.example:8080/a@b",
        ),
        *('"pad_token": "<pad>"', "api_key=os.environ['API_KEY']", "Authorization: Bearer $TOKEN", "HF_TOKEN=..."),
        *("jina_embeddings_v3/modular_jina_embeddings_v3.py", "(?i:\\b\\w*)", "secret_sharing_scheme_for_layer_12"),
        *("sha256: " + "0123456789abcdef" * 4, "secret_key = None", "password: str | None = None"),
    ],
)
def test_what_only_looks_like_a_leak_passes(text):
    files = {f"a{suffix}": text.encode() for suffix in (".md", ".py", ".txt", ".html")}
    assert find_leaks(files | {"a.json": json.dumps({"x": text, "sort_key": "score"}).encode()}) == []


@pytest.mark.parametrize("folder", ["hycir", "encoder", "captioner", "syncir", "data/queries"])
def test_real_folders_pass(folder):
    files = {path.relative_to(EMOJI).as_posix(): path for path in (EMOJI / folder).rglob("*") if path.is_file()}
    assert find_leaks({name: path for name, path in files.items() if path.suffix in UPLOADED_SUFFIXES}) == []


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.yaml", "a.parquet", "a.png", "a.safetensors"])
@pytest.mark.parametrize("content", [b'{"token": ', b"\x89PNG\r\n\x1a\n", b"", b"[" * 100_000])
def test_a_file_that_cannot_be_searched_is_refused(name, content):
    if name in ("a.jsonl", "a.yaml") and not content:
        assert find_leaks({name: content}) == []
        return
    with pytest.raises(ValueError, match=re.escape(name)):
        find_leaks({name: content})
