"""`onnxfi demo`: a small campaign on a shipped network, with nothing to prepare."""

from __future__ import annotations

from importlib.resources import as_file, files

import click

from onnxfi.cli.options import verb
from onnxfi.cli.terminal import print_line

#: The campaign of the demonstration, as flags.
_FLAGS = {"--ber": "1e-6:1e-3", "--repeat": "20", "--samples": "200"}


@verb("demo", "Run a small campaign on a shipped network.")
@click.pass_context
def command(context: click.Context) -> None:
    """Run a small campaign on the CNN that comes with onnxfi, and print its report and the next commands.

    The network classifies articles of clothing (Fashion-MNIST). Four bit error rates, 20 trials each, 200 images: some
    seconds.
    """
    from onnxfi.graph.write.scratch_folder import scratch_folder

    shipped = files("onnxfi.models")
    with as_file(shipped / "fashion_cnn.onnx") as model, as_file(shipped / "fashion_test.npz") as data:
        words = [word for flag in _FLAGS.items() for word in flag]
        print_line(f"onnxfi run {model} --data {data} {' '.join(words)}")
        with scratch_folder() as folder:
            arguments = [str(model), "--data", str(data), *words, "-o", str(folder / "demo.db"), "--workers", "0"]
            group = context.find_root().command
            assert isinstance(group, click.Group)
            run = group.get_command(context, "run")
            assert run is not None
            with run.make_context("run", arguments, parent=context) as inner:
                run.invoke(inner)
        print_line("")
        print_line("Next: what breaks it, and where; and one faulty model")
        print_line(f"  onnxfi assess {model} --data {data} --time 1m")
        print_line(f"  onnxfi inject {model} --ber 1e-5 --data {data} -o faulty.onnx")
