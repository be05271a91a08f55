"""What an operator can put right: a file, an option, a version, a model.

Raised anywhere in training, shown by __main__.py as text without a traceback.
"""


class TrainingError(Exception):
    """Why there is no artifact: what was expected, what came, what to do."""
