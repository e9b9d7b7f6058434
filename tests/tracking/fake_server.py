"""A stand-in for the W&B server: answers that let a run begin, and its data be taken."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

_PROJECT = {"id": "p", "name": "polylab", "entity": {"id": "e", "name": "me"}}
_RUN = {
    "id": "cnVu", "displayName": "n", "description": "", "config": "{}",
    "sweepName": None, "project": _PROJECT, "historyLineCount": 0,
}  # fmt: skip
_ANSWERS = {
    "CreateRunFiles": {"createRunFiles": {"runID": "abc", "uploadHeaders": [], "files": []}},
    "RunResumeStatus": {"model": None},
}


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        name = re.search(rb'"operationName": ?"(\w+)"|(?:query|mutation) (\w+)', body)
        operation = next(filter(None, name.groups())).decode() if name else ""
        answer = _ANSWERS.get(operation, {})
        if operation == "UpsertBucket":  # the run keeps the id that it gave itself
            bucket = {**_RUN, "name": json.loads(body)["variables"]["name"]}
            answer = {"upsertBucket": {"bucket": bucket, "inserted": True}}
        text = json.dumps({"data": answer}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_PUT = do_POST

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def fake_server() -> Iterator[ThreadingHTTPServer]:
    """A server on a free port of this machine; `shutdown` and `server_close` take it away."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
