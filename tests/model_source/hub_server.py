"""One repository of a hub on 127.0.0.1: what huggingface_hub asks for to list and fetch its files."""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

REPO = "owner/model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


class HubServer:
    """files: of the branch `main`, which is `commit`. token: needed, if one is set. error: (status, X-Error-Code)."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.commit = COMMIT
        self.token: str | None = None
        self.error: tuple[int, str] | None = None
        self.broken = 0
        self.fetched: list[str] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self._refuse(404, "")

    def do_GET(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        if hub.error is not None:
            return self._refuse(*hub.error)
        if hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self._refuse(401, "RepoNotFound")
        if found := re.fullmatch(rf"/api/models/{REPO}(?:/revision/(.+))?", path):
            if found[1] not in (None, "main", hub.commit):
                return self._refuse(404, "RevisionNotFound")
            siblings = [self._entry(name) | {"rfilename": name} for name in hub.files]
            return self._json({"id": REPO, "modelId": REPO, "sha": hub.commit, "siblings": siblings, "tags": []})
        if found := re.fullmatch(rf"/api/models/{REPO}/tree/(.+)", path):
            return self._json([self._entry(name) | {"type": "file", "path": name} for name in hub.files])
        if found := re.fullmatch(rf"/{REPO}/resolve/{hub.commit}/(.+)", path):
            if found[1] not in hub.files:
                return self._refuse(404, "EntryNotFound")
            return self._file(found[1])
        return self._refuse(404, "RepoNotFound")

    def _entry(self, name: str) -> dict[str, Any]:
        content = self.hub.files[name]
        return {"size": len(content), "oid": _oid(content), "blobId": _oid(content)}

    def _file(self, name: str) -> None:
        content = self.hub.files[name]
        start = 0
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start = int(found[1])
        self.send_response(206 if found else 200)
        self.send_header("ETag", f'"{_oid(content)}"')
        self.send_header("X-Repo-Commit", self.hub.commit)
        if found:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.hub.fetched.append(name)
        if self.hub.broken and name.endswith(".safetensors"):
            self.hub.broken -= 1
            self.wfile.write(content[start : start + (len(content) - start) // 2])
            self.close_connection = True
            return
        self.wfile.write(content[start:])

    def _json(self, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextlib.contextmanager
def running_hub() -> Iterator[HubServer]:
    server = HubServer()
    try:
        yield server
    finally:
        server.stop()
