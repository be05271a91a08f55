"""The server, shared by both release modes. Never imports scikit-learn."""

import os

import artifact  # noqa: F401 - sets ORT_DISABLE_TELEMETRY before onnxruntime is imported

# pydantic looks for plugins in each installed package, which takes as long as opening a small
# model. Set it to nothing to use plugins.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "true")
