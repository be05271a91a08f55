"""The book's server, written again from its description and with its habits.

"Machine learning system design patterns", release patterns: a pydantic body with a default, a
model with ZipMap whose answer is a list of dictionaries, a `def` route, the session as onnxruntime
makes it by default, a line of log a request, and the first row only.
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
    """The session, and what its answers mean."""

    def __init__(self, path: str) -> None:
        self.session = onnxruntime.InferenceSession(path)
        self.input_name = self.session.get_inputs()[0].name

    def predict(self, data: list[list[float]]) -> list[float]:
        """Return the probabilities of the first row."""
        answered = self.session.run(None, {self.input_name: np.array(data).astype(np.float32)})
        probabilities = np.array(list(answered[1][0].values()))
        logger.info("predict proba %s", probabilities)
        return [float(one) for one in probabilities]


classifier = Classifier(os.environ["ZIPMAP_MODEL"])
app = FastAPI()


@app.post("/predict")
def predict(data: Data) -> dict[str, list[float]]:
    """Return the probabilities of the first row."""
    return {"prediction": classifier.predict(data.data)}
