"""A small S3 on 127.0.0.1: lists, whole and ranged reads with ETags; that can break off, refuse or be slow."""

import contextlib
import hashlib
import re
import threading
import time
import xml.sax.saxutils
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class S3Server:
    """objects: by key, of the one bucket `bucket`.

    broken: how many reads end in the middle. refused: an error code for everything. delay_s: before each read's answer.
    reads: (key, first byte) of each read.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.broken = 0
        self.refused: tuple[int, str] | None = None
        self.delay_s = 0.0
        self.reads: list[tuple[str, int]] = []
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"s3": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def etag(self, key: str) -> str:
        return f'"{hashlib.md5(self.objects[key]).hexdigest()}"'

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    s3: S3Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        key = unquote(urlsplit(self.path).path).lstrip("/").partition("/")[2]
        if key:
            self._answer(200, self.s3.objects[key], {"ETag": self.s3.etag(key)})
        else:
            self._answer(200, b"", {"x-amz-bucket-region": "us-east-1"})

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        if self.s3.refused is not None:
            status, code = self.s3.refused
            self._error(status, code)
            return
        if bucket != "bucket":
            self._error(404, "NoSuchBucket")
            return
        if not key:
            self._list(parse_qs(url.query).get("prefix", [""])[0])
            return
        self._read(key)

    def _list(self, prefix: str) -> None:
        entries = "".join(
            f"<Contents><Key>{xml.sax.saxutils.escape(key)}</Key><Size>{len(content)}</Size>"
            f"<ETag>{xml.sax.saxutils.escape(self.s3.etag(key))}</ETag></Contents>"
            for key, content in sorted(self.s3.objects.items())
            if key.startswith(prefix)
        )
        body = f'<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>'
        self._answer(200, body.encode())

    def _read(self, key: str) -> None:
        time.sleep(self.s3.delay_s)
        content = self.s3.objects[key]
        if self.headers.get("If-Match", self.s3.etag(key)) != self.s3.etag(key):
            self._error(412, "PreconditionFailed")
            return
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, end = (int(found[1]), min(int(found[2]) + 1, len(content))) if found else (0, len(content))
        headers = {"ETag": self.s3.etag(key), "Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
        with self.s3.lock:
            self.s3.reads.append((key, start))
            is_broken = self.s3.broken > 0
            self.s3.broken -= is_broken
        self._answer(206 if found else 200, content[start:end], headers, is_broken=is_broken)

    def _error(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code><Message>refused</Message></Error>".encode())

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, is_broken: bool = False) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        with contextlib.suppress(OSError):
            self.wfile.write(body[: len(body) // 2] if is_broken else body)
        if is_broken:
            self.close_connection = True
            self.connection.close()


@contextlib.contextmanager
def running_s3() -> Iterator[S3Server]:
    server = S3Server()
    try:
        yield server
    finally:
        server.stop()
