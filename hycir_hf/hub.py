"""Models and SynCir data sets to the Hugging Face Hub, without secrets and local paths.

The access token is `huggingface_hub`'s matter (`hf auth login` or HF_TOKEN): it is handed on, never shown or written.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from .hub_cleaning import TEXT_SUFFIXES, clean_texts
from .names import is_hub_id
from .reports.cards import ModelCardFacts, complete_card, read_card

UPLOADED_SUFFIXES = (
    *(".json", ".jsonl", ".safetensors", ".model", ".txt", ".md", ".py"),
    *(".parquet", ".html", ".yaml", ".yml", ".csv", ".png", ".jpg", ".jpeg", ".webp", ".svg"),
)
_SAVED_ANEW = (".safetensors", ".safetensors.index.json", ".py")
_CODE = ("configuration", "modeling", "processing")
_DATA_SUFFIXES = (".parquet", ".safetensors")
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
_REFUSED = (401, 403)  # HTTP: no token, or one without the right


@dataclass(frozen=True)
class PushReport:
    """What a push did.

    Args:
        url (`str`): The repository's page.
        commit (`str`): The commit's hash.
        is_private (`bool`): Whether only its owner sees it.
        uploaded (`list[str]`): Paths in the repository.
        left_out (`list[str]`): Files of the folder that stayed here.
        stripped (`list[str]`): "file: key" or "file: line 3" of each local path that was taken out of the uploaded
            copies.
        deleted (`list[str]`): Old shards in the repository that the uploaded ones replace.
    """

    url: str
    commit: str
    is_private: bool
    uploaded: list[str]
    left_out: list[str]
    stripped: list[str]
    deleted: list[str]


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool = True,
    license: str | None = None,
    datasets: Sequence[str] = (),
    commit_message: str | None = None,
    token: str | None = None,
) -> PushReport:
    """Upload a saved HyCIR model, or a data set that SynCir made, with its card.

    A model travels with its code, so that `AutoModel.from_pretrained(repo_id, trust_remote_code=True)` works where this
    package is not installed; one whose encoder lies beside it (`mapper_only`) is uploaded whole. Local paths are taken
    out of the uploaded copies. The folder itself stays as it is.

    Args:
        folder (`str` or `Path`): The folder.
        repo_id (`str`): "owner/name"; made if missing.
        private (`bool`): For a new repository; one that exists keeps its visibility.
        license (`str`, *optional*): For the card: a licence of the Hub's list, such as "apache-2.0".
        datasets (`Sequence[str]`): For a model's card: Hub ids of what it was trained on.
        commit_message (`str`, *optional*): One is made up by default.
        token (`str`, *optional*): By default the one that `huggingface_hub` knows.

    Raises:
        ValueError: If the folder is neither, a file holds a secret, or `private` is asked for a public repository.
        OSError: If the Hub cannot be reached, or does not take it.
    """
    folder = Path(folder)
    _check_names(repo_id, datasets)
    repo_type = find_repo_type(folder)
    if repo_type == "model":
        _check_has_processor(folder)
    elif datasets:
        raise ValueError("Expected datasets for a model's card, but found them for a data set. Leave --dataset out.")
    with tempfile.TemporaryDirectory() as temporary:
        source = _self_contained(folder, Path(temporary)) if repo_type == "model" else folder
        paths, left_out = _select(folder, source)
        contents, stripped = _clean(paths, repo_id)
        _check_has_data(folder, paths, left_out)
        card = contents["README.md"] if "README.md" in contents else _read(paths.get("README.md"))
        if repo_type == "model":
            facts = ModelCardFacts.from_folder(folder, repo_id, license=license, datasets=datasets)
            contents["README.md"] = facts.render() if card is None else complete_card(card, facts)
        elif license is not None:
            contents["README.md"] = _with_license(card or "", license)
        files: dict[str, Any] = {**paths}
        files |= {name: text.encode(errors="surrogateescape") for name, text in contents.items()}
        api = HfApi(token=token)
        with _hub_errors(repo_id):
            is_private = _ensure_repo(api, repo_id, repo_type, private)
            deleted = _replaced(api.list_repo_files(repo_id, repo_type=repo_type), files)
            commit = api.create_commit(
                repo_id,
                [
                    *map(CommitOperationDelete, deleted),
                    *(CommitOperationAdd(name, value) for name, value in sorted(files.items())),
                ],
                commit_message=commit_message or f"Upload HyCIR {'model' if repo_type == 'model' else 'triplets'}",
                repo_type=repo_type,
            )
    return PushReport(str(commit.repo_url), commit.oid, is_private, sorted(files), left_out, stripped, deleted)


def find_repo_type(folder: str | os.PathLike) -> str:
    """Tell a saved model ("model") from a SynCir data set ("dataset").

    Raises:
        ValueError: If the folder is neither.
    """
    folder = Path(folder)
    if (folder / "recipe.json").is_file():
        return "dataset"
    if (folder / "config.json").is_file() and _read_config(folder).get("model_type") == "hycir":
        return "model"
    raise ValueError(
        f"Expected a saved HyCIR model (config.json) or a finished SynCir data set (recipe.json) in {folder}, but "
        "found neither. Give the folder that save_pretrained or `hycir syncir` wrote."
    )


def _check_names(repo_id: str, datasets: Sequence[str]) -> None:
    """Check ids before anything is made: without an owner, a repository would be made in the token's own name."""
    try:
        for name in (repo_id, *datasets):
            validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(
            f"Expected names as the Hub has them, but found: {str(error).rstrip('.')}. Write them as OWNER/NAME."
        ) from error
    if "/" not in repo_id:
        raise ValueError(f"Expected the repository as OWNER/NAME, but found {repo_id!r}. Put its owner before it.")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"Expected JSON in {path}, but found: {error}. Save the model anew.") from error
    if not isinstance(config, dict):
        raise ValueError(f"Expected a config in {path}, but found a {type(config).__name__}. Save the model anew.")
    return config


def _check_has_processor(folder: Path) -> None:
    if not any((folder / name).is_file() for name in _PROCESSOR_FILES):
        raise ValueError(
            f"Expected the model's processor in {folder}, but found none of {list(_PROCESSOR_FILES)}. Save it there "
            "with processor.save_pretrained."
        )


def _read(path: Path | None) -> str | None:
    return None if path is None else path.read_text(encoding="utf-8", errors="surrogateescape")


def _with_license(text: str, license: str) -> str:
    """A data set's card with a licence."""
    card = read_card(text, DatasetCard)
    card.data.license = license
    return str(card)


def _self_contained(folder: Path, temporary: Path) -> Path:
    """The folder, or a copy beside which nothing is needed: code, processor, and the weights of a local encoder."""
    config = _read_config(folder)
    needs_local_encoder = config.get("mapper_only") and not is_hub_id(config.get("encoder_name_or_path"))
    has_code = "auto_map" in config and all((folder / f"{name}_hycir.py").is_file() for name in _CODE)
    if has_code and not needs_local_encoder:
        return folder
    from .modeling_hycir import HyCIRModel
    from .processing_hycir import HyCIRProcessor

    model = HyCIRModel.from_pretrained(folder)
    model.save_pretrained(temporary, mapper_only=bool(config.get("mapper_only")) and not needs_local_encoder)
    HyCIRProcessor.from_pretrained(folder).save_pretrained(temporary)
    return temporary


def _select(folder: Path, source: Path) -> tuple[dict[str, Path], list[str]]:
    """Choose the files to upload, by their path in the repository, and name those left out.

    Hidden folders (SynCir's `.work/`), training states, pickles and links that lead out of the folder stay here.
    """
    paths: dict[str, Path] = {}
    left_out = []
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        is_hidden = any(part.startswith((".", "__")) or part.startswith("checkpoint") for part in Path(name).parts)
        is_inside = path.resolve().is_relative_to(folder.resolve())
        if is_hidden or not is_inside or path.suffix not in UPLOADED_SUFFIXES:
            left_out.append(name)
        else:
            paths[name] = path
    if source != folder:
        anew = {path.relative_to(source).as_posix(): path for path in _files(source)}
        left_out += [name for name in paths if name.endswith(_SAVED_ANEW) and name not in anew]
        paths = {name: path for name, path in paths.items() if not name.endswith(_SAVED_ANEW)} | anew
    return paths, sorted(left_out)


def _check_has_data(folder: Path, paths: dict[str, Path], left_out: list[str]) -> None:
    """Refuse a folder whose weights or rows would stay here: a download's cache, for example, holds links alone."""
    if not any(name.endswith(_DATA_SUFFIXES) for name in paths):
        raise ValueError(
            f"Expected safetensors or Parquet files in {folder}, but found none to upload (left out: {left_out}). Save "
            "the model with save_pretrained first."
        )


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _clean(paths: dict[str, Path], repo_id: str) -> tuple[dict[str, str], list[str]]:
    """The new content of the text files that change, and where local paths were taken out."""
    texts = {name: _read(path) or "" for name, path in paths.items() if path.suffix in TEXT_SUFFIXES}
    changed, stripped = clean_texts(texts)
    card = changed.get("README.md", texts.get("README.md", ""))
    if 'load_dataset("PATH"' in card:
        changed["README.md"] = card.replace('load_dataset("PATH"', f'load_dataset("{repo_id}"')
    return changed, stripped


def _replaced(present: Sequence[str], files: dict[str, Any]) -> list[str]:
    """The files of a repository that are shards of what is uploaded: they would be read beside the new ones."""
    series = {_series(name) for name in files if name.endswith(_DATA_SUFFIXES)}
    return [name for name in present if name not in files and _series(name) in series]


def _series(name: str) -> tuple[str, str]:
    """A file's name without its shard's number, and its suffix: "images/part-3.parquet" is of "images/part"."""
    path = Path(name)
    return re.sub(r"-\d+(-of-\d+)?$", "", path.with_suffix("").as_posix()), path.suffix


@contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    """Say in one line what the client's errors say in several."""
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in _REFUSED:
            raise OSError(
                f"Expected a token that may write to {repo_id}, but the Hub answered {status}. Log in by "
                "`hf auth login` with a token of the role write, and check the owner's name."
            ) from error
        said = error.server_message or str(error).split("\n")[0]
        raise OSError(
            f"Expected the Hub to take {repo_id}, but it answered {status}: {said}. Correct that, or try again later."
        ) from error
    except (HTTPError, ConnectionError) as error:  # no answer at all; the latter in offline mode
        raise OSError(
            f"Expected to reach the Hub for {repo_id}, but could not: {error}. Check the network, HF_ENDPOINT and "
            "HF_HUB_OFFLINE."
        ) from error
    except ValueError as error:
        if not str(error).startswith("Invalid metadata"):
            raise
        raise ValueError(
            f"Expected a card that the Hub takes, but found: {error}. Correct README.md, --license and --dataset."
        ) from error


def _ensure_repo(api: HfApi, repo_id: str, repo_type: str, private: bool) -> bool:
    """Make the repository if it is missing; tells whether it is private."""
    try:
        is_private = bool(api.repo_info(repo_id, repo_type=repo_type).private)
    except RepositoryNotFoundError:
        api.create_repo(repo_id, repo_type=repo_type, private=private)
        return private
    if private and not is_private:
        raise ValueError(
            f"Expected {repo_id} to be private, but it is public, and everybody can read what is pushed there. Push "
            "with --public (private=False), or make the repository private first."
        )
    return is_private
