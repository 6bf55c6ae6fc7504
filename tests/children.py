"""Processes that tests start to kill them, or to train in two.

They come from a fork server, which holds no thread and no lock: a fork of the tests' own process, with its servers'
and libraries' threads, can wait for ever for a lock that one of them held.
"""

import functools
import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pytest", "transformers.modeling_utils", "hycir_hf.training", "hycir_hf.syncir"])
TIMEOUT = 300


def start(function, *args):
    """A process that runs a test module's function."""
    _start_server()
    return _start(function, args)


def exit_status(child):
    """A process's exit status, negative for a signal; one that does not end is killed and fails the test."""
    child.join(TIMEOUT)
    if child.exitcode is None:
        child.kill()
        child.join()
        raise TimeoutError(f"process {child.name} did not end in {TIMEOUT} s")
    return child.exitcode


@functools.cache
def _start_server():
    """The server's imports take seconds: they are over before the first child starts."""
    assert exit_status(_start(int, ())) == 0


def _start(function, args):
    child = CONTEXT.Process(target=function, args=args)
    child.start()
    return child
