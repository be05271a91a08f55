"""Show text without the secrets of its URIs.

A URI, and any text of a library, passes redact() before it reaches a log, an error message,
an HTTP response or a file.
"""

import re
from typing import Any

_HIDDEN = "…"
# One slash is enough: pathlib turns https://host into https:/host. A password may hold spaces.
_URI = re.compile(r"([A-Za-z][\w+.-]{0,30}:/+)((?:[^\s/@:]+:(?!\d*\W)[^/@\n]*@)?\S*)")
# Punctuation of the text around a URI.
_PUNCTUATION = "[](){}<>'\"`.,;:!"
# The shortest user information in front of a host, a path, a query and a fragment without an @:
# then a password with / ? # or @ is hidden whole, and the alias of <store>/iris@stable is kept.
_PARTS = re.compile(
    r"(?P<userinfo>.*?@)??"
    r"(?P<place>(?:\[[^]\s@]*\]|[^\s:/?#@]*)(?::\d*)?(?:/[^?#@]*)?(?:(?<=/)[\w.-]+@[\w.-]+)?)"
    r"(?P<query>\?[^#@]*)?"
    r"(?P<fragment>#[^@]*)?"
)
_PARAMETER = re.compile(r"([\w.-]+=(?=[^=&]))?[^?&]+")


def redact(text: str) -> str:
    """Return text with … for the user:password, query values and fragment of every URI in it.

    Text between a scheme and an @ counts as a password, except for the alias at the end of
    <store>/iris@stable. A URI that cannot be parsed is hidden except for its scheme.
    """
    return _URI.sub(_redact_uri, text) if ":/" in text else text


def redact_all(value: Any) -> Any:
    """Return a JSON value with every string redacted; other objects become redacted strings."""
    if isinstance(value, dict):
        return {key: redact_all(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_all(item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return redact(str(value))


def _redact_uri(uri: re.Match[str]) -> str:
    scheme, rest = uri.groups()
    body = rest.rstrip(_PUNCTUATION)
    parts = _PARTS.fullmatch(body)
    if parts is None:
        shown = _HIDDEN
    else:
        userinfo = f"{_HIDDEN}@" if parts["userinfo"] else ""
        query = _PARAMETER.sub(rf"\1{_HIDDEN}", parts["query"] or "")
        shown = f"{userinfo}{parts['place']}{query}{f'#{_HIDDEN}' if parts['fragment'] else ''}"
    return f"{scheme}{shown}{rest[len(body) :]}"
