"""Exceptions that end a request or the start of a server, with a message for the reader.

A client reads the field and the rule in it, never a path or a class name.
"""


class RequestError(Exception):
    """A request that is answered with `{"error": message}`.

    The message names the field, the expected value, and the actual value.
    """

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        # The HTTP status: 4xx if the client can fix the request.
        self.status = status
        self.message = message
        # Headers that the response has in addition.
        self.headers = headers or {}


class StartupError(Exception):
    """A setting or a port that an operator can fix: printed without a traceback before exiting."""
