"""Start a server from its settings in the environment: the main function of both modes.

Settings are read before anything slow is imported, so that a wrong one is reported at once.
"""

import sys
from collections.abc import Callable
from typing import TypeVar

from artifact.contract import ContractMismatch
from artifact.errors import StoreError
from artifact.redact import redact
from serving import logs
from serving.errors import StartupError
from serving.settings import Settings
from serving.workers.model_source import ModelSource

AnySettings = TypeVar("AnySettings", bound=Settings)


def run(settings_type: type[AnySettings], find: Callable[[AnySettings], ModelSource]) -> int:
    """Serve a model until TERM and return the exit status.

    find: returns the source of the model. It may start a download and return before the end of
    it, so that the imports below run at the same time. Problems that an operator can fix are
    printed in one message, without a traceback.
    """
    try:
        settings = settings_type.from_environment()
        logs.configure(settings.log_level)
        source = find(settings)
        from serving.server.gunicorn import serve  # noqa: PLC0415 - takes most of the start

        return serve(settings, source)
    except (StartupError, StoreError, ContractMismatch) as error:
        print(f"{settings_type.mode} does not start. {redact(str(error))}", file=sys.stderr)  # noqa: T201
        return 1
