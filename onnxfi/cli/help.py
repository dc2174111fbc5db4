"""`onnxfi help [COMMAND]`: the same text as `onnxfi COMMAND --help`."""

from __future__ import annotations

import click

from onnxfi.cli.options import verb

_OPTIONS = (
    click.argument("command_name", metavar="[COMMAND]", required=False),
)  # fmt: skip


@verb("help", "Print the help of a command.", *_OPTIONS)
@click.pass_context
def command(context: click.Context, command_name: str | None) -> None:
    """Print the help of COMMAND, or the list of all commands."""
    top = context.find_root()
    group = top.command
    assert isinstance(group, click.Group)
    if command_name is None:
        click.echo(group.get_help(top))
        return
    name, found, _ = group.resolve_command(top, [command_name])
    assert found is not None
    with click.Context(found, parent=top, info_name=name) as inner:
        click.echo(found.get_help(inner))
