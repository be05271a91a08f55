"""Serve the model that MODEL_URI names: `python -m model_load`, configured by the environment."""

import sys

from serving.container import exit_at_once_on_term

if __name__ == "__main__":
    exit_at_once_on_term()
    from model_load.source import ModelLoadSettings, locate
    from serving.process import run

    sys.exit(run(ModelLoadSettings, locate))
