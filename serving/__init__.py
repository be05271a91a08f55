"""The server, shared by both release modes. Never imports scikit-learn."""

import artifact  # noqa: F401 - sets ORT_DISABLE_TELEMETRY before onnxruntime is imported
