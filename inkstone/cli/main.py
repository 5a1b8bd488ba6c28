"""`inkstone`: the commands, how errors are shown, and the exit code.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted (Ctrl-C), 143 terminated (SIGTERM).
Command modules import nothing heavy at the top, so that `inkstone --help` answers at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, Any

import typer

from inkstone import __version__
from inkstone.cli import (
    answer,
    chat,
    compare,
    compress,
    demo,
    doctor,
    eval,
    export,
    generate,
    import_,
    label,
    load,
    look,
    merge,
    new,
    recipes,
    report,
    run,
    search,
    serve,
    train,
    vectors,
)
from inkstone.errors import InkstoneError

app = typer.Typer(
    name="inkstone",
    help="From a folder of text to a language model you own.",
    no_args_is_help=True,
    rich_markup_mode=None,  # rich takes longer to import than all of this
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    demo, new, compare, label, train, generate, chat, run, answer, search, serve, eval, look,
    report, load, import_, merge, compress, export, recipes, doctor,
)  # fmt: skip
for module in COMMANDS:
    app.command(name=module.__name__.rpartition(".")[2].rstrip("_"))(module.command)
app.command(name="vectors", context_settings=vectors.SETTINGS)(vectors.command)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"inkstone {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived outside the training loop, which handles both itself."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code and never shows a traceback for a user's mistake."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed before we started, as `>&-` does
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    before = _watch_signals()
    try:
        return _run(arguments)
    except InkstoneError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Terminated as ended:
        return 128 + ended.signum
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has gone: nothing left to tell
        _silence_stdout()
        return 1
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        command = typer.main.get_command(app)
        code = command.main(
            args=None if arguments is None else list(arguments), prog_name="inkstone"
        )
    except SystemExit as left:
        code = left.code
    sys.stdout.flush()
    if isinstance(code, str):
        print(code, file=sys.stderr)
        return 1
    return int(code or 0)


def _watch_signals() -> dict[signal.Signals, Any]:
    def stop(signum: int, frame: FrameType | None) -> None:
        raise Terminated(signum)

    before: dict[signal.Signals, Any] = {}
    try:
        for signum in (signal.SIGTERM, signal.SIGHUP):
            before[signum] = signal.signal(signum, stop)
    except ValueError:  # not in the main thread: its owner decides
        pass
    return before


def _silence_stdout() -> None:
    """Let the interpreter's own last flush go nowhere instead of failing again."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
