"""The app over HTTP: a fixed table of pages, and answers of `AppService`. No path of a request becomes a path of a file."""

import json
import logging
import select
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, urlsplit

from noise2map.app.files import MEDIA_TYPES
from noise2map.app.jobs import UNEXPECTED, Job
from noise2map.app.service import AppService

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"

# Address -> (package, name, media type). What is not here does not exist.
PAGES = {
    "/": ("noise2map.app", "page/app.html", "text/html; charset=utf-8"),
    "/app.css": ("noise2map.app", "page/app.css", "text/css; charset=utf-8"),
    "/app.js": ("noise2map.app", "page/app.js", "text/javascript; charset=utf-8"),
    "/page.css": ("noise2map.report", "page.css", "text/css; charset=utf-8"),
    "/page.js": ("noise2map.report", "page.js", "text/javascript; charset=utf-8"),
}

# Sent with every request that changes something: a foreign page cannot send it without being asked first, and is refused then.
MARK = "X-Noise2map"

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_JSON_BYTES = 64 * 1024
_DRAINED_BYTES = 256 * 2**20
_LOOK_S = 0.2


class _Refused(Exception):
    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class AppServer(ThreadingHTTPServer):
    """Serves one `AppService`.

    Args:
        service: The models and the queue.
        host: Address to listen at.
        port: Port; 0 for any free one.

    Raises:
        OSError: If the address cannot be listened at.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, service: AppService, host: str = LOOPBACK, port: int = 7860) -> None:
        self.service, self.host = service, host
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._slots = threading.BoundedSemaphore(service.limits.connections)
        self.uploads = threading.BoundedSemaphore(service.limits.uploads)
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise OSError(f"cannot listen at {host}, port {port}: {error.strerror or error}") from error

    @property
    def url(self) -> str:
        """Address of the page."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.server_address[1]}/"

    def known_host(self, header: str | None) -> bool:
        """Whether a request means this server: a name that someone else made point here does not (DNS rebinding)."""
        name = (urlsplit(f"//{header}").hostname or "") if header else ""
        everywhere = self.host in ("0.0.0.0", "::", "")
        return bool(name) and (everywhere or name in ("localhost", LOOPBACK, "::1", self.host.lower()))

    def process_request(self, request: Any, client_address: Any) -> None:
        """Refuses connections beyond the limit instead of making threads without end."""
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """See `process_request`."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is nobody's fault."""
        logger.debug("a connection broke", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: AppServer
    server_version, sys_version = "noise2map", ""
    timeout = 30  # of one read or write

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, make: Any) -> None:
        try:
            if not self.server.known_host(self.headers.get("Host")):
                self._drain()
                raise _Refused(403, "This server is called by another name.")
            make()
        except _Refused as error:
            self._send_json({"error": str(error)}, error.status)
        except KeyError:
            self._send_json({"error": "This is not here, or not kept any more; run it again."}, 404)
        except BlockingIOError as error:
            self._send_json({"error": str(error)}, 503)
        except (BrokenPipeError, ConnectionError, TimeoutError):
            self.close_connection = True
        except (ValueError, OSError, ImportError, MemoryError) as error:
            self._send_json({"error": " ".join(str(error).split()) or "There is not enough memory."}, 400)
        except Exception:
            logger.exception("%s %s failed", self.command, self.path[:200])
            self._send_json({"error": UNEXPECTED}, 500)

    def _get(self) -> None:
        address = urlsplit(self.path)
        service, parts = self.server.service, address.path.strip("/").split("/")
        if address.path in PAGES:
            package, name, kind = PAGES[address.path]
            self._send(files(package).joinpath(name).read_bytes(), kind)
        elif address.path == "/api/state":
            self._send_json(service.state)
        elif address.path == "/api/places":
            self._send_json({"places": service.places()})
        elif parts[:2] == ["api", "samples"] and len(parts) == 3:
            self._send(service.sample_png(parts[2]), "image/png")
        elif parts[:2] == ["api", "results"] and len(parts) == 4 and parts[3] == "pixel":
            query = parse_qs(address.query)
            self._send_json(service.pixel(parts[2], *(_coordinate(query, name) for name in ("x", "y"))))
        elif parts[:2] == ["api", "results"] and len(parts) == 4:
            content = service.file(parts[2], parts[3])  # a key of a table that holds what can be downloaded
            kind = MEDIA_TYPES.get(PurePosixPath(parts[3]).suffix, "application/octet-stream")
            self._send(content, kind, {"Content-Disposition": f'attachment; filename="{parts[3]}"'})
        else:
            raise _Refused(404, "There is no such page.")

    def _post(self) -> None:
        origin = self.headers.get("Origin")
        if self.headers.get(MARK) is None or (origin is not None and urlsplit(origin).netloc != self.headers.get("Host")):
            self._drain()
            raise _Refused(403, "Only the page of this server may ask for that.")
        path = urlsplit(self.path).path
        if path == "/api/upload":
            if not self.server.uploads.acquire(blocking=False):
                self._drain()
                raise _Refused(503, "Too many files arrive at once; try again in a moment.")
            try:
                found = self.server.service.upload(self._body(self.server.service.limits.upload_bytes))
            finally:
                self.server.uploads.release()
            self._send_json(found)
        elif path.startswith("/api/run/"):
            fields = _fields(self._body(_JSON_BYTES))
            self._stream(self.server.service.start(path.removeprefix("/api/run/"), fields))
        else:
            self._drain()
            raise _Refused(404, "There is no such page.")

    def _drain(self) -> None:
        """Reads a body that nobody wants: a client that is still sending hears no answer, but a broken connection."""
        if self.command == "POST":
            self._body(_DRAINED_BYTES, keep=False)

    def _body(self, most: int, keep: bool = True) -> bytes:
        """The body, never more than ``most`` bytes of it in memory."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()) or len(length) > 15:
            raise _Refused(411, "The request does not say how long it is.")
        if int(length) > most or not keep:
            left = min(int(length), _DRAINED_BYTES)
            while left > 0 and (part := self.rfile.read(min(left, 2**16))):  # a client that still sends hears no answer
                left -= len(part)
            if keep:
                raise _Refused(413, f"The file has {int(length) / 2**20:.1f} MiB; at most {most / 2**20:.3g} MiB are taken.")
            return b""
        content = self.rfile.read(int(length))
        if len(content) < int(length):
            raise _Refused(400, "The file did not arrive whole.")
        return content

    def _stream(self, job: Job) -> None:
        """A line of JSON whenever something changes, until the job is over; who goes away cancels it."""
        self._start(200, "application/x-ndjson", {})
        before = None
        try:
            while not job.over:
                line = {"state": job.state, "done": job.done, "total": job.total}
                line["ahead"] = self.server.service.queue.ahead_of(job) if job.state == "waiting" else 0
                if line != before:
                    self._line(line)
                    before = line
                if self._gone():
                    raise ConnectionError
                job.wait(_LOOK_S)
            self._line({"state": job.state, "error": job.error, "result": job.result})
        except (OSError, ValueError):
            job.cancel()
            self.close_connection = True

    def _line(self, value: Any) -> None:
        self.wfile.write(json.dumps(value).encode() + b"\n")
        self.wfile.flush()

    def _gone(self) -> bool:
        readable, _, _ = select.select([self.connection], [], [], 0)
        return bool(readable) and self.connection.recv(1, socket.MSG_PEEK) == b""

    def _send_json(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), "application/json", status=status)

    def _send(self, content: bytes, kind: str, headers: dict[str, str] | None = None, status: int = 200) -> None:
        try:
            self._start(status, kind, {**(headers or {}), "Content-Length": str(len(content))})
            self.wfile.write(content)
        except OSError:
            self.close_connection = True

    def _start(self, status: int, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, **_HEADERS, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)


def _fields(content: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        raise _Refused(400, "The request is no JSON.") from None
    if not isinstance(fields, dict):
        raise _Refused(400, "The request is no JSON object.")
    return fields


def _coordinate(query: dict[str, list[str]], name: str) -> int:
    text = query.get(name, [""])[0]
    if not (text.isascii() and text.isdecimal()) or len(text) > 9:
        raise ValueError(f"{name} is {text[:30]!r}; expected a whole number of pixels")
    return int(text)
