"""Artifacts: the common ground of training, serving, and release; imports none of them."""

import os

# onnxruntime sends telemetry by default (a thread, a DNS lookup, files under $HOME). It reads
# this variable once, when it is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
