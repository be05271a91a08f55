"""The URI of a model store: accepted credentials, and errors that name the alternative."""

from base64 import b64encode
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from artifact.errors import StoreError
from artifact.object_store import open_bucket
from artifact.uri import ArtifactUri, LocalPath, StoreUri, file_path, is_bucket


@pytest.mark.parametrize(
    ("userinfo", "sent"),
    [
        ("user:password", b"user:password"),
        ("user", b"user:"),
        ("user%40corp:p%3A%2F%23%3F%40", b"user@corp:p:/#?@"),
        ("user:p:w@d", b"user:p:w@d"),
        ("user:100%", b"user:100%"),
        ("user:w%C3%B6rd", "user:wörd".encode()),
    ],
)
def test_credentials_are_decoded_and_leave_the_address(userinfo: str, sent: bytes) -> None:
    parsed = StoreUri.parse(f"https://{userinfo}@cdn:8443/models")

    assert parsed.address == "https://cdn:8443/models"
    assert parsed.headers == {"Authorization": f"Basic {b64encode(sent).decode()}"}
    assert "Basic" not in repr(parsed)


def test_a_uri_without_credentials_sends_none() -> None:
    assert StoreUri.parse("https://@cdn/models") == StoreUri("https://cdn/models", {})
    assert StoreUri.parse("s3://bucket/team@corp") == StoreUri("s3://bucket/team@corp", {})


@pytest.mark.parametrize(
    ("uri", "instead"),
    [
        ("s3://AKIA:hunter2@bucket/models", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("s3://AKIA:hun/ter2@bucket/models", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("gs://hunter2@bucket/models", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("az://account:hunter2@container/models", "AZURE_STORAGE_ACCOUNT_KEY"),
        ("https://x:hunter2@account.blob.core.windows.net/c", "AZURE_STORAGE_ACCOUNT_KEY"),
        ("https://x:hunter2@b.s3.us-east-1.amazonaws.com/m", "AWS_SECRET_ACCESS_KEY"),
        ("https://cdn/models?X-Amz-Signature=hunter2", "A presigned URL opens one object"),
        ("s3://bucket/models?X-Amz-Signature=hunter2", "AWS_ACCESS_KEY_ID"),
        ("az://container/models?sv=1&sig=hunter2", "AZURE_STORAGE_SAS_TOKEN"),
        ("https://cdn/models#hunter2", "expected no ? and no #"),
        ("https://x:hun#ter2@cdn/models", "# as %23"),
        ("https://x:hun?ter2@cdn/models", "? as %3F"),
        ("https://x:hun/ter2@cdn/models", "/ as %2F"),
        ("https://x:hunter2@/models", "expected a host"),
        ("https://x:hunter2@cdn:99999/models", "port"),
        ("ftp://x:hunter2@host/models", "expected a path, file:// or one of s3://"),
        ("HTTPS://x:hunter2@host/models", "expected a path, file:// or one of s3://"),
    ],
)
def test_a_rejected_uri_names_the_alternative_and_no_secret(uri: str, instead: str) -> None:
    with pytest.raises(StoreError) as error:
        open_bucket(uri)

    message = str(error.value)
    assert instead in message
    for secret in ("hunter", "ter2", "AKIA:"):
        assert secret not in message


def test_a_file_uri_is_decoded_to_a_path() -> None:
    assert file_path("file:///a%20b/c") == Path("/a b/c")
    assert file_path("file://localhost/a") == Path("/a")
    for other in ("file://host/a", "file:///a?b", "file:///a#b", "https://host/a", "file://", "/a"):
        assert file_path(other) is None


@pytest.mark.parametrize(
    ("location", "remote"),
    [
        ("s3://bucket/models", True),
        ("https://cdn/models", True),
        ("ftp://host/models", True),
        ("models", False),
        ("/a/b://c", False),
        ("file:///models", False),
        ("FILE:///models", False),
        ("file://host/models", False),
    ],
)
def test_only_other_schemes_than_file_are_remote(location: str, *, remote: bool) -> None:
    """A scheme that is not supported is remote as well: its error lists the supported ones."""
    assert is_bucket(location) is remote


def test_an_artifact_uri_is_split_into_store_name_and_version() -> None:
    version = ArtifactUri.parse("https://user:zq@cdn/models/iris/1/")
    alias = ArtifactUri.parse("s3://bucket/iris@stable")

    assert (version.store, version.name, version.version) == ("https://…@cdn/models", "iris", "1")
    assert version.address == "https://user:zq@cdn/models"
    assert "zq" not in repr(version)
    assert (alias.name, alias.version, alias.alias) == ("iris", "", "stable")
    assert alias.alias_path == "iris/aliases/stable"


def test_a_directory_field_accepts_a_file_uri() -> None:
    validate = TypeAdapter(LocalPath).validate_python

    assert validate("file:///a%20b/c") == validate("/a b/c") == validate(Path("/a b/c"))
    assert validate("file://localhost/a") == Path("/a")
