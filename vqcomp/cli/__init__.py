"""The command line: each verb parses, calls one function, prints."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading

import click

from ..runtime.errors import VqcompError
from ..runtime.main import terminate
from ..training.memory import is_out_of_memory
from ..version import __version__
from . import archives, bench, seeing, tokens, training, world

EXAMPLES = """
\b
Examples:
  vqcomp sample-data samples/
  vqcomp compress samples/ samples.zip
  vqcomp decompress samples.zip -o restored/
  vqcomp evaluate samples.zip samples/

Exit codes: 0 done, 1 error, 2 wrong usage, 3 damaged archive, 4 done but for what --skip-bad left out, 130 interrupted.
"""


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXAMPLES)
@click.version_option(__version__, prog_name="vqcomp", message="%(prog)s %(version)s")
def cli() -> None:
    """Lossless compression of video tokens into self-contained zips."""


for module in (archives, bench, tokens, training, world, seeing):
    for command in module.COMMANDS:
        cli.add_command(command)


def main() -> None:
    """Run the command line and exit with its code."""
    # A name that the terminal's encoding lacks must not end a listing.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Asked to end, leave by an exception: temporary files are removed on the way out.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) != signal.SIG_IGN:  # ignored under nohup, and so it shall be
            signal.signal(number, terminate)
    sys.unraisablehook = _raise_again
    code = run(sys.argv[1:])
    # Nothing is left to tidy up: while Python ends, an interrupt has it end at once.
    if signal.getsignal(signal.SIGINT) == terminate:
        if sys.stdout:
            sys.stdout.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(code)


def _raise_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Send a signal again whose exception was raised where none gets out, such as in a callback of an import."""
    error = unraisable.exc_value
    if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128:
        number = error.code - 128
    elif isinstance(error, KeyboardInterrupt):
        number = int(signal.SIGINT)
    else:
        sys.__unraisablehook__(unraisable)
        return
    signal.signal(number, terminate)
    again = threading.Timer(0.01, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


def run(arguments: list[str]) -> int:
    """Run the command line; returns the exit code."""
    try:
        return cli.main(arguments, prog_name="vqcomp", standalone_mode=False, obj=arguments) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return 130
    except VqcompError as error:
        if "--json" in arguments:
            click.echo(json.dumps({"error": str(error)}))
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        click.echo("error: out of memory; try a smaller --batch-size", err=True)
        return 1
    except BrokenPipeError:
        # Whoever read our output has gone; Python must not complain when it flushes what is left.
        sys.stdout = None
        return 1
