"""NEBULA's sample: faults in a Keras network of your own, read from an .h5 file, on your own images of 28x28 pixels.

    python own_images.py [MODEL.h5 FOLDER]

FOLDER holds a folder for each class, in the order of the network's outputs by name (0, 1, …), with image files; they
are read as grey-scale numbers from 0 to 1. Without arguments a small network is trained and 500 images are written.
"""

import sys
import tempfile
from pathlib import Path

import nets

import onnxfi
from onnxfi.converters import convert

PROBABILITY = 1e-4  # of each bit
PREPROCESS = "version: 1\ncolor: gray\nlayout: nhwc\n"


def main(network: Path, images: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        description = Path(scratch, "preprocess.yaml")
        description.write_text(PREPROCESS)
        converted = convert(network, Path(scratch, "network.onnx"))
        data = onnxfi.open_data(images, converted.inputs, preprocess=description)
        golden = onnxfi.evaluate(converted.out, data)
        print(f"golden accuracy {golden.metrics['top1']:.1%} on {golden.samples:,} images")
        drawn = onnxfi.sample(onnxfi.load(converted.out), ber=PROBABILITY, seed=1)
        faulty = onnxfi.inject(onnxfi.load(converted.out), drawn, Path(scratch, "faulty.onnx"))
        found = onnxfi.evaluate(faulty.out, data, golden=golden)
        print(f"{drawn.drawn} of {drawn.population_bits:,} bits flipped: accuracy {found.metrics['top1']:.1%}")


def made(folder: Path) -> tuple[Path, Path]:
    """Write a small network, and the images that its training has not seen, as files."""
    from PIL import Image

    nets.keras_cnn().save(folder / "network.h5")
    _, _, images, labels = nets.images()
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / "images" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * image[0]).round().astype("uint8")).save(place / f"{number}.png")
    return folder / "network.h5", folder / "images"


if __name__ == "__main__":
    if len(sys.argv) > 2:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(*made(Path(folder)))
