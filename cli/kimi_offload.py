"""The command `kimi-offload`: subcommands imported on first use, and the exit codes.

    0    done
    1    the user's error (OffloadError, a file or device that fails): one line, no traceback
    2    wrong usage of the command line (click)
    3    our bug: one line, the traceback in a log file
    130  Ctrl-C
    141  the reader of our output went away (a closed pipe), silently

Nothing heavy is imported at the top of any module in this package, so that `--help` stays quick.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

# command -> module that defines it as `command`; the order of --help
COMMANDS = {
    "run": "cli.cmd_run",
    "pull": "cli.cmd_pull",
    "inspect": "cli.cmd_inspect",
    "bench": "cli.cmd_bench",
    "doctor": "cli.cmd_doctor",
}

EXIT_USER_ERROR = 1
EXIT_BUG = 3
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


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
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; every exception that is not click's own becomes an exit code."""
        try:
            result = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)
        except BrokenPipeError:
            _discard_output()
            ctx.exit(EXIT_BROKEN_PIPE)
        except Exception as exc:  # the one place where every error ends
            ctx.exit(_report(exc))
        return result


def _report(exc: Exception) -> int:
    """Tell the user in one line what went wrong; the exit code."""
    from cli._render import error_line
    from offload.errors import OffloadError

    if isinstance(exc, OffloadError):
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

    log_path = write_bug_log(exc)
    error_line(
        f"this is a bug in kimi-offload: {type(exc).__name__}: {exc}; details are in {log_path}"
    )
    return EXIT_BUG


def _discard_output() -> None:
    """Point standard output at the null device, so that the flush at exit cannot fail again."""
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from offload.version import __version__

    click.echo(f"kimi-offload {__version__}")
    ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
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
    kimi_offload(prog_name="kimi-offload")


if __name__ == "__main__":
    main()
