"""The baseline with a model: an ASGI callable that decodes, runs the model, and encodes.

The shortest fast server: no error responses, no metrics, no request ids. The model runs once per
request, on the event loop.
"""

import os
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before onnxruntime is imported

import msgspec
import numpy as np
import onnxruntime
import uvicorn


class Body(msgspec.Struct):
    """A request."""

    data: list[list[float]]


options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(
    os.environ["MODEL"], options, providers=["CPUExecutionProvider"]
)
INPUT, OUTPUTS = session.get_inputs()[0].name, [session.get_outputs()[0].name]
decode = msgspec.json.Decoder(Body).decode
encode = msgspec.json.encode


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer /predict; anything else is a health check."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    if scope["path"] == "/predict":
        rows = np.array(decode(body).data, dtype=np.float32)
        answer = encode({"prediction": session.run(OUTPUTS, {INPUT: rows})[0].tolist()})
    else:
        answer = b'{"live":true}'
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


if __name__ == "__main__":
    uvicorn.run(
        app,
        port=int(os.environ["PORT"]),
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="warning",
    )
