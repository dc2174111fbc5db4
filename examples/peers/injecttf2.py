"""InjectTF2's way of working: a Keras model in an .h5 file, a layer, a random or a given bit, a probability per sample.

    python injecttf2.py

Runs the campaign of injecttf2.yaml as it stands, with a given bit, and with a smaller probability. In each trial one
element of the layer's output is faulty in each sample with that probability.
"""

import contextlib
import tempfile
from dataclasses import replace
from pathlib import Path

import nets

import onnxfi
from onnxfi.converters import convert

TWIN = Path(__file__).with_name("injecttf2.yaml").resolve()


def main() -> None:
    nets.keras_cnn().save("fashion.h5")  # mnist.py
    nets.save_test_images(Path("test.npz"), channels_last=True)
    convert("fashion.h5", "fashion.onnx", data="test.npz")

    random_bit = onnxfi.load_spec(TWIN)
    for number, (what, campaign) in enumerate(
        {
            "a random bit of dense_1 in each sample": random_bit,
            "bit 30 of dense_1 in each sample": replace(random_bit, bits="30"),
            "bit 30 of dense_1 in a tenth of the samples": replace(random_bit, bits="30", per_sample=(0.1,)),
        }.items()
    ):
        store = f"injecttf2_{number}.db"
        found = onnxfi.run(campaign, store=store)
        faulty = found.everything.rate("top1")
        assert faulty is not None
        print(f"{what}: accuracy {found.golden['metrics']['top1']:.1%} without faults, {faulty.estimate:.1%} with them")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        main()
