"""Open a model store for publishing by its location: a directory or a bucket.

Both classes have the same methods: reject_existing, publish, set_alias.
"""

from pathlib import Path

from artifact.bucket_store import BucketStore
from artifact.directory_store import DirectoryStore
from artifact.uri import is_bucket, local_path

Store = DirectoryStore | BucketStore

# https:// and http:// can only be read.
_WRITABLE = ("s3://", "gs://", "az://")


def open_store(location: str | Path) -> Store:
    """Return the store at a path, file://, s3://, gs:// or az://. Makes no network call.

    Raises StoreError that names STORE, the setting of all publishers, for other URIs.
    """
    uri = str(location)
    if is_bucket(uri) and uri.startswith(_WRITABLE):
        return BucketStore(uri.rstrip("/"))
    expected = f"a directory, file:///directory, {', '.join(_WRITABLE[:-1])} or {_WRITABLE[-1]}"
    return DirectoryStore(local_path(uri, "STORE", expected))
