"""Serve the model in MODEL_DIR: `python -m model_in_image`, configured by the environment."""

import sys

from serving.container import exit_at_once_on_term

if __name__ == "__main__":
    exit_at_once_on_term()
    from model_in_image.source import ModelInImageSettings, find
    from serving.process import run

    sys.exit(run(ModelInImageSettings, find))
