"""Ctrl-C and SIGTERM during a training: the running step ends, a checkpoint is saved, and the training stops."""

import logging
import signal
import threading
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)


class StopSignals:
    """A context that notes the first Ctrl-C or SIGTERM instead of obeying it. A second one acts as usual.

    Attributes:
        is_asked (`bool`): Whether this process was asked to stop.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        """Begin to note signals. Python allows that in the main thread only; elsewhere nothing changes."""
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        """Let signals act as before."""
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.is_asked = True
        self.__exit__()
        logger.warning("Stopping after this step, with a checkpoint. Interrupt again to stop at once, without one.")


def ignore_interrupts(worker: int) -> None:
    """Let a process that reads images outlive Ctrl-C, which a terminal sends to it too: the trainer still needs it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
