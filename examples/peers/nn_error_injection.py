"""NN-Error-Injection's way of working: a checkpoint of PyTorch, a filter of layer names, error rates, repetitions, CSV.

    python nn_error_injection.py [FOLDER]

Writes cnn.csv (the average for each error rate) and detail-cnn.csv (each repetition) into the folder.
"""

import csv
import sys
import tempfile
from pathlib import Path

import nets
import torch

import onnxfi
from onnxfi.converters import torch as from_torch

# The settings at the top of weight-error-injection.py
filter_name_list = ("conv", "fc2.weight")
num_exp = 3
min_error, max_error = 5, 2  # from 10^-5 to 10^-3: there as here the last one is not reached


def main(folder: Path) -> None:
    torch.save(nets.torch_cnn().state_dict(), folder / "cnn.pt")
    nets.save_test_images(folder / "test.npz")

    converted = from_torch.convert(
        folder / "cnn.pt", folder / "cnn.onnx", factory="nets:untrained", data=folder / "test.npz"
    )
    names = [target.id for target in onnxfi.load(converted.out).targets if not target.structural]
    print(f"parameters: {', '.join(names)}")  # layer-name-read.py
    campaign = onnxfi.Campaign(
        str(converted.out),
        str(folder / "test.npz"),
        include=filter_name_list,
        ber=tuple(10.0**-k for k in range(min_error, max_error, -1)),
        repeat=num_exp,
        seed=1,
    )
    for path in onnxfi.run(campaign, store=folder / "cnn.db").csv(folder, by_model=True):
        print(f"wrote {path.name}")
    print("error rate    top-1    top-5")
    with (folder / "cnn.csv").open() as table:
        for row in csv.DictReader(table):
            print(f"{float(row['ber']):>10g} {float(row['top1']):>8.2%} {float(row['top5']):>8.2%}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(Path(scratch))
