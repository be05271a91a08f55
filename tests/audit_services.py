"""The services of the audit on loopback: OSV's API and endoflife.date's, in their formats."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Behaviour = Literal["answers", "hangs", "fails", "unexpected"]

# What osv.dev answers for jinja2 2.10, without the list of all affected versions.
JINJA2 = {
    "id": "PYSEC-2021-66",
    "details": "The ReDoS vulnerability is mainly due to the `_punctuation_re regex` operator.",
    "aliases": ["CVE-2020-28493", "GHSA-g3rq-g295-4j3m"],
    "modified": "2023-11-08T04:03:38.126450Z",
    "published": "2021-02-01T20:15:00Z",
    "affected": [
        {
            "package": {"name": "jinja2", "ecosystem": "PyPI", "purl": "pkg:pypi/jinja2"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.11.3"}]}],
        }
    ],
    "schema_version": "1.4.0",
}
# One release for all versions of a product: the tests run on any Python and any Debian.
FAR = "2999-12-31"
PRODUCTS = {
    "python": {"3": FAR},
    "debian": dict.fromkeys(("11", "12", "13", "14"), FAR),
    "kubernetes": {"1": FAR},
    "numpy": {"1": FAR, "2": FAR},
}
CODENAMES = {"11": "Bullseye", "12": "Bookworm", "13": "Trixie", "14": "Forky"}


@dataclass
class AuditServices:
    """Both services, which know nothing bad unless a test says so."""

    # Advisories by package and version, and last days of support by product and release.
    vulnerable: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    ends: dict[str, dict[str, str | None]] = field(default_factory=dict)
    osv: Behaviour = "answers"
    endoflife: Behaviour = "answers"
    queries: list[tuple[str, str]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    @property
    def environment(self) -> dict[str, str]:
        """The settings of the audit that name these services."""
        return {
            "PIP_AUDIT_VULNERABILITY_SERVICE": "osv",
            "PIP_AUDIT_OSV_URL": f"http://127.0.0.1:{self.port}/v1/query",
            "ENDOFLIFE_URL": f"http://127.0.0.1:{self.port}/api/v1",
        }

    def vulnerabilities(self, query: dict[str, Any]) -> dict[str, Any]:
        pin = query["package"]["name"], query["version"]
        self.queries.append(pin)
        return {"vulns": [self.vulnerable[pin]]} if pin in self.vulnerable else {}

    def product(self, name: str) -> dict[str, Any]:
        self.queries.append(("endoflife.date", name))
        ends = PRODUCTS[name] | self.ends.get(name, {})
        # The more specific release first, as endoflife.date lists newer ones first.
        releases = [_release(name, release, ends[release]) for release in sorted(ends)[::-1]]
        return {"schema_version": "1.2.0", "result": {"name": name, "releases": releases}}


def _release(product: str, name: str, until: str | None) -> dict[str, Any]:
    return {
        "name": name,
        "codename": CODENAMES[name] if product == "debian" else None,
        "label": name,
        "releaseDate": "2020-01-01",
        "isLts": False,
        "ltsFrom": None,
        "isEol": until is None,
        "eolFrom": until,
        "isMaintained": until is not None,
        "latest": {"name": f"{name}.1", "date": "2020-02-01", "link": None},
    }


@contextmanager
def audit_services() -> Iterator[AuditServices]:
    """Start both services."""
    services = AuditServices()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(services.osv, lambda: services.vulnerabilities(json.loads(body)))

        def do_GET(self) -> None:
            name = self.path.rstrip("/").rpartition("/")[2]
            self._answer(services.endoflife, lambda: services.product(name))

        def _answer(self, behaviour: Behaviour, answer: Any) -> None:
            if behaviour == "hangs":
                services.released.wait(60)
            status = 503 if behaviour == "fails" else 200
            content = {"message": "moved"} if behaviour == "unexpected" else answer()
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

        def handle(self) -> None:
            # A client whose time is up has closed the connection.
            with suppress(ConnectionError):
                super().handle()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        services.port = server.server_port
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        yield services
        services.released.set()
        server.shutdown()
