"""transformers' own common tests, from the source distribution of the installed version, and our exceptions to them.

`python tests/conformity/referee.py` downloads them ahead of a test run. They are cached and never committed.
"""

import contextlib
import fnmatch
import functools
import importlib
import subprocess
import sys
import tarfile
import tempfile
import types
from pathlib import Path

import pytest
import transformers
import yaml
from filelock import FileLock

CACHE = Path(__file__).resolve().parents[2] / ".cache"
EXCEPTIONS = yaml.safe_load((Path(__file__).parent / "exceptions.yaml").read_text())
_PACKAGE = "transformers_tests"
_NOT_IN_THE_SDIST = {  # what the common tests import from folders that the source distribution lacks
    f"{_PACKAGE}.exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    f"{_PACKAGE}.generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    f"{_PACKAGE}.utils.test_configuration_utils": {"config_common_kwargs": {}},
    "fetch_hub_objects_for_ci": {"url_to_local_path": lambda url: url},
}


def download(version=transformers.__version__, cache=CACHE):
    """Return the folder of transformers' tests; download and extract them if they are not cached.

    Raises:
        OSError: If they cannot be had. The message is pip's.
    """
    folder = cache / f"transformers-{version}" / "tests"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "transformers-tests.lock"), tempfile.TemporaryDirectory(dir=cache) as work:
        if not folder.exists():
            command = ["download", "--no-binary", "transformers", "--no-deps", f"transformers=={version}"]
            options = ["--dest", work, "--retries", "1", "--timeout", "15", "--quiet", "--disable-pip-version-check"]
            pip = subprocess.run([sys.executable, "-m", "pip", *command, *options], capture_output=True, text=True)
            if pip.returncode:
                raise OSError(pip.stderr.strip())
            with tarfile.open(next(Path(work).glob("*.tar.gz"))) as archive:
                inside = [item for item in archive if item.name.startswith(f"transformers-{version}/tests/")]
                archive.extractall(work, members=inside, filter="data")
            tests = Path(work, f"transformers-{version}", "tests")
            (tests / "__init__.py").touch()  # test_configuration_common looks for it
            folder.parent.mkdir(exist_ok=True)
            tests.replace(folder)
    return folder


@functools.cache
def common_tests(name):
    """Import a module of transformers' tests. The calling test module is skipped where they cannot be had."""
    try:
        folder = download()
    except OSError as error:
        pytest.skip(f"transformers' own tests cannot be downloaded: {error}", allow_module_level=True)
    for full_name, values in ({_PACKAGE: {"__path__": [str(folder)]}} | _NOT_IN_THE_SDIST).items():
        sys.modules.setdefault(full_name, types.ModuleType(full_name)).__dict__.update(values)
    return importlib.import_module(f"{_PACKAGE}.{name}")


def judged(test_class):
    """Expect the tests of a class that stand in `exceptions.yaml` to fail; one that passes is an error."""
    for name in [name for name in dir(test_class) if name.startswith("test_")]:
        for pattern, reason in EXCEPTIONS.items():
            if fnmatch.fnmatchcase(f"{test_class.__name__}.{name}", pattern):
                setattr(test_class, name, _expected_to_fail(getattr(test_class, name), reason))
    return test_class


def _expected_to_fail(test, reason):
    @pytest.mark.xfail(reason=reason, strict=True)
    @functools.wraps(test)
    def run(self, *args, **kwargs):
        self.subTest = contextlib.nullcontext  # a failure within a subtest would leave the test itself as passed
        return test(self, *args, **kwargs)

    return run


if __name__ == "__main__":
    try:
        print(download())
    except OSError as error:
        print(f"transformers' own tests cannot be downloaded, and will be skipped: {error}")
