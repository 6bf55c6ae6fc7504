"""Checkpoints of a training, each complete or absent."""

import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..files import atomic_folder

_NAME = re.compile(r"step-(\d{8})")
STATE_NAME = "training_state.pt"


class CheckpointFolder:
    """The checkpoints of a training: folders such as `step-00001000` with the model and the training's state.

    Args:
        directory (`Path`): The folder that holds them.
        total_limit (`int`, *optional*): How many of the newest are kept; by default all.
    """

    def __init__(self, directory: Path, total_limit: int | None = None) -> None:
        self.directory, self.total_limit = directory, total_limit

    def create(self) -> None:
        """Make the folder now, so that a wrong place is not found out at the first checkpoint.

        Raises:
            OSError: If it cannot be made.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"output_dir cannot hold {self.directory}: {error}. Choose another output_dir.") from error

    def path(self, step: int) -> Path:
        """Return the place of a step's checkpoint."""
        return self.directory / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, oldest first."""
        if not self.directory.is_dir():
            return []
        return sorted(int(found[1]) for path in self.directory.iterdir() if (found := _NAME.fullmatch(path.name)))

    def save(self, step: int, state: dict[str, Any], save_model: Callable[[Path], None]) -> None:
        """Save a step's checkpoint.

        Args:
            step (`int`): Steps done.
            state (`dict`): What `load` returns.
            save_model (function): Saves the model into a folder.

        Raises:
            OSError: If it cannot be written, for example to a full disk. Nothing of it is left then.
        """
        buffer = io.BytesIO()  # torch.save into a file turns a full disk into another error
        torch.save(state, buffer)
        with atomic_folder(self.path(step)) as folder:
            (folder / STATE_NAME).write_bytes(buffer.getvalue())
            save_model(folder)

    def load(self, step: int) -> dict[str, Any]:
        """Return a step's state, on the CPU."""
        return torch.load(self.path(step) / STATE_NAME, map_location="cpu", weights_only=True)

    def prune(self, keep: int | None) -> None:
        """Remove all but the newest `total_limit` checkpoints, and what killed saves left behind.

        Args:
            keep (`int`, *optional*): A step that is kept too: the best one.
        """
        steps = self.steps()
        for step in steps[: -self.total_limit] if self.total_limit else []:
            if step != keep:  # renamed first, so that no half-removed folder has a checkpoint's name
                self.path(step).replace(self.path(step).with_suffix(".removed"))
        for pattern in ("*.removed", "*.aside"):
            for path in self.directory.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)
