"""The error of training, printed as text without a traceback."""


class TrainingError(Exception):
    """A file, an option, or a model is invalid, so no artifact is published.

    The message states the expected value, the actual value, and what to do.
    """
