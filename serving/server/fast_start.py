"""Shorten the start of a server. Imported before every heavy module, so it imports none.

`begin` has to run before pydantic, numpy, and onnxruntime are imported, and `finish` before the
workers are forked.
"""

import gc
import os


def begin() -> None:
    """Set what makes the imports faster."""
    # Imports create objects and hardly any garbage.
    gc.disable()
    # pydantic looks for plugins in every installed package. Set the variable to an empty value
    # to use plugins.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "true")


def finish() -> None:
    """Collect garbage from now on, but never look at the objects that exist already."""
    # A collection writes to the objects that it looks at, so the kernel would copy their memory
    # for each worker.
    gc.freeze()
    gc.enable()
