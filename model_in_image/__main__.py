"""Serve the model in MODEL_DIR: `python -m model_in_image`, configured by the environment."""

import sys

from serving.server import fast_start
from serving.workers.container import exit_at_once_on_term

if __name__ == "__main__":
    exit_at_once_on_term()
    fast_start.begin()
    from model_in_image.source import ModelInImageSettings, find
    from serving.server.startup import run

    sys.exit(run(ModelInImageSettings, find))
