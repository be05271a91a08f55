"""Steady load from inside the cluster: run in a pod, by the Python of the server's image.

`python -c <this text> URL SECONDS` sends predictions through the Service until the time is up,
half of them on connections that are reused and half on new ones, and prints once a second
what became of them, as JSON: when, answered, and failed by reason.
"""

import http.client
import json
import select
import sys
import threading
import time
from collections import Counter
from urllib.parse import urlsplit

_THREADS = 4
_PAUSE_SECONDS = 0.04
_TIMEOUT_SECONDS = 10
_ROWS = [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]]
_BODY = json.dumps({"data": _ROWS})


class Load:
    """Threads that ask, and what they were answered."""

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url).netloc
        self._lock = threading.Lock()
        self.answered: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()

    def ask_until(self, deadline: float, *, reuse: bool) -> None:
        """Send predictions one after the other."""
        connection = http.client.HTTPConnection(self._address, timeout=_TIMEOUT_SECONDS)
        while time.monotonic() < deadline:
            try:
                model = self._ask(connection)
                with self._lock:
                    self.answered[model] += 1
            except (OSError, http.client.HTTPException, ValueError) as error:
                connection.close()
                with self._lock:
                    self.failed[f"{type(error).__name__}: {error}"] += 1
            if not reuse:
                connection.close()
            time.sleep(_PAUSE_SECONDS)

    def _ask(self, connection: http.client.HTTPConnection) -> str:
        """Return the model that answered. Raises ValueError for a wrong answer."""
        # As pools of connections do: one that the server has closed meanwhile is not used.
        if connection.sock and select.select([connection.sock], [], [], 0)[0]:
            connection.close()
        connection.request("POST", "/predict", _BODY)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != http.client.OK or len(json.loads(body)["prediction"]) != len(_ROWS):
            raise ValueError(f"status {answer.status}: {body[:200]!r}")
        return f"{answer.headers['Model-Name']}/{answer.headers['Model-Version']}"


if __name__ == "__main__":
    load = Load(sys.argv[1])
    end = time.monotonic() + float(sys.argv[2])
    threads = [
        threading.Thread(target=load.ask_until, args=[end], kwargs={"reuse": bool(number % 2)})
        for number in range(_THREADS)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(1)
        print(json.dumps({"answered": load.answered, "failed": load.failed}), flush=True)
