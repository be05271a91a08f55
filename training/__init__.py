"""Training: from data or any ONNX file to an artifact in a model store."""

import artifact  # noqa: F401 - sets ORT_DISABLE_TELEMETRY before onnxruntime is imported
