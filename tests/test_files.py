"""Files that are whole or absent, checked JSON, locks, names of models and file formats."""

import errno
import os

import pytest

from hycir_hf.files import atomic_file, atomic_folder, read_json, read_record, single_writer, write_json, write_text
from hycir_hf.formats import FileFormat
from hycir_hf.names import is_hub_id, public_path, resolve_model


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    write_text(tmp_path / "new" / "a.txt", "one")
    with pytest.raises(RuntimeError), atomic_file(tmp_path / "new" / "a.txt") as file:
        file.write(b"half")
        raise RuntimeError
    assert (tmp_path / "new" / "a.txt").read_text() == "one" and names_in(tmp_path / "new") == ["a.txt"]


@pytest.mark.parametrize(("number", "advice"), [(errno.ENOSPC, "space"), (errno.EACCES, "permission"), (errno.EIO, "")])
def test_a_file_that_cannot_be_written_is_named(number, advice, tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"a\.json") as caught:
        write_json(tmp_path / "a.json", {})
    assert caught.value.errno == number and advice in str(caught.value) and "\n" not in str(caught.value)
    assert names_in(tmp_path) == []


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "one").write_text("1")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "model") as folder:
        (folder / "two").write_text("2")
        raise RuntimeError
    assert names_in(tmp_path) == ["model"] and names_in(tmp_path / "model") == ["one"]


@pytest.mark.parametrize(
    ("content", "fact"),
    [(b"{", "JSON"), (b"\xff", "JSON"), (b"[]", "a list"), (b'{"a": 1, "a": 2}', "'a'"), (b"[" * 100_000, "JSON")],
)
def test_damaged_json_is_named(content, fact, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.json.*{fact}.*Make it again|{fact}.*a\.json.*Make it again") as caught:
        read_json(tmp_path / "a.json", remedy="Make it again.")
    assert len(str(caught.value)) < 500


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json", remedy="") == {"a": 1}
    with pytest.raises(FileNotFoundError, match=r"b\.json"):
        read_json(tmp_path / "b.json", remedy="")


@pytest.mark.parametrize(("record", "key"), [({}, "n"), ({"n": "1"}, "n"), ({"n": True}, "n"), ({"n": None}, "n")])
def test_a_record_with_a_missing_or_wrong_key_is_refused(record, key, tmp_path):
    write_json(tmp_path / "a.json", record)
    with pytest.raises(ValueError, match=rf"'{key}' in .*a\.json"):
        read_record(tmp_path / "a.json", {"n": int}, remedy="")
    write_json(tmp_path / "a.json", {"n": 1, "more": []})
    assert read_record(tmp_path / "a.json", {"n": int}, remedy="")["n"] == 1


def test_a_newer_or_foreign_format_is_refused(tmp_path):
    form = FileFormat("ours", 2, "Make it again.", {"n": int})
    write_json(tmp_path / "a.json", {**form.header(), "n": 1})
    assert form.read(tmp_path / "a.json")["n"] == 1
    write_json(tmp_path / "a.json", {"format": "ours", "format_version": 3, "n": 1})
    with pytest.raises(ValueError, match=r"a\.json.*newer"):
        form.read(tmp_path / "a.json")
    write_json(tmp_path / "a.json", {"format": "other", "format_version": 1})
    with pytest.raises(ValueError, match=r"'ours'.*a\.json.*'other'"):
        form.read(tmp_path / "a.json")


def test_one_writer_at_a_time(tmp_path):
    writer, other = single_writer(tmp_path / ".lock", "OUT"), single_writer(tmp_path / ".lock", "OUT")
    with writer, pytest.raises(ValueError, match=rf"pid {os.getpid()}.*OUT"), other:
        pass
    with pytest.raises(RuntimeError), single_writer(tmp_path / ".lock", "OUT"):
        raise RuntimeError
    with single_writer(tmp_path / ".lock", "OUT"):
        pass
    assert not list(tmp_path.glob("*.pid"))


@pytest.mark.parametrize("name", ["ann/model", "openai/clip-vit-base-patch32", "a/b.c_d-e"])
def test_hub_ids(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_id(name) and resolve_model(name) == name
    (tmp_path / name).mkdir(parents=True)
    assert not is_hub_id(name)  # a folder of that name comes first
    with pytest.raises(ValueError, match=r"config\.json"):
        resolve_model(name)
    (tmp_path / name / "config.json").write_text("{}")
    assert resolve_model(name) == name


@pytest.mark.parametrize("name", ["model", "./a/b", "/a/b", "a/b/c", "a//b", "../x", "a/b:c", "é/b", ""])
def test_what_is_no_hub_id(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id(name)
    with pytest.raises(ValueError, match="encoder"):
        resolve_model(name, "encoder")


def test_public_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert public_path(str(tmp_path / "a" / "b")) == "a/b"
    assert public_path("/somewhere/else/model") == "model"
    assert public_path("ann/model") == "ann/model"
    assert public_path("https://user:secret@host/v1?key=1") == "https://host/v1"
