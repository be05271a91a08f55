"""What a request can be refused with.

Raised on the way from bytes to the model, answered as `{"error": …}` by app.py and
predict.py. A client is told the field and the rule, never a path or a class name.
"""


class RequestError(Exception):
    """A client's mistake: `status` is 4xx, `message` names field, expectation and what came."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers or {}


class StartupError(Exception):
    """A setting or a port that an operator can fix: printed without a traceback before exiting."""
