"""What a SynCir dataset was made from: keys that tell results apart, and the public part of `recipe.json`.

Nothing here names a folder of this machine or a secret.
"""

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..formats import TRIPLETS
from ..images import FileSource
from ..names import public_path
from .config import SynCirConfig
from .query_texts import PAPER_PROMPT

_METHOD = 2  # raise it when the same answers would give other triplets
_PROSE = ("images_license", "note")  # settings that are neither a name nor a path
_RUN_ONLY = ("concurrency", "timeout", "max_attempts", "num_workers")  # settings that cannot change the result
_PACKAGES = ("hycir_hf", "torch", "transformers", "sentence-transformers", "faiss-cpu")


def source_key(source: FileSource) -> str:
    """Identify a source's images by their ids and stamps."""
    stamps = "\n".join(f"{id_} {source.stamp(row)}" for row, id_ in enumerate(source.ids))
    return hashlib.sha256(stamps.encode("utf-8", errors="surrogateescape")).hexdigest()


def model_key(path: str) -> str:
    """Identify a model by its name and, if it is a folder, by its weights: trained again, it is another model."""
    if not Path(path).is_dir():
        return path
    digest = hashlib.sha256()
    for file in sorted(Path(path).iterdir()):
        if file.suffix in (".safetensors", ".bin"):
            with file.open("rb") as weights:
                while block := weights.read(2**20):
                    digest.update(block)
    return f"{path} {digest.hexdigest()}"


def recipe_key(images: str, config: SynCirConfig) -> str:
    """Identify a finished dataset by its images (`source_key`) and settings: 32 hex digits."""
    # The name "paper" stood for other words once: a dataset that was made with those is not finished.
    words = [PAPER_PROMPT.question] if config.prompt == PAPER_PROMPT.name else []
    return hashlib.sha256(json.dumps([_METHOD, images, public_settings(config), *words]).encode()).hexdigest()[:32]


def public_settings(config: SynCirConfig) -> dict[str, Any]:
    """The settings that can change the result, without private paths and passwords."""
    return {
        name: public_path(value) if isinstance(value, str) and name not in _PROSE else value
        for name, value in config.to_dict().items()
        if name not in _RUN_ONLY
    }


def public_record(source: FileSource, output: Path) -> dict[str, Any]:
    """Where the images lie, as others may read it; relative to the output if both are inside the working folder."""
    record = dict(source.describe(output))
    path = str(record.get("path", "images"))
    if "relative" in record and not Path(path).is_relative_to(Path.cwd()):
        del record["relative"]
    return {**record, "path": public_path(path)}


def build_recipe(
    source: FileSource,
    output: Path,
    config: SynCirConfig,
    *,
    key: str,
    generator: str,
    captions_by: str,
    thresholds: dict[str, float],
    counts: dict[str, Any],
    histogram: list[str],
) -> dict[str, Any]:
    """Make the content of `recipe.json`; `key` is `recipe_key(...)`, `generator` the name of the LLM."""
    record = public_record(source, output)
    place = (record["path"], record.get("config"), record.get("split"))
    return {
        **TRIPLETS.header(),
        "settings": public_settings(config),
        "source": ":".join(part for part in place if part),
        "source_record": record,
        "generator": public_path(generator),
        "captions_by": captions_by,
        "thresholds": thresholds,
        "counts": counts,
        "histogram": histogram,
        "versions": {name: number for name in _PACKAGES if (number := _version_of(name))},
        "key": key,
    }


def _version_of(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
