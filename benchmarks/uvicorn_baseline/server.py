"""The baseline without a model: uvicorn reads the body and returns fixed bytes."""

import os
from typing import Any

import uvicorn

ANSWER = os.environ.get("ANSWER", "{}").encode()
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(ANSWER))]


async def app(_: Any, receive: Any, send: Any) -> None:
    """Answer any request with the same bytes."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": ANSWER})


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
