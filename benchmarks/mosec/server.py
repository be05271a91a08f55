"""A mosec server, started as in its documentation: `python server.py --port 8000`.

One worker; requests are batched, up to MAX_ROWS per batch, which its documentation recommends.
"""

import os
from typing import Any

import numpy as np
import onnxruntime
from mosec import Server, Worker

MAX_ROWS = int(os.environ.get("MAX_ROWS", "64"))


class Inference(Worker):
    """A session in a worker process."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            os.environ["MODEL"], options, providers=["CPUExecutionProvider"]
        )
        self.input = self.session.get_inputs()[0].name

    def forward(self, data: Any) -> Any:
        """Predict for a batch of one-row requests, or for one request if MAX_ROWS is 1."""
        if MAX_ROWS == 1:
            return self.forward_batch([data])[0]
        return self.forward_batch(data)

    def forward_batch(self, data: list[Any]) -> list[Any]:
        """Predict for requests with one row each."""
        rows = np.array([request["data"][0] for request in data], dtype=np.float32)
        prediction = self.session.run(None, {self.input: rows})[0].tolist()
        return [{"prediction": [row]} for row in prediction]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Inference, num=1, max_batch_size=MAX_ROWS)
    server.run()
