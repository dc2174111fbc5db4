"""PyTorchFI's way of working: a module, one weight or one neuron at a place of one's choice or at random.

    python pytorchfi.py

What `declare_weight_fault_injection` and `declare_neuron_fault_injection` say by numbers of layers and dimensions is a
site here: the name of a tensor, an index, a bit.
"""

import tempfile
from pathlib import Path

import nets

import onnxfi
from onnxfi.converters import convert


def main(folder: Path) -> None:
    converted = convert(nets.torch_cnn(), folder / "cnn.onnx", input_shape="N,1,28,28", data=nets.test_images())
    model = onnxfi.load(converted.out)
    data = onnxfi.open_data(nets.test_images(), converted.inputs)
    golden = onnxfi.evaluate(converted.out, data)
    print(f"golden: accuracy {golden.metrics['top1']:.1%}")

    def show(what: str, file: bytes | Path | None) -> None:
        assert file is not None
        faulty = onnxfi.evaluate(file, data, golden=golden).metrics
        print(f"{what}: accuracy {faulty['top1']:.1%}, {faulty['top1_changed']:.1%} of the answers changed")

    # declare_weight_fault_injection(layer_num=[1], k=[15], dim1=[4], dim2=[2], dim3=[1], value=[10000.0])
    drawn = onnxfi.sample(model, sites=["conv2.weight[15,4,2,1]"], fault="set:value=10000")
    show(f"{drawn.faults[0].site} set to 10000", onnxfi.inject(model, drawn).data)

    # random_weight_inj(pfi, corrupt_layer=2): a random weight of a layer; here of a random bit
    drawn = onnxfi.sample(model, count=1, selector=onnxfi.Selector(include=("=fc1",), role=("weight",)), seed=4)
    show(f"{drawn.faults[0].site} flipped", onnxfi.inject(model, drawn).data)

    # multi_weight_inj(pfi, sdc_p=1e-2, function=_zero_rand_weight)
    drawn = onnxfi.sample(model, ber=1e-2, fault="zero", seed=1)
    show(f"{drawn.drawn} weights set to zero", onnxfi.inject(model, drawn).data)

    # declare_neuron_fault_injection(batch=[3], layer_num=[0], dim1=[5], dim2=[6], dim3=[6], value=[1e4])
    neurons = onnxfi.inject_activations(model, sites=["relu[5,6,6]@sample=3"], fault="set:value=10000")
    show("neuron relu[5,6,6] of sample 3 set to 10000", neurons.data)

    # random_inj_per_layer: a random neuron of every layer, in all samples
    neurons = onnxfi.inject_activations(model, count=1, per_tensor=True, fault="set:value=1000", seed=3)
    show("one neuron of each layer set to 1000", neurons.data)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch))
