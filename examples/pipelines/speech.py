r"""Hearing speech: a model with a state, which is fed chunk after chunk of a recording (silero-vad).

    apt-get install alsa-utils
    python scripts/fetch_models.py --only silero_vad
    onnxfi run examples.pipelines.speech:pipeline --stage vad \
        --data examples.pipelines.speech:recordings --ber 1e-6

Run it in the folder of the repository. The recordings are those that Debian's alsa-utils installs: eight places of
loudspeakers, spoken, and noise.
"""

import os
import wave
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly

from onnxfi import Pipeline, PipelineLoop, Stage

MODELS = Path(os.environ.get("ONNXFI_MODELS", Path(__file__).parents[2] / "fetched"))
SOUNDS = Path(os.environ.get("ONNXFI_SOUNDS", "/usr/share/sounds/alsa"))
RATE, SAMPLES = 16_000, 24_576
#: Samples of a chunk, and of the one before that the model hears again.
CHUNK, CONTEXT = 512, 64
LOUDNESS = (1.0, 0.3, 0.1)
Arrays = Mapping[str, NDArray[np.generic]]


def recordings() -> Arrays:
    """Return each recording as loud as it is and quieter, and hums as loud; the label is 1 where there is speech."""
    found, labels = [], []
    for file in sorted(SOUNDS.glob("*.wav")):
        with wave.open(str(file)) as sound:
            heard = np.frombuffer(sound.readframes(sound.getnframes()), np.int16) / 32768
            heard = resample_poly(heard, RATE, sound.getframerate())[:SAMPLES]
        found += [loud * np.pad(heard, (0, SAMPLES - len(heard))) for loud in LOUDNESS]
        labels += [int(file.stem != "Noise")] * len(LOUDNESS)
    time = np.arange(SAMPLES) / RATE
    for pitch in (50, 120, 400, 1000):
        found += [loud / 4 * np.sin(2 * np.pi * pitch * time) for loud in LOUDNESS]
        labels += [0] * len(LOUDNESS)
    return {"audio": np.array(found, np.float32), "labels": np.array(labels)}


def windows(audio: NDArray[np.float32]) -> Arrays:
    """Return the chunks of a recording, each behind the end of the one before."""
    before = np.pad(audio, ((0, 0), (CONTEXT, 0)))
    starts = range(0, audio.shape[1] - CHUNK + 1, CHUNK)
    return {"chunks": np.stack([before[:, start : start + CONTEXT + CHUNK] for start in starts], axis=1)}


def loudest(shares: NDArray[np.float32]) -> Arrays:
    """Return the probabilities of no speech and of speech, by the chunk that is most like it."""
    most = shares.max(axis=(1, 2))
    return {"probabilities": np.stack([1 - most, most], axis=1)}


def pipeline() -> Pipeline:
    """Return the pipeline."""
    loop = PipelineLoop(axis=1, over=["input"], carry={"state": "stateN"})
    fed = {"input": "windows.chunks", "state": 0, "sr": RATE}
    return Pipeline(
        [
            Stage("windows", function=windows, inputs={"audio": "data.audio"}),
            Stage("vad", model=str(MODELS / "silero_vad.onnx"), inputs=fed, loop=loop),
            Stage("loudest", function=loudest, inputs={"shares": "vad.output"}),
        ],
        data={"audio": f"float32 [N,{SAMPLES}]"},
    )
