"""mosec, as its documentation starts it: `python server.py --port 8000`.

One worker; requests are gathered into batches of MOST_ROWS, which its documentation recommends.
"""

import os
from typing import Any

import numpy as np
import onnxruntime
from mosec import Server, Worker

MOST_ROWS = int(os.environ.get("MOST_ROWS", "64"))


class Inference(Worker):
    """A session in a process of its own."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            os.environ["MODEL"], options, providers=["CPUExecutionProvider"]
        )
        self.input = self.session.get_inputs()[0].name

    def forward(self, data: Any) -> Any:
        """Answer a batch of requests of one row each, or one request where batches are of one."""
        if MOST_ROWS == 1:
            return self.forward_batch([data])[0]
        return self.forward_batch(data)

    def forward_batch(self, data: list[Any]) -> list[Any]:
        """Answer requests of one row each."""
        rows = np.array([request["data"][0] for request in data], dtype=np.float32)
        prediction = self.session.run(None, {self.input: rows})[0].tolist()
        return [{"prediction": [row]} for row in prediction]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Inference, num=1, max_batch_size=MOST_ROWS)
    server.run()
