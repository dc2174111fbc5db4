"""Train models/char_gpt.onnx, a GPT of characters, on the texts that Python's own help shows, and write its test data.

    pip install torch onnx onnxruntime tokenizers
    python scripts/train_char_gpt.py

The text is that of `pydoc_data.topics` of Python 3.11 (the language reference as `help()` shows it, PSF licence). A
tenth of it, in whole topics, is not trained on: it becomes char_gpt_test.txt, from which char_gpt_test.npz (windows of
256 tokens) and char_gpt_items.jsonl (multiple-choice items) are cut. The seed is fixed, one thread does the work.
"""

import argparse
import json
import math
import pydoc_data.topics
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from char_gpt_graph import Shape, build
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
SEED = 20
BATCH, STEPS, RATE = 8, 1400, 3e-3
WINDOW = 256
ITEMS, CONTEXT, CONTINUATION, CHOICES = 200, 96, 32, 4
#: Windows in char_gpt_test.npz.
WINDOWS = 64
UNKNOWN = "\ufffd"


def corpus() -> tuple[str, str]:
    """Return the text to train on and the held-out one, in ASCII."""
    topics = [f"{name}\n\n{text.strip()}\n\n\n" for name, text in sorted(pydoc_data.topics.topics.items())]
    ascii_ = {"–": "-", "—": "--", "‘": "'", "’": "'", "“": '"', "”": '"', "…": "..."}
    order = np.random.Generator(np.random.Philox(SEED)).permutation(len(topics))
    parts = [topics[k] for k in order]
    whole = ["".join(ascii_.get(c, unicodedata.normalize("NFKD", c)) for c in part) for part in parts]
    whole = ["".join(c for c in part if c in "\n" or " " <= c <= "~") for part in whole]
    total, learned, held = sum(map(len, whole)), list[str](), list[str]()
    for part in whole:
        held_out = sum(map(len, held)) < total // 10 and len(part) < total // 30
        (held if held_out else learned).append(part)
    return "".join(learned), "".join(held)


def tokenizer_file(characters: list[str]) -> dict[str, object]:
    """Return tokenizer.json of characters: a word-level vocabulary over a split into single characters."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": False},
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "WordLevel",
            "vocab": {c: k for k, c in enumerate(characters)},
            "unk_token": UNKNOWN,
        },
    }


class Block(nn.Module):
    """A pre-normalised block; attention has four linear layers, so that each is a weight of its own."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, self.heads = shape.width, shape.heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.ModuleDict({f"{name}_proj": nn.Linear(width, width) for name in "qkvo"})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        query, key, value = (
            self.attention[f"{name}_proj"](h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for name in "qkv"
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attention["o_proj"](mixed.transpose(1, 2).flatten(2))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class CharGpt(nn.Module):
    """The model while it is trained: whole windows, no cache."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.embed_positions = nn.Embedding(shape.positions, shape.width)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.05)
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                nn.init.zeros_(module.bias)
        for layer in self.layers:  # what joins the residual stream, as many times as there are halves of layers
            for last in (layer.attention["o_proj"], layer.mlp["fc2"]):
                last.weight.data *= (2 * shape.layers) ** -0.5

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed_tokens(tokens) + self.embed_positions.weight[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.norm(x) @ self.embed_tokens.weight.T


def train(model: CharGpt, tokens: Tensor, steps: int) -> None:
    """Train on random windows: AdamW, warm-up, then a cosine."""
    decayed = [p for p in model.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98))
    begun = time.monotonic()
    for step in range(steps):
        rate = RATE * min(1.0, (step + 1) / 60) * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * step / steps)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        starts = torch.randint(len(tokens) - WINDOW, (BATCH, 1))
        rows = tokens[starts + torch.arange(WINDOW + 1)]
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:5d}  loss {loss.item():.3f}  {time.monotonic() - begun:.0f} s", flush=True)


def weights_of(model: CharGpt) -> dict[str, np.ndarray]:
    """Return the weights by name, those of linear layers as [in, out]."""
    found = {}
    for name, value in model.state_dict().items():
        turned = value.ndim == 2 and not name.startswith("embed_")
        found[name] = (value.T if turned else value).contiguous().numpy()
    return found


def empty_cache(shape: Shape, rows: int) -> dict[str, np.ndarray]:
    """Return a cache of length 0."""
    none = np.zeros((rows, shape.heads, 0, shape.head_width), np.float32)
    return {f"past_key_values.{k}.{name}": none for k in range(shape.layers) for name in ("key", "value")}


def feeds(tokens: np.ndarray, shape: Shape) -> dict[str, np.ndarray]:
    """Return the inputs of the exported model for whole windows."""
    places = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape).copy()
    mask = np.ones(tokens.shape, np.int64)
    return {"input_ids": tokens, "attention_mask": mask, "position_ids": places, **empty_cache(shape, len(tokens))}


def items(text: str) -> list[dict[str, object]]:
    """Return multiple-choice items: which of four continuations of the same text follows a context."""
    draw = np.random.Generator(np.random.Philox(SEED + 1))
    found = []
    for _ in range(ITEMS):
        starts = draw.integers(0, len(text) - CONTEXT - CONTINUATION, CHOICES)
        right = int(draw.integers(CHOICES))
        choices = [text[s + CONTEXT : s + CONTEXT + CONTINUATION] for s in starts]
        found.append({"context": text[starts[right] : starts[right] + CONTEXT], "choices": choices, "answer": right})
    return found


def write_test_data(held: str, code: dict[str, int]) -> np.ndarray:
    """Write the held-out text, its windows and the items."""
    (MODELS / "char_gpt_test.txt").write_text(held, encoding="utf-8")
    ids = np.array([code[c] for c in held], np.int64)
    windows = ids[: WINDOWS * WINDOW].reshape(WINDOWS, WINDOW)
    np.savez_compressed(MODELS / "char_gpt_test.npz", input_ids=windows)
    lines = [json.dumps(item) + "\n" for item in items(held)]
    (MODELS / "char_gpt_items.jsonl").write_text("".join(lines), encoding="utf-8")
    return windows


def main() -> int:
    """Train, export, compare with torch, and write the test data."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=MODELS / "char_gpt.onnx")
    asked = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    learned, held = corpus()
    characters = [UNKNOWN, *sorted(set(learned + held))]
    code = {c: k for k, c in enumerate(characters)}
    shape = Shape(len(characters))
    (MODELS / "char_gpt_tokenizer.json").write_text(json.dumps(tokenizer_file(characters), indent=1) + "\n")
    windows = write_test_data(held, code)
    model = CharGpt(shape)
    print(f"{len(learned):,} characters, {len(held):,} held out, vocabulary {len(characters)}, "
          f"{sum(p.numel() for p in model.parameters()):,} parameters")  # fmt: skip
    train(model, torch.tensor([code[c] for c in learned]), asked.steps)
    onnx.save(build(weights_of(model), shape), asked.out)
    session = ort.InferenceSession(asked.out, providers=["CPUExecutionProvider"])
    logits = np.concatenate([session.run(["logits"], feeds(w[None], shape))[0] for w in windows])
    with torch.no_grad():
        expected = model(torch.tensor(windows)).numpy()
        loss = F.cross_entropy(torch.tensor(logits[:, :-1]).flatten(0, 1), torch.tensor(windows[:, 1:]).flatten())
    print(f"{asked.out}: {asked.out.stat().st_size:,} bytes; against torch {np.abs(logits - expected).max():.2g}; "
          f"held out: {loss.item():.4f} nats a character, perplexity {math.exp(loss.item()):.4f}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
