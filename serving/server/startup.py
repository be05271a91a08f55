"""From an environment to a running server: what both `python -m` commands do, in order.

Settings are read before anything slow is imported, so that a wrong one is said at once.
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
    """Serve the artifact that find() finds, until TERM.

    find: begins, and returns a source that waits; imports go on meanwhile.
    Returns the exit status. What an operator can mend is said in one message with every
    mistake, without a traceback.
    """
    try:
        settings = settings_type.from_environment()
        logs.configure(settings.log_level)
        source = find(settings)
        from serving.server.gunicorn import serve  # noqa: PLC0415 - takes a second; see above

        return serve(settings, source)
    except (StartupError, StoreError, ContractMismatch) as error:
        print(f"{settings_type.mode} does not start. {redact(str(error))}", file=sys.stderr)  # noqa: T201
        return 1
