"""Push models and SynCir datasets to the Hugging Face Hub; files with secrets or local paths are refused.

`huggingface_hub` finds the access token (`hf auth login` or HF_TOKEN). It is never shown or written here.
"""

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

from .files import read_json
from .hub_checks import Leak, find_leaks, refuse_leaks
from .modeling_hycir import HyCIRModel
from .names import is_hub_id
from .processing_hycir import HyCIRProcessor
from .reports.cards import ModelCardFacts, complete_card, read_card

UPLOADED_SUFFIXES = (
    *(".json", ".jsonl", ".safetensors", ".model", ".txt", ".md", ".py"),
    *(".parquet", ".html", ".yaml", ".yml", ".csv", ".png", ".jpg", ".jpeg", ".webp", ".svg"),
)
_SAVED_AGAIN = (".safetensors", ".safetensors.index.json", ".py")
_CODE = ("configuration", "modeling", "processing")
_DATA_SUFFIXES = (".parquet", ".safetensors")
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
_REFUSED = (401, 403)  # HTTP: no token, or a token without the permission


@dataclass(frozen=True)
class PushPlan:
    """What a push would do, as far as the folder tells.

    Args:
        repo_type (`str`): "model" or "dataset".
        sizes (`dict[str, int]`): Path of each file to upload -> size in bytes.
        left_out (`list[str]`): Files of the folder that are not uploaded.
        leaks (`list[Leak]`): Secrets and local paths. A push is refused if there are any.
    """

    repo_type: str
    sizes: dict[str, int]
    left_out: list[str]
    leaks: list[Leak]


@dataclass(frozen=True)
class PushReport:
    """What a push did.

    Args:
        url (`str`): The repository's page.
        commit (`str`): The commit's hash.
        is_private (`bool`): Whether only its owner can see it.
        uploaded (`list[str]`): Paths in the repository.
        left_out (`list[str]`): Files of the folder that were not uploaded.
        deleted (`list[str]`): Old shards in the repository that the uploaded ones replace.
    """

    url: str
    commit: str
    is_private: bool
    uploaded: list[str]
    left_out: list[str]
    deleted: list[str]


def plan_push(folder: str | os.PathLike) -> PushPlan:
    """Search a folder for secrets and local paths, as `push_folder` does first. Loads no model and sends nothing.

    Args:
        folder (`str` or `Path`): Saved HyCIR model or SynCir dataset.

    Raises:
        ValueError: If the folder is neither, or a file is damaged, so that it cannot be searched.
    """
    folder = Path(folder)
    repo_type = find_repo_type(folder)
    if repo_type == "model":
        _check_has_processor(folder)
    paths, left_out = _select(folder, folder)
    _check_has_data(folder, paths, left_out)
    leaks = find_leaks({**paths})
    if repo_type == "model" and _needs_local_encoder(_read_config(folder)):
        # A push saves this model whole, without its encoder's name.
        leaks = [one for one in leaks if (one.file, one.place) != ("config.json", "encoder_name_or_path")]
    return PushPlan(repo_type, {name: path.stat().st_size for name, path in paths.items()}, left_out, leaks)


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
    """Upload a saved HyCIR model or a SynCir dataset, with its card.

    A model is uploaded with its code, so that `AutoModel.from_pretrained(repo_id, trust_remote_code=True)` works where
    this package is not installed. If it needs an encoder from a local folder, that encoder is included. The folder
    itself is not changed.

    Args:
        folder (`str` or `Path`): The folder.
        repo_id (`str`): "owner/name"; created if missing.
        private (`bool`): For a new repository; an existing one keeps its visibility.
        license (`str`, *optional*): For the card: a licence of the Hub's list, such as "apache-2.0".
        datasets (`Sequence[str]`): For a model's card: Hub ids of its training data.
        commit_message (`str`, *optional*): Has a default.
        token (`str`, *optional*): By default the token that `huggingface_hub` knows.

    Raises:
        ValueError: If the folder is neither, a file holds a secret or a local path, or `private` is set for a public
            repository.
        OSError: If the Hub cannot be reached, or refuses the upload.
    """
    folder = Path(folder)
    _check_names(repo_id, datasets)
    plan = plan_push(folder)
    repo_type = plan.repo_type
    if datasets and repo_type == "dataset":
        raise ValueError("Only a model's card names datasets, but this folder is a dataset. Leave datasets= out.")
    refuse_leaks(plan.leaks)
    with tempfile.TemporaryDirectory() as temporary:
        source = _self_contained(folder, Path(temporary)) if repo_type == "model" else folder
        paths, left_out = _select(folder, source)
        files: dict[str, Any] = {**paths}
        card = _card(folder, repo_id, repo_type, license, datasets)
        if card is not None:
            files["README.md"] = card.encode(errors="surrogateescape")
        # Again, because the message, the card and what was saved anew are not the folder's.
        message = commit_message or f"Upload HyCIR {'model' if repo_type == 'model' else 'triplets'}"
        new = {name: value for name, value in files.items() if value != folder / name}
        refuse_leaks(find_leaks(new | {"commit message": message.encode()}))
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
                commit_message=message,
                repo_type=repo_type,
            )
    return PushReport(str(commit.repo_url), commit.oid, is_private, sorted(files), left_out, deleted)


def find_repo_type(folder: str | os.PathLike) -> str:
    """Tell whether a folder is a saved model ("model") or a SynCir dataset ("dataset").

    Raises:
        ValueError: If the folder is neither.
    """
    folder = Path(folder)
    if (folder / "recipe.json").is_file():
        return "dataset"
    if (folder / "config.json").is_file() and _read_config(folder).get("model_type") == "hycir":
        return "model"
    raise ValueError(
        f"The folder {folder} holds neither a saved HyCIR model (config.json) nor a finished SynCir dataset "
        "(recipe.json). Give the folder that save_pretrained or `hycir syncir` wrote."
    )


def _check_names(repo_id: str, datasets: Sequence[str]) -> None:
    """Check the ids before anything is created: without an owner, the token's own user would get the repository."""
    try:
        for name in (repo_id, *datasets):
            validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"Not a Hub id: {str(error).rstrip('.')}. Write ids as OWNER/NAME.") from error
    if "/" not in repo_id:
        raise ValueError(f"Expected repo_id as OWNER/NAME, but found {repo_id!r}. Add the owner.")


def _read_config(folder: Path) -> dict[str, Any]:
    return read_json(folder / "config.json", remedy="Save the model again.")


def _check_has_processor(folder: Path) -> None:
    if not any((folder / name).is_file() for name in _PROCESSOR_FILES):
        raise ValueError(
            f"The model's processor is missing in {folder}: there is no {' or '.join(_PROCESSOR_FILES)}. Save it there "
            "with processor.save_pretrained."
        )


def _card(folder: Path, repo_id: str, repo_type: str, license: str | None, datasets: Sequence[str]) -> str | None:
    """Complete the folder's card, or make a model's; a dataset may have none."""
    path = folder / "README.md"
    card = path.read_text(encoding="utf-8", errors="surrogateescape") if path.is_file() else None
    if card is not None:
        card = card.replace('load_dataset("PATH"', f'load_dataset("{repo_id}"')
    if repo_type == "dataset":
        return card if license is None else _with_license(card or "", license)
    facts = ModelCardFacts.from_folder(folder, repo_id, license=license, datasets=datasets)
    return facts.render() if card is None else complete_card(card, facts)


def _with_license(text: str, license: str) -> str:
    """Set the licence of a dataset's card."""
    card = read_card(text, DatasetCard)
    card.data["license"] = license
    return str(card)


def _needs_local_encoder(config: dict[str, Any]) -> bool:
    return bool(config.get("mapper_only")) and not is_hub_id(config.get("encoder_name_or_path"))


def _self_contained(folder: Path, temporary: Path) -> Path:
    """Return the folder, or a copy that needs nothing else: with code, processor and the weights of a local encoder."""
    config = _read_config(folder)
    needs_local_encoder = _needs_local_encoder(config)
    code = [folder / f"{name}_hycir.py" for name in _CODE]  # a link to a file elsewhere is not uploaded
    has_code = "auto_map" in config and all(path.is_file() and not path.is_symlink() for path in code)
    if has_code and not needs_local_encoder:
        return folder
    model = HyCIRModel.from_pretrained(folder)
    model.save_pretrained(temporary, mapper_only=bool(config.get("mapper_only")) and not needs_local_encoder)
    HyCIRProcessor.from_pretrained(folder).save_pretrained(temporary)
    return temporary


def _select(folder: Path, source: Path) -> tuple[dict[str, Path], list[str]]:
    """Choose the files to upload, by their path in the repository, and the files to leave out.

    Left out are hidden folders (SynCir's `.work/`), training states, pickles, and links to files outside the folder.
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
        saved_again = {path.relative_to(source).as_posix(): path for path in _files(source)}
        left_out += [name for name in paths if name.endswith(_SAVED_AGAIN) and name not in saved_again]
        paths = {name: path for name, path in paths.items() if not name.endswith(_SAVED_AGAIN)} | saved_again
    return paths, sorted(set(left_out) - set(paths))


def _check_has_data(folder: Path, paths: dict[str, Path], left_out: list[str]) -> None:
    """Refuse a folder without weights or rows to upload: a download cache, for example, holds only links."""
    if not any(name.endswith(_DATA_SUFFIXES) for name in paths):
        raise ValueError(
            f"There are no safetensors or Parquet files to upload in {folder} (left out: {left_out}). Save the model "
            "with save_pretrained first."
        )


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _replaced(present: Sequence[str], files: dict[str, Any]) -> list[str]:
    """Find old shards of the uploaded files in the repository: they would be read together with the new ones."""
    series = {_series(name) for name in files if name.endswith(_DATA_SUFFIXES)}
    return [name for name in present if name not in files and _series(name) in series]


def _series(name: str) -> tuple[str, str]:
    """Return a file's name without the number of its shard, and its suffix: ("images/part", ".parquet")."""
    path = Path(name)
    return re.sub(r"-\d+(-of-\d+)?$", "", path.with_suffix("").as_posix()), path.suffix


@contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    """Turn the client's errors of several lines into one line."""
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in _REFUSED:
            raise OSError(
                f"The Hub refused to write to {repo_id} (HTTP {status}). Log in with `hf auth login` and a token of "
                "the role write, and check the owner's name."
            ) from error
        said = error.server_message or str(error).split("\n")[0]
        raise OSError(f"The Hub answered HTTP {status} for {repo_id}: {said}. Correct that, or try later.") from error
    except (HTTPError, ConnectionError) as error:  # no answer at all; the latter in offline mode
        raise OSError(
            f"The Hub cannot be reached for {repo_id}: {error}. Check the network, HF_ENDPOINT and HF_HUB_OFFLINE."
        ) from error
    except ValueError as error:
        if not str(error).startswith("Invalid metadata"):
            raise
        raise ValueError(f"The Hub refused the card: {error}. Correct README.md, license= or datasets=.") from error


def _ensure_repo(api: HfApi, repo_id: str, repo_type: str, private: bool) -> bool:
    """Create the repository if it is missing, and tell whether it is private."""
    try:
        is_private = bool(api.repo_info(repo_id, repo_type=repo_type).private)
    except RepositoryNotFoundError:
        api.create_repo(repo_id, repo_type=repo_type, private=private)
        return private
    if private and not is_private:
        raise ValueError(
            f"The repository {repo_id} is public: everybody can read what is pushed there. Pass private=False, or make "
            "the repository private first."
        )
    return is_private
