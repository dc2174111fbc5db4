"""`onnxfi completion SHELL`: the script by which a shell completes commands, options and files."""

from __future__ import annotations

import os

import click

from onnxfi.cli.options import verb

#: The variable by which a shell asks for completions.
VARIABLE = "_ONNXFI_COMPLETE"


_OPTIONS = (
    click.argument("shell", type=click.Choice(["bash", "zsh", "fish"])),
)  # fmt: skip


@verb("completion", "Print the completion script of a shell.", *_OPTIONS)
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the completion script of SHELL, to be read when the shell starts.

    \b
    bash: echo 'eval "$(onnxfi completion bash)"' >> ~/.bashrc
    zsh:  echo 'eval "$(onnxfi completion zsh)"' >> ~/.zshrc
    fish: mkdir -p ~/.config/fish/completions
          onnxfi completion fish > ~/.config/fish/completions/onnxfi.fish

    The line of zsh stands below the one that calls compinit; where there is none, put `autoload -Uz compinit && compinit` above.
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(context.find_root().command, {}, "onnxfi", VARIABLE).source())


def answered(group: click.Command) -> bool:
    """Answer a shell that asks for completions of the command line; return whether one did."""
    asked = os.environ.get(VARIABLE)
    if not asked:
        return False
    from click.shell_completion import shell_complete

    shell_complete(group, {}, "onnxfi", VARIABLE, asked)
    return True
