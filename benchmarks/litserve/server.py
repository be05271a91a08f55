"""LitServe, as its documentation starts it: `python server.py`. One worker."""

import os
from typing import Any

import litserve
import numpy as np
import onnxruntime


class Inference(litserve.LitAPI):
    """A session in a process of its own."""

    def setup(self, device: str) -> None:
        """Open the session."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            os.environ["MODEL"], options, providers=["CPUExecutionProvider"]
        )
        self.input = self.session.get_inputs()[0].name

    def decode_request(self, request: dict[str, Any]) -> np.ndarray:
        """Return the rows of a body."""
        return np.array(request["data"], dtype=np.float32)

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Run the model."""
        return self.session.run(None, {self.input: rows})[0]

    def encode_response(self, prediction: np.ndarray) -> dict[str, Any]:
        """Return the answer."""
        return {"prediction": prediction.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Inference(), accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
    )
