"""The command line: each verb parses, calls one function, and prints. Verbs are loaded when they are called."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import Any

import click

#: The verbs, one module each.
VERBS = ("inspect", "inject", "eval")


class _Lazy(click.Group):
    """A group whose verbs are imported when they are needed, so that `--help` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f"onnxfi.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            from onnxfi.errors import closest

            raise click.UsageError(f"no command {args[0]!r}{closest(args[0], VERBS)}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="onnxfi")
def group() -> None:
    """What happens to a deployed neural network's answers when bits go wrong?

    onnxfi works on the ONNX file, whatever framework made it: it flips bits in stored weights, writes the faulty
    model, and runs both with ONNX Runtime.

    \b
    onnxfi inspect model.onnx
    onnxfi inject model.onnx --ber 1e-6
    onnxfi eval model.onnx --data images.npz
    """


def main() -> None:
    """Run the command line: exit 0 when done, 2 for bad input, with one line that says what to do."""
    from onnxfi.errors import OnnxfiError

    try:
        _logging()
        group.main(standalone_mode=False)
    except OnnxfiError as error:
        _fail(str(error))
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.UsageError as error:
        where = f"; see {error.ctx.command_path} --help" if error.ctx else ""
        _fail(error.format_message().rstrip(".") + where)
    except click.ClickException as error:
        _fail(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        click.echo("onnxfi: stopped; nothing was written", err=True)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _logging() -> None:
    level = os.environ.get("ONNXFI_LOG_LEVEL", "WARNING").upper()
    if level not in logging.getLevelNamesMapping():
        raise click.ClickException(f"ONNXFI_LOG_LEVEL={level!r}; use DEBUG, INFO, WARNING or ERROR")
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("onnxfi").setLevel(level)


def _fail(message: str) -> None:
    from onnxfi.cli.show import safe

    click.echo(f"onnxfi: error: {safe(message)}", err=True)
    sys.exit(2)
