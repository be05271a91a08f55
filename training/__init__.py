"""Fit a model, export it to ONNX, write its contract, publish both in a model store.

Run by `make train` and `make contract`. Takes the contract's schema and checks from
serving; nothing in serving takes anything from here.
"""

import serving  # noqa: F401 - first: it turns off onnxruntime's telemetry
