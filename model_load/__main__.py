"""Serve the model that MODEL_URI names: `python -m model_load`, configured by the environment.

`python -m model_load pull --to DIR` only pulls it, for an init container: the server that
then serves DIR as its MODEL_DIR needs no credentials.
"""

import sys

from serving.server import fast_start
from serving.workers.container import exit_at_once_on_term

if __name__ == "__main__":
    exit_at_once_on_term()
    if sys.argv[1:2] == ["pull"]:
        from model_load.command import pull

        sys.exit(pull(sys.argv[2:]))
    fast_start.begin()
    from model_load.settings import ModelLoadSettings
    from model_load.source import find
    from serving.server.startup import run

    sys.exit(run(ModelLoadSettings, find))
