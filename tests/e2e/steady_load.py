"""Send steady predictions from inside the cluster, in a pod with the server's image.

`python -c <this text> URL SECONDS` sends predictions through the Service until the time is over,
half of them on reused connections and half on new ones. Once a second it prints the totals as
JSON: answered requests by model and failed requests by reason.
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
    """Requests to one address, and the totals of their results."""

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url).netloc
        # Several threads send requests, and `+= 1` on a counter is not atomic.
        self._lock = threading.Lock()
        self.answered: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()

    def send_until(self, deadline: float, *, reuse: bool) -> None:
        """Send predictions one after the other, on one connection or each on a new one."""
        connection = http.client.HTTPConnection(self._address, timeout=_TIMEOUT_SECONDS)
        while time.monotonic() < deadline:
            try:
                model = self._predict(connection)
                with self._lock:
                    self.answered[model] += 1
            except (OSError, http.client.HTTPException, ValueError) as error:
                connection.close()
                with self._lock:
                    self.failed[f"{type(error).__name__}: {error}"] += 1
            if not reuse:
                connection.close()
            time.sleep(_PAUSE_SECONDS)

    def _predict(self, connection: http.client.HTTPConnection) -> str:
        """Return the model that answered. Raises ValueError for any other response."""
        # Connection pools check this as well: a connection that the server closed is readable.
        if connection.sock and select.select([connection.sock], [], [], 0)[0]:
            connection.close()
        connection.request("POST", "/predict", _BODY)
        response = connection.getresponse()
        body = response.read()
        if response.status != http.client.OK or len(json.loads(body)["prediction"]) != len(_ROWS):
            raise ValueError(f"status {response.status}: {body[:200]!r}")
        return f"{response.headers['Model-Name']}/{response.headers['Model-Version']}"


if __name__ == "__main__":
    load = Load(sys.argv[1])
    end = time.monotonic() + float(sys.argv[2])
    threads = [
        threading.Thread(target=load.send_until, args=[end], kwargs={"reuse": bool(number % 2)})
        for number in range(_THREADS)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(1)
        print(json.dumps({"answered": load.answered, "failed": load.failed}), flush=True)
