"""The console script `hycir`: a table of commands, parsing, printing and exit codes.

A command is one file beside this one, with an `app` and typed functions, and one line in `_COMMANDS`. Its file is
imported when it is asked for. Files of commands import nothing heavy at their top: they use `hycir_hf.retrieval` and
so on, which are imported at the first use.
"""

import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter, UnusedCliTokensError

from .. import __version__
from ..settings import ParameterError
from .options import Report, shown

_COMMANDS = {
    "index": "Encode images into a gallery that can be searched.",
    "gallery": "Add, remove, list and export a gallery's images.",
    "search": "Search a gallery with a reference image and a text.",
    "app": "Search a gallery in the browser.",
    "serve": "Serve a gallery over HTTP: searches and embeddings.",
    "syncir": "Make training triplets from unlabeled images.",
    "features": "Encode images once into a feature cache, for training.",
    "init": "Make an untrained model from an encoder.",
    "train": "Train a mapper with HyCIR's hybrid objective, or another one.",
    "evaluate": "Evaluate a model on a benchmark, score rankings, compare results.",
    "benchmark": "Draft your own benchmark, for a person to correct.",
    "convert": "Convert a Pic2Word, SEARLE, LinCIR or BLIP checkpoint to HyCIR.",
    "export": "Export a model to ONNX, for onnxruntime.",
    "push": "Upload a model or a triplet dataset to the Hugging Face Hub.",
}
"""A command's name -> its line in `hycir --help`. The command stands in the file of that name."""

_EPILOGUE = """\
`hycir COMMAND --help` shows a command's options with examples.
`hycir --install-completion` sets up tab completion for your shell (bash, zsh or fish)."""

DONE, FAILED, WRONG_USAGE, INCOMPLETE, INTERRUPTED = 0, 1, 2, 3, 130
"""The exit codes, of every command and every way to start it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `hycir`.

    Args:
        argv (`Sequence[str]`, *optional*): Arguments; the process's own by default.

    Returns:
        `int`: 0 done, 1 failed, 2 wrong usage, 3 images were skipped (with --strict), 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may hold what the terminal cannot show
    app, is_debugging = build_app(), "--debug" in words
    with contextlib.suppress(ValueError):  # another thread than the main one cannot set it
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run(app, words)
    except KeyboardInterrupt:
        return _report_interrupt()
    except BrokenPipeError:  # `hycir search ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if _is_interrupt(error):
            return _report_interrupt()
        if is_debugging:
            raise
        return _report_error(app, words, error)


def build_app() -> App:
    """Build the command line; the commands' files are not imported yet."""
    app = App(
        name="hycir",
        help="Composed image retrieval: a reference image and a text find the image you mean.",
        help_format="plaintext",
        help_epilogue=_EPILOGUE,
        version=__version__,
        default_parameter=Parameter(negative_iterable=(), allow_repeating=True),
        print_error=False,
        exit_on_error=False,
    )
    for name, summary in _COMMANDS.items():
        app.command(f"{__package__}.{name}:app", name=name, help=summary, sort_key=list(_COMMANDS).index(name))
    app.register_install_completion_command()
    return app


def _run(app: App, words: list[str]) -> int:
    command, bound, _ = app.parse_args(words)
    common = bound.arguments.get("common")
    prints_json = getattr(common, "json", False)
    with contextlib.redirect_stdout(sys.stderr) if prints_json else contextlib.nullcontext():
        report = command(*bound.args, **bound.kwargs)
    if isinstance(report, Report):
        print(json.dumps(report.values, indent=2) if prints_json else "\n".join(report.lines))
    sys.stdout.flush()
    if isinstance(report, Report) and report.status:
        return report.status
    is_unasked_help = command.__name__ == "help_print" and not {"--help", "-h"} & set(words)
    return WRONG_USAGE if is_unasked_help else DONE


def _report_error(app: App, words: list[str], error: Exception) -> int:
    """Print an error as one line, with the flags of the parameters that it names."""
    chain = app.parse_commands(words)[0]
    name = " ".join(("hycir", *chain))
    text = shown(" ".join(_message(error).split())) or type(error).__name__
    if isinstance(error, ParameterError):
        flag_of = {argument.field_info.name: argument.name for argument in _arguments(app, words)}
        flags = [flag_of[one] for one in error.parameters if one in flag_of]
        text += f" ({', '.join(flags)})" if flags else ""
    is_usage = isinstance(error, CycloptsError | ParameterError)
    hint = f" See `{name} --help`." if is_usage else ""
    print(f"{name}: error: {text}{hint}", file=sys.stderr)
    return WRONG_USAGE if is_usage else FAILED


def _message(error: Exception) -> str:
    """What an error says; two of cyclopts' messages are made plain."""
    if isinstance(error, MissingArgumentError) and error.argument is not None and not error.tokens_so_far:
        name = error.keyword or error.argument.name
        return f"{name} needs a value." if error.keyword else f"{name} is missing."
    if isinstance(error, UnusedCliTokensError):
        return f"Unexpected {' '.join(error.unused_tokens or ())!r}. Quote a value that holds spaces."
    return str(error)


def _arguments(app: App, words: list[str]) -> Any:
    """The options of the command that was called."""
    return app.parse_commands(words)[1][-1].assemble_argument_collection()


def _report_interrupt() -> int:
    print("hycir: interrupted. Run the same command again to resume.", file=sys.stderr)
    return INTERRUPTED


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error: met while a C extension is imported, it comes out as an ImportError."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
