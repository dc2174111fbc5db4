"""Feed an armed file from plain onnxruntime: no onnxfi is needed where it runs.

onnxfi instrument models/fashion_cnn.onnx -o armed.onnx && python examples/armed_file.py armed.onnx
"""

import json
import sys

import numpy as np
import onnxruntime as ort


def main(armed_file: str) -> None:
    ort.set_default_logger_severity(3)  # it warns that the armed inputs have defaults, which is their purpose
    session = ort.InferenceSession(armed_file, providers=["CPUExecutionProvider"])
    sites = json.loads(session.get_modelmeta().custom_metadata_map["onnxfi.sites"])
    name = session.get_inputs()[0].name
    image = np.random.default_rng(0).random((1, 1, 28, 28), dtype=np.float32)
    golden = session.run(None, {name: image})[0]
    for site in sites:
        fault = {"site": [site["site"]], "element": [[0]], "keep": [[-1]], "flip": [[1 << 30]]}  # bit 30 of element 0
        fed = {f"onnxfi.{column}": np.array(values, np.int64) for column, values in fault.items()}
        faulty = session.run(None, {name: image} | fed)[0]
        print(
            f"{site['tensor']:>10}: class {golden.argmax()} -> {faulty.argmax()}, "
            f"largest change {abs(faulty - golden).max():.3g}"
        )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("name the armed file: python examples/armed_file.py armed.onnx")
    main(sys.argv[1])
