"""The list of exceptions is current, and a machine without an index skips the tests."""

import fnmatch
import importlib

import pytest
from referee import EXCEPTIONS, common_tests, download, judged


@pytest.fixture
def no_index(monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")


def test_every_exception_names_a_test():
    names = [
        f"{test_class}.{name}"
        for module, classes in {"test_model": ("TestCLIP", "TestBLIP"), "test_processor": ("TestProcessor",)}.items()
        for test_class in classes
        for name in dir(getattr(importlib.import_module(module), test_class))
    ]
    assert not [pattern for pattern in EXCEPTIONS if not fnmatch.filter(names, pattern)]
    assert all(EXCEPTIONS.values())


def test_an_exception_that_passes_is_an_error(monkeypatch):
    monkeypatch.setitem(EXCEPTIONS, "Example.test_listed", "the reason")

    class Example:
        def test_listed(self):
            """Pass."""

        def test_other(self):
            """Pass."""

    (mark,) = judged(Example).test_listed.pytestmark
    assert mark.name == "xfail" and mark.kwargs == {"reason": "the reason", "strict": True}
    assert not hasattr(Example.test_other, "pytestmark")


def test_without_an_index_there_is_a_reason_and_nothing_is_cached(no_index, tmp_path):
    with pytest.raises(OSError, match=r"99\.0\.0"):
        download("99.0.0", tmp_path)
    assert not list(tmp_path.glob("transformers-99*"))


def test_without_the_tests_a_module_is_skipped(monkeypatch):
    def fail():
        raise OSError("no index")

    monkeypatch.setattr("referee.download", fail)
    with pytest.raises(pytest.skip.Exception, match="no index"):
        common_tests("test_another_common")
