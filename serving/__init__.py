"""The server, all of it, shared by both release modes.

Imported by model_in_image and model_load; training takes the contract from here.
Never imports scikit-learn, and importing it loads no model.
"""

import os

# onnxruntime reports home by default (a thread, a name look-up, files under $HOME)
# and reads this once, when it is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# pydantic looks for plugins in each installed package, which takes as long as opening a small
# model. Who has one sets it to nothing.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "true")
