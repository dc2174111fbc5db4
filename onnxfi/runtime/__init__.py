"""Running a model: engines, data, quantisation, injection and partial execution. Only here is a runtime imported.

- `engine/`: the engine protocol and ONNX Runtime
- `data/`: samples and labels a model is fed
- `quantize/`: post-training quantisation
- `inject/`: the verbs inject, sample, replay, undo, instrument
- `partial/`: a trial executed from golden values instead of from the inputs
- `generation/`: decoders with a KV cache, token by token
- `proofs/`: bounds of faulty scores that prove a class without a run
- `pipeline/`: several models, and host code between them
"""
