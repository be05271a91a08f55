"""A custom predictor of KServe's SDK, started as its documentation says: `python server.py`."""

import os

import onnxruntime
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class Inference(Model):
    """A session."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.load()

    def load(self) -> bool:
        """Open the session."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            os.environ["MODEL"], options, providers=["CPUExecutionProvider"]
        )
        self.input = self.session.get_inputs()[0].name
        self.ready = True
        return self.ready

    async def predict(
        self, payload: InferRequest, headers: dict[str, str] | None = None
    ) -> InferResponse:
        """Answer one request."""
        rows = payload.inputs[0].as_numpy()
        (prediction,) = self.session.run(None, {self.input: rows})
        output = InferOutput("probabilities", list(prediction.shape), "FP32")
        output.set_data_from_numpy(prediction, binary_data=False)
        return InferResponse(payload.id, self.name, [output])


if __name__ == "__main__":
    ModelServer(http_port=int(os.environ["PORT"]), enable_grpc=False, workers=1).start(
        [Inference("iris")]
    )
