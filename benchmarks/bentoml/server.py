"""A BentoML service, started as its documentation says: `bentoml serve server:Inference`."""

import os

import bentoml
import numpy as np
import onnxruntime


@bentoml.service(workers=1)
class Inference:
    """A session in a worker."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            os.environ["MODEL"], options, providers=["CPUExecutionProvider"]
        )
        self.input = self.session.get_inputs()[0].name

    @bentoml.api
    def predict(self, data: list[list[float]]) -> dict[str, list[list[float]]]:
        """Return a row for each row."""
        rows = np.array(data, dtype=np.float32)
        return {"prediction": self.session.run(None, {self.input: rows})[0].tolist()}
