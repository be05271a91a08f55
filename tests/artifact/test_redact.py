"""Redaction: no secret of a URI is left in any text, and nothing else is changed."""

from pathlib import Path

import pytest

from artifact.redact import redact, redact_all

SECRETS = ("hunter", "ter2", "AKIA", "someone")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://someone:hunter2@cdn/models", "https://…@cdn/models"),
        ("https://someone@cdn/models", "https://…@cdn/models"),
        ("https://:hunter2@cdn/models", "https://…@cdn/models"),
        ("https://someone:hunter2@[::1]:8443/models/iris/1", "https://…@[::1]:8443/models/iris/1"),
        ("https://someone:hunter2@cdn", "https://…@cdn"),
        ("HTTPS://someone:hunter2@CDN/models", "HTTPS://…@CDN/models"),
        ("s3://AKIA123:hun/ter2+x@bucket/models/iris/1", "s3://…@bucket/models/iris/1"),
        ("az://someone:hunter2@container/models", "az://…@container/models"),
        ("file://someone:hunter2@host/models", "file://…@host/models"),
        ("ftp://someone:hunter2@host/models", "ftp://…@host/models"),
        # The alias stays, the password does not.
        ("https://someone:hunter2@cdn/models/iris@stable", "https://…@cdn/models/iris@stable"),
        ("https://someone:hun%40ter2%2F@cdn/iris@stable", "https://…@cdn/iris@stable"),
        ("https://someone:hun@ter2@cdn/models/iris@stable", "https://…@cdn/models/iris@stable"),
        ("https://someone:hun/ter2@cdn/models/iris@stable", "https://…@cdn/models/iris@stable"),
        ("https://someone:12/hunter2@cdn/models/iris@stable", "https://…@cdn/models/iris@stable"),
        ("https://someone:hun#ter2@cdn/models/iris@stable", "https://…@cdn/models/iris@stable"),
        ("https://someone:hun?ter2@cdn/models/iris@stable", "https://…@cdn/models/iris@stable"),
        ("https://someone:hun:ter2@cdn/models/iris@stable", "https://…@cdn/models/iris@stable"),
        ("https://someone:h@u/n#t?e:hunter2@cdn/iris@stable", "https://…@cdn/iris@stable"),
        ("https://someone:hun ter2@cdn/models/iris/1 and", "https://…@cdn/models/iris/1 and"),
        # pathlib removes a slash.
        (str(Path("https://someone:hunter2@cdn/models")), "https:/…@cdn/models"),
        # No host at all.
        ("https://someone:hunter2", "https://…"),
        ("https://someone:hunter2/models/iris/1", "https://…"),
        # Query strings and fragments.
        (
            "https://b/x?X-Amz-Signature=hunter2&X-Amz-Credential=AKIA%2F1",
            "https://b/x?X-Amz-Signature=…&X-Amz-Credential=…",
        ),
        ("az://container/models?sv=2020&sig=hunter2%3D%3D", "az://container/models?sv=…&sig=…"),
        ("https://cdn/models/iris@stable?sig=hunter2", "https://cdn/models/iris@stable?sig=…"),
        ("https://someone:x@cdn?token=hunter2#hunter2", "https://…@cdn?token=…#…"),
        ("https://cdn/x?aHVudGVyhunter==", "https://cdn/x?…"),
        # URIs inside the text of a library.
        (
            "Error performing GET http://someone:hunter2@127.0.0.1:1/m/a?sig=hunter2 in 1.2ms",
            "Error performing GET http://…@127.0.0.1:1/m/a?sig=… in 1.2ms",
        ),
        ('url: "https://someone:hunter2@cdn/x?sig=hunter2",', 'url: "https://…@cdn/x?sig=…",'),
        ("WORKERS, got 'https://someone:hunter2@cdn'", "WORKERS, got 'https://…@cdn'"),
        (
            "https://someone:hunter2@a/x: s3://AKIA:hunter2@b: denied",
            "https://…@a/x: s3://…@b: denied",
        ),
        ("(see http://someone:hunter2@a/x).\nhttp://b/x?k=hunter2", "(see http://…@a/x).\nhttp://b/x?k=…"),
        ("x=https%3A//h https%3Ahttps://someone:hunter2@a", "x=https%3A//h https%3Ahttps://…@a"),
    ],
)  # fmt: skip
def test_secrets_are_hidden_and_the_rest_is_shown(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert [secret for secret in SECRETS if secret in redact(text)] == []
    # Text passes several places that redact.
    assert redact(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/models/iris@stable",
        "models/iris@stable",
        "s3://bucket/models/iris@stable",
        "https://cdn/models/iris@stable",
        "https://cdn:8443/models/iris@stable: not found",
        "https://[::1]:8443/models/iris@stable",
        "got 'https://cdn/models/iris@stable', expected a version",
        "file:///models/iris@stable",
        "https://cdn/models/iris/1/contract.json: not found. Ask ops@example.com",
        "http://127.0.0.1:8000: iris@stable: not found",
        "http://127.0.0.1:8000: mail ops@example.com",
        "registry:5000/model_load:1@sha256:abc",
        "got a: b@c, x:/y",
    ],
)
def test_text_without_secrets_stays_as_it_is(text: str) -> None:
    """An alias has an @ too: a message without it would not name what to check."""
    assert redact(text) == text


def test_values_inside_json_are_redacted() -> None:
    uri = "https://someone:hunter2@cdn/x"

    assert redact_all({"a": [uri, 1, None, True, 0.5], "b": {"c": Path(uri)}, "d": (uri,)}) == {
        "a": ["https://…@cdn/x", 1, None, True, 0.5],
        "b": {"c": "https:/…@cdn/x"},
        "d": ["https://…@cdn/x"],
    }
