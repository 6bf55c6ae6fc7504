"""Models and SynCir data sets to the Hugging Face Hub, without secrets and local paths.

The access token is `huggingface_hub`'s matter (`hf auth login` or HF_TOKEN): it is handed on, never shown or written.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from .model_card import ModelCardFacts, add_results, is_hub_id

UPLOADED_SUFFIXES = (
    *(".json", ".jsonl", ".safetensors", ".model", ".txt", ".md", ".py"),
    *(".parquet", ".html", ".yaml", ".yml", ".csv", ".png", ".jpg", ".jpeg", ".webp", ".svg"),
)
_TEXT_SUFFIXES = (".json", ".jsonl", ".txt", ".md", ".py", ".html", ".yaml", ".yml", ".csv")
# Their strings are words, whatever they look like.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "added_tokens.json")
_SAVED_ANEW = (".safetensors", ".safetensors.index.json", ".py")
_CODE = ("configuration", "modeling", "processing")
_REPLACED_SUFFIXES = (".parquet", ".safetensors")  # an old shard beside new ones would be read with them

_SECRET_KEY = re.compile(
    r"(?i)^((.*_)?(api_?key|secret|secret_key|password|passwd|credentials?|authorization)"
    r"|((hf|hub|auth|use_auth|access|api|bearer|private)_?)?token)$"
)
_SECRET_VALUES = {
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{20,}\b"),
    "an API key": re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),
    "a GitHub token": re.compile(r"\bgh[pousr]_[A-Za-z0-9]{30,}\b"),
    "an AWS key": re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a URL with a password": re.compile(r"://[^/\s:@\"']+:[^/\s:@\"']+@"),
}
_LOCAL_PATH = re.compile(r"^((/[^/\n]+){2,}/?|~[\\/].*|\.\.?[\\/].*|[A-Za-z]:[\\/].*)$")


@dataclass(frozen=True)
class PushReport:
    """What a push did.

    Args:
        url (`str`): The repository's page.
        commit (`str`): The commit's hash.
        is_private (`bool`): Whether only its owner sees it.
        uploaded (`list[str]`): Paths in the repository.
        left_out (`list[str]`): Files of the folder that stayed here.
        stripped (`list[str]`): "file: key" of each local path that was taken out of the uploaded copies.
    """

    url: str
    commit: str
    is_private: bool
    uploaded: list[str]
    left_out: list[str]
    stripped: list[str]


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool = True,
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
        commit_message (`str`, *optional*): One is made up by default.
        token (`str`, *optional*): By default the one that `huggingface_hub` knows.

    Raises:
        ValueError: If the folder is neither, a file holds a secret, or `private` is asked for a public repository.
    """
    folder = Path(folder)
    repo_type = find_repo_type(folder)
    with tempfile.TemporaryDirectory() as temporary:
        source = _self_contained(folder, Path(temporary)) if repo_type == "model" else folder
        paths, left_out = _select(folder, source)
        contents, stripped = _clean(paths, repo_id)
        _check_has_data(folder, paths, left_out)
        if repo_type == "model":
            contents["README.md"] = _model_card(folder, repo_id, paths, contents).encode(errors="surrogateescape")
        api = HfApi(token=token)
        is_private = _ensure_repo(api, repo_id, repo_type, private)
        stale = [
            CommitOperationDelete(path)
            for path in api.list_repo_files(repo_id, repo_type=repo_type)
            if path.endswith(_REPLACED_SUFFIXES) and path not in paths
        ]
        files: dict[str, Any] = {**paths, **contents}
        commit = api.create_commit(
            repo_id,
            [*stale, *(CommitOperationAdd(name, value) for name, value in sorted(files.items()))],
            commit_message=commit_message or f"Upload HyCIR {'model' if repo_type == 'model' else 'triplets'}",
            repo_type=repo_type,
        )
    return PushReport(str(commit.repo_url), commit.oid, is_private, sorted(files), left_out, stripped)


def find_repo_type(folder: str | os.PathLike) -> str:
    """Tell a saved model ("model") from a SynCir data set ("dataset").

    Raises:
        ValueError: If the folder is neither.
    """
    folder = Path(folder)
    if (folder / "recipe.json").is_file():
        return "dataset"
    config = folder / "config.json"
    if config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("model_type") == "hycir":
        return "model"
    raise ValueError(
        f"Expected a saved HyCIR model (config.json) or a finished SynCir data set (recipe.json) in {folder}, but "
        "found neither. Give the folder that save_pretrained or `hycir syncir` wrote."
    )


def _model_card(folder: Path, repo_id: str, paths: dict[str, Path], contents: dict[str, bytes]) -> str:
    """The folder's own card, with the figures of its `results*.json` where it has none; or else a new one."""
    if "README.md" not in paths:
        return ModelCardFacts.from_folder(folder, repo_id).render()
    text = (contents.get("README.md") or paths["README.md"].read_bytes()).decode(errors="surrogateescape")
    results = ModelCardFacts.from_folder(folder, repo_id).results
    return add_results(text, results, repo_id.rpartition("/")[2])


def _self_contained(folder: Path, temporary: Path) -> Path:
    """The folder, or a copy beside which nothing is needed: code, processor, and the weights of a local encoder."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
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
        paths = {name: path for name, path in paths.items() if not name.endswith(_SAVED_ANEW)}
        paths |= {path.relative_to(source).as_posix(): path for path in _files(source)}
    return paths, left_out


def _check_has_data(folder: Path, paths: dict[str, Path], left_out: list[str]) -> None:
    """Refuse a folder whose weights or rows would stay here: a download's cache, for example, holds links alone."""
    if not any(name.endswith(_REPLACED_SUFFIXES) for name in paths):
        raise ValueError(
            f"Expected safetensors or Parquet files in {folder}, but found none to upload (left out: {left_out}). Save "
            "the model with save_pretrained first."
        )


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _clean(paths: dict[str, Path], repo_id: str) -> tuple[dict[str, bytes], list[str]]:
    """Look for secrets in every text file, and rewrite those that name local paths.

    Returns:
        The new content of changed files, and "file: key" of each path taken out.
    """
    texts = {
        name: path.read_text(encoding="utf-8", errors="surrogateescape")
        for name, path in paths.items()
        if path.suffix in _TEXT_SUFFIXES
    }
    complaints = [f"{name} holds {what}" for name, text in texts.items() for what in _secrets(text)]
    changed: dict[str, str] = {}
    stripped: list[str] = []
    local_paths = {str(Path.home())}
    for name, text in texts.items():
        if Path(name).name in _VOCABULARIES or not name.endswith((".json", ".jsonl", ".yaml", ".yml")):
            continue
        found = _Cleaner()
        content = found.clean(_parse(name, text))
        complaints += [f"{name} holds a value for {key!r}" for key in found.secret_keys]
        stripped += [f"{name}: {key}" for key in found.stripped]
        local_paths |= found.paths
        if found.stripped and name.endswith(".json"):  # the others keep their layout; their text is replaced below
            changed[name] = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    if complaints:
        raise ValueError(
            f"Expected files without secrets, but {'; '.join(complaints)}. Take it out, and revoke it if the folder "
            "was ever shared."
        )
    for name, text in texts.items():
        if not name.endswith(".json"):
            changed[name] = _without_paths(text, local_paths)
        if name == "README.md":
            changed[name] = changed[name].replace('load_dataset("PATH"', f'load_dataset("{repo_id}"')
    encoded = {name: text.encode(errors="surrogateescape") for name, text in changed.items() if text != texts[name]}
    return encoded, stripped


def _parse(name: str, text: str) -> Any:
    """Read a JSON, JSON lines or YAML file."""
    try:
        if name.endswith(".json"):
            return json.loads(text)
        if name.endswith(".jsonl"):
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        return list(yaml.safe_load_all(text))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"Expected {name} to be well-formed, since it is searched for secrets, but reading it failed: {error}. "
            "Repair it or take it out of the folder."
        ) from error


def _secrets(text: str) -> list[str]:
    return [what for what, pattern in _SECRET_VALUES.items() if pattern.search(text)]


def _without_paths(text: str, local_paths: set[str]) -> str:
    """Replace whole local paths by their last name; a part of a longer word or of a URL's path is left alone."""
    for path in sorted(local_paths, key=len, reverse=True):
        if len(path) > 1:
            text = re.sub(rf"(?<![\w.-]){re.escape(path)}(?![\w-])", _last_name(path), text)
    return text


def _last_name(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]


class _Cleaner:
    """Walks through JSON: local paths become their last name, secrets are named."""

    def __init__(self) -> None:
        self.stripped: list[str] = []
        self.secret_keys: list[str] = []
        self.paths: set[str] = set()

    def clean(self, value: Any, key: str = "") -> Any:
        """Return the value without local paths."""
        if isinstance(value, dict):
            return {
                name: self.clean(item, str(name)) for name, item in value.items() if not self._is_local_name(name, item)
            }
        if isinstance(value, list):
            return [self.clean(item, key) for item in value]
        if not isinstance(value, str) or not value:
            return value
        if _SECRET_KEY.match(key):
            self.secret_keys.append(key)
        if _LOCAL_PATH.match(value):
            return self._strip(key, value)
        return value

    def _is_local_name(self, key: str, value: Any) -> bool:
        """A name that would be looked up, such as `encoder_name_or_path`: a folder's last name would mislead there."""
        is_local = key.endswith("name_or_path") and isinstance(value, str) and ("/" in value or "\\" in value)
        if is_local and not is_hub_id(value):
            self._strip(key, value)
            return True
        return False

    def _strip(self, key: str, value: str) -> str:
        self.stripped.append(key)
        self.paths.add(value)
        return _last_name(value)


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
