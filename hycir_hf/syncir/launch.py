"""SynCir in the processes of `accelerate launch`: they share features and captions, the first does the rest."""

import os
from datetime import timedelta
from typing import Any

from ..settings import ParameterError
from .run import SynCirRun


def run_launched(run: SynCirRun, until: str | None, num_shards: int, shard_index: int) -> dict[str, Any] | None:
    """Run SynCir in this process, or in all that were launched together.

    Args:
        run (`SynCirRun`): The same in every process.
        until (`str`, *optional*): End after this stage.
        num_shards (`int`): Processes of a job array, where nothing was launched.
        shard_index (`int`): Which of them this is.

    Returns:
        `dict`: The recipe; None in the other processes and where the run ends early.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        return run.run(until, num_shards, shard_index)
    from accelerate import PartialState

    if num_shards > 1:
        raise ParameterError("`accelerate launch` shares the stages itself. Leave num_shards= out.", "num_shards")
    state = PartialState(cpu=run.device == "cpu", timeout=timedelta(days=7))  # the others wait for the first's stages
    for stage in ("features", "pairs", "captions"):
        if stage != "pairs":
            run.run(stage, state.num_processes, state.process_index)
        elif state.is_main_process:
            run.run(stage)
        state.wait_for_everyone()
        if stage == until:
            return None
    return run.run(until) if state.is_main_process else None
