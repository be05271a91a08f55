"""A FastAPI route, carefully written: `async def`, a typed body, bytes as the response."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before onnxruntime is imported

import msgspec
import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, Response
from pydantic import BaseModel


class Body(BaseModel):
    """A request."""

    data: list[list[float]]


options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(
    os.environ["MODEL"], options, providers=["CPUExecutionProvider"]
)
INPUT, OUTPUTS = session.get_inputs()[0].name, [session.get_outputs()[0].name]
app = FastAPI()


@app.post("/predict")
async def predict(body: Body) -> Response:
    """Return a row for each row."""
    rows = np.array(body.data, dtype=np.float32)
    (prediction,) = session.run(OUTPUTS, {INPUT: rows})
    answer = msgspec.json.encode({"prediction": prediction.tolist()})
    return Response(answer, media_type="application/json")


if __name__ == "__main__":
    uvicorn.run(
        app,
        port=int(os.environ["PORT"]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
