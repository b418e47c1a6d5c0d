"""The command `kimi-offload`: subcommands imported on first use, and the exit codes.

    0    done
    1    the user's error (OffloadError, a file or device that fails): one line, no traceback
    2    wrong usage of the command line (click)
    3    our bug: one line, the traceback in a log file
    129  SIGHUP, or the terminal is gone
    130  Ctrl-C
    131  SIGQUIT
    141  the reader of our output went away (a closed pipe), silently
    143  SIGTERM

Nothing heavy is imported at the top of any module in this package, so that `--help` stays quick.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

try:
    import click

    from cli._interrupt import (
        EXIT_HANGUP,
        EXIT_INTERRUPTED,
        end_on_signals,
        is_hung_up,
        remember_terminal,
        restore_terminal,
    )
except KeyboardInterrupt:  # Ctrl-C in the first moments
    raise SystemExit(130) from None

# command -> module that defines it as `command`; the order of --help
COMMANDS = {
    "run": "cli.cmd_run",
    "serve": "cli.cmd_serve",
    "pull": "cli.cmd_pull",
    "inspect": "cli.cmd_inspect",
    "plan": "cli.cmd_plan",
    "bench": "cli.cmd_bench",
    "replay": "cli.cmd_replay",
    "doctor": "cli.cmd_doctor",
}

EXIT_USER_ERROR = 1
EXIT_USAGE = 2
EXIT_BUG = 3
EXIT_BROKEN_PIPE = 141

EXIT_CODES = (
    "Exit codes: 0 done; 1 your error, in one line; 2 wrong usage; 3 our bug, with a log; "
    "129 SIGHUP, or the terminal is gone; 130 Ctrl-C; 131 SIGQUIT; 141 the reader of the "
    "output is gone; 143 SIGTERM."
)


class LazyGroup(click.Group):
    """A group that imports a subcommand when it is asked for, and turns exceptions into codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All command names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command; None when there is no such command."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name]).command
        command.epilog = command.epilog or EXIT_CODES
        return command

    def make_context(self, *arguments: Any, **extra: Any) -> click.Context:
        """Parse; --help and --version write here."""
        with _exit_codes():
            return super().make_context(*arguments, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; every exception that is not click's own becomes an exit code."""
        with _exit_codes():
            _show_warnings()
            result = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()
            return result


@contextlib.contextmanager
def _exit_codes() -> Iterator[None]:
    """The one place where every error ends, as click's Exit."""
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except KeyboardInterrupt:
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:
        raise click.exceptions.Exit(EXIT_BROKEN_PIPE) from None
    except Exception as exc:
        code = EXIT_HANGUP if is_hung_up(exc) else _report(exc)
        raise click.exceptions.Exit(code) from None


def _report(exc: Exception) -> int:
    """Tell the user in one line what went wrong; the exit code."""
    from cli._render import error_line
    from offload.errors import OffloadError, SettingError

    if isinstance(exc, OffloadError | SettingError):
        error_line(str(exc))
        return EXIT_USER_ERROR
    if isinstance(exc, MemoryError):
        detail = f" ({exc})" if str(exc) else ""
        error_line(f"out of memory{detail}; close other programs, or ask for a smaller --context")
        return EXIT_USER_ERROR
    if isinstance(exc, OSError):
        reason = exc.strerror or str(exc) or type(exc).__name__
        error_line(f"{exc.filename}: {reason}" if exc.filename else reason)
        return EXIT_USER_ERROR
    from cli._paths import write_bug_log

    try:
        where = f"details are in {write_bug_log(exc)}"
    except Exception as failure:  # a bug must be told even where nothing can be written
        where = f"its log could not be written ({failure})"
    error_line(f"this is a bug in kimi-offload: {type(exc).__name__}: {exc}; {where}")
    return EXIT_BUG


def _show_warnings() -> None:
    """Warnings of the runtime as lines of ours on standard error."""
    import logging

    from cli._render import neutralise_line, say

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = " ".join(record.getMessage().split())
            say(neutralise_line(f"{record.levelname.lower()}: {text}"), err=True)

    for name in ("offload", "quant"):
        log = logging.getLogger(name)
        if not any(type(handler).__name__ == Lines.__name__ for handler in log.handlers):
            log.addHandler(Lines(logging.WARNING))


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from offload.version import __version__

    click.echo(f"kimi-offload {__version__}")
    ctx.exit()


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def kimi_offload() -> None:
    """Run Kimi K2.5 and other GGUF models of the deepseek2 family.

    `kimi-offload run` without a MODEL talks to the small embedded model, kimi-mini.
    """


def main() -> None:
    """Console entry point (setup.cfg)."""
    code: object = EXIT_INTERRUPTED  # what it is if Ctrl-C comes between two other places
    try:
        _fill_standard_descriptors()
        remember_terminal()
        end_on_signals()
        code = _run()
    except KeyboardInterrupt:
        pass
    except SystemExit as exc:
        code = exc.code
    if code:
        restore_terminal()
    with contextlib.suppress(KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left to tidy up
    _let_go_of_output()
    sys.exit(code if isinstance(code, int) else EXIT_USER_ERROR if code else 0)


def _run() -> int:
    """The exit code of the command line as given."""
    try:
        code = kimi_offload.main(prog_name="kimi-offload", standalone_mode=False)
    except click.ClickException as exc:
        with contextlib.suppress(OSError):  # standard error is gone
            exc.show()
        return exc.exit_code
    except click.Abort:
        return EXIT_INTERRUPTED
    return code if isinstance(code, int) else 0


def _fill_standard_descriptors() -> None:
    """Open the null device where 0, 1 or 2 is closed: no file of ours may get that number.

    Else what a library writes to standard error could end up in it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # the lowest free number is this one
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _let_go_of_output() -> None:
    """Flush; a stream that fails goes to the null device, as the flush at exit would fail again."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)


if __name__ == "__main__":
    main()
