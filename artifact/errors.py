"""The error of model stores and their URIs."""


class StoreError(Exception):
    """A model store cannot be read or written, its URI is invalid, or it rejects an artifact.

    The message is for an operator or a publisher: it is printed without a traceback.
    """
