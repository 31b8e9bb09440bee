"""The command line: an app of verbs, each a thin call of a library function, and its entry point.

Heavy imports stand inside the verbs, so that ``daskpipe --help`` answers at once.
"""

from __future__ import annotations

import json
import signal
import sys
import traceback
from typing import TYPE_CHECKING, NoReturn

import typer

from daskpipe.cli import config, dataset, doctor, environments, frames, maintenance, new, plan, run, status
from daskpipe.cli.options import Stopped, Verbs
from daskpipe.core.errors import EXIT_INTERNAL, EXIT_INTERRUPTED, ConfigError, DaskpipeError
from daskpipe.core.shared_disk import disk_error
from daskpipe.core.text import make_printable

if TYPE_CHECKING:
    from types import FrameType

app = Verbs(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From a short config to a labelled dataset for machine-learning interatomic potentials.",
    epilog="Exit codes: 0 complete, 1 internal error, 2 wrong config, 3 input rejected, 4 no cluster, 5 disk, "
    "10 complete with quarantined structures, 75 interrupted (daskpipe resume goes on).",
)
for verbs in (run, new, doctor, frames, dataset, status, plan, maintenance):
    app.add_typer(verbs.app)
app.add_typer(config.app, name="config")
app.add_typer(environments.app, name="env")


def main() -> None:
    """Run the verb that was typed; turn an error into one message and an exit code."""
    signal.signal(signal.SIGINT, _raise_stopped)
    signal.signal(signal.SIGTERM, _raise_stopped)
    as_json = "--json" in sys.argv
    try:
        # For people typer draws its own box around a wrong option; for machines it is an error like any other.
        sys.exit(app(standalone_mode=not as_json))
    except Stopped:
        _exit_with("interrupted", EXIT_INTERRUPTED, as_json)
    except DaskpipeError as error:
        _exit_with(str(error), error.exit_code, as_json)
    except OSError as error:
        if (cause := disk_error(error)) is None:
            _exit_internally(error, as_json)
        _exit_with(str(cause), cause.exit_code, as_json)
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's class for a wrong option
            _exit_with(error.format_message(), ConfigError.exit_code, as_json)
        _exit_internally(error, as_json)


def _raise_stopped(signum: int, frame: FrameType | None) -> None:
    raise Stopped


def _exit_internally(error: Exception, as_json: bool) -> NoReturn:
    """Print the traceback, and that the error is internal."""
    typer.echo(make_printable("".join(traceback.format_exception(error))), err=True)
    _exit_with(f"internal error: {type(error).__name__}: {error}", EXIT_INTERNAL, as_json)


def _exit_with(message: str, code: int, as_json: bool) -> NoReturn:
    """Print an error message, for machines as JSON, and exit with a code."""
    if as_json:
        typer.echo(json.dumps({"error": message, "exit_code": code}))
    else:
        from rich.console import Console
        from rich.text import Text

        console = Console(stderr=True)
        text = Text.assemble(("error: ", "" if console.no_color else "bold red"), make_printable(message))
        console.print(text, soft_wrap=True)
    sys.stdout.flush()
    sys.exit(code)


if __name__ == "__main__":
    main()
