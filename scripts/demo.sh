#!/usr/bin/env bash
# The main job on real input: a shipped model, shipped labelled images, four bit error rates, one table.
source "$(dirname "$0")/venv.sh"
venv .venv ""
.venv/bin/python examples/accuracy_over_ber.py models/fashion_cnn.onnx models/fashion_test.npz
