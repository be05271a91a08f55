"""Artifacts and model stores: the code that training, serving, and release share."""

import os

# onnxruntime sends telemetry by default (a thread, a DNS lookup, files under $HOME). It reads this
# variable once, at its first import, so every process imports this package before onnxruntime.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
