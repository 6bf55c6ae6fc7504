"""Checkpoints that are complete or absent: written aside, forced to disk, renamed."""

import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ..retrieval.gallery import sync

_NAME = re.compile(r"step-(\d{8})")
STATE_NAME = "training_state.pt"


class CheckpointFolder:
    """The checkpoints of a training: folders `step-00001000` with the model and the training's state.

    Args:
        directory (`Path`): Where they lie.
        total_limit (`int`, *optional*): How many of the newest are kept; all by default.
    """

    def __init__(self, directory: Path, total_limit: int | None = None) -> None:
        self.directory, self.total_limit = directory, total_limit

    def create(self) -> None:
        """Make the folder.

        Raises:
            OSError: If it cannot be made: better now than at the first checkpoint.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"Expected to write checkpoints into {self.directory}, but: {error}. Give an output_dir that can be "
                "written."
            ) from error

    def path(self, step: int) -> Path:
        """Where a step's checkpoint lies."""
        return self.directory / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps with a checkpoint, oldest first."""
        if not self.directory.is_dir():
            return []
        return sorted(int(found[1]) for path in self.directory.iterdir() if (found := _NAME.fullmatch(path.name)))

    def save(self, step: int, state: dict[str, Any], save_model: Callable[[Path], None]) -> None:
        """Save a step: all or nothing.

        Args:
            step (`int`): Steps done.
            state (`dict`): What `load` gives back.
            save_model (function): Saves the model into a folder.

        Raises:
            OSError: If it cannot be written, as on a full disk; nothing of it is left then.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        with aside(self.path(step)) as folder:
            (folder / STATE_NAME).write_bytes(buffer.getvalue())
            save_model(folder)

    def load(self, step: int) -> dict[str, Any]:
        """A step's state, on the CPU."""
        return torch.load(self.path(step) / STATE_NAME, map_location="cpu", weights_only=True)

    def prune(self, keep: int | None) -> None:
        """Remove all but the newest `total_limit` checkpoints, and leftovers of saves that were killed.

        Args:
            keep (`int`, *optional*): A step to keep besides, the best one.
        """
        steps = self.steps()
        old = steps[: -self.total_limit] if self.total_limit else []
        for step in old:
            if step != keep:
                leftover = self.path(step).with_suffix(".removed")  # never half a checkpoint under its name
                self.path(step).replace(leftover)
        for pattern in ("*.removed", "*.aside"):
            for path in self.directory.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)


def _is_about_writing(error: BaseException) -> bool:
    """Whether an error comes from the disk: safetensors raises a kind of its own, tokenizers a bare Exception."""
    is_tokenizers = type(error) is Exception and "os error" in str(error)
    return isinstance(error, OSError | SafetensorError) or is_tokenizers


class aside:
    """A folder written beside its place and renamed into it when all of it is on disk; on an error nothing is left.

    Args:
        place (`Path`): Where the folder shall be; one that is there is replaced.

    Raises:
        OSError: If it cannot be written; the message says where and what is left to do.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.folder = place.with_suffix(".aside")

    def __enter__(self) -> Path:
        shutil.rmtree(self.folder, ignore_errors=True)
        try:
            self.folder.mkdir(parents=True)
        except OSError as error:
            raise self._error(error) from error
        return self.folder

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is None:
            try:
                for path in self.folder.rglob("*"):
                    sync(path)
                sync(self.folder)
                if self.place.exists():
                    shutil.rmtree(self.place)
                self.folder.replace(self.place)
                sync(self.place.parent)
                return
            except OSError as failure:
                shutil.rmtree(self.folder, ignore_errors=True)
                raise self._error(failure) from failure
        shutil.rmtree(self.folder, ignore_errors=True)
        if error is not None and _is_about_writing(error):
            raise self._error(error) from error

    def _error(self, error: BaseException) -> OSError:
        return OSError(
            f"Expected to save {self.place}, but writing failed: {error}. Nothing of it was left, and what was saved "
            "before is whole; make room and run the same command again."
        )
