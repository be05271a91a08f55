"""A server like the one in the release patterns of "Machine learning system design patterns".

Written from its description: a pydantic body with a default, a model with ZipMap that returns a
list of dictionaries, a `def` route, a session with default options, one log line per request, and
only the first row is predicted.
"""

import logging
import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before onnxruntime is imported

import numpy as np
import onnxruntime
from fastapi import FastAPI
from pydantic import BaseModel

logging.basicConfig(level=logging.INFO, format="[%(asctime)s] [%(levelname)s] %(message)s")
logger = logging.getLogger("book")


class Data(BaseModel):
    """A request."""

    data: list[list[float]] = [[5.1, 3.5, 1.4, 0.2]]


class Classifier:
    """The session and the names of its tensors."""

    def __init__(self, path: str) -> None:
        self.session = onnxruntime.InferenceSession(path)
        self.input_name = self.session.get_inputs()[0].name

    def predict(self, data: list[list[float]]) -> list[float]:
        """Return the probabilities of the first row."""
        outputs = self.session.run(None, {self.input_name: np.array(data).astype(np.float32)})
        probabilities = np.array(list(outputs[1][0].values()))
        logger.info("predict proba %s", probabilities)
        return [float(value) for value in probabilities]


classifier = Classifier(os.environ["ZIPMAP_MODEL"])
app = FastAPI()


@app.post("/predict")
def predict(data: Data) -> dict[str, list[float]]:
    """Return the probabilities of the first row."""
    return {"prediction": classifier.predict(data.data)}
