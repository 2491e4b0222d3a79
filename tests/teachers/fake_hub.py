"""A local imitation of the Hugging Face hub with files in memory; it can cut a download short."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Files by path; `cut` is how many bytes the first download of each sends before it breaks off."""

    def __init__(self, files: dict[str, bytes], cut: int | None = None):
        self.files = files
        self.cut = cut
        self.ranges: list[str] = []
        self.requests = 0  # for the files

    def handler(self):
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                self.answer(with_body=False)

            def do_GET(self):
                self.answer(with_body=True)

            def answer(self, with_body):
                path = self.path.split("?")[0]
                hub.requests += path in hub.files
                content = hub.files.get(path)
                if content is None:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                requested = self.headers.get("Range") or ""
                start = int(requested.removeprefix("bytes=").split("-")[0] or 0)
                self.send_response(206 if requested else 200)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("Accept-Ranges", "bytes")
                if requested:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                if not with_body:
                    return
                hub.ranges.append(requested)
                if hub.cut is None:
                    self.wfile.write(content[start:])
                    return
                self.wfile.write(content[start : start + hub.cut])
                hub.cut = None
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()

            def log_message(self, *arguments):
                pass

        return Handler


def repository(files: dict[str, bytes], name: str = "owner/name") -> dict[str, bytes]:
    """The hub's answers about a repository: its files, and two lists of them."""
    siblings = [{"rfilename": path} for path in files]
    tree = [
        {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
        for path, content in files.items()
    ]
    answers = {}
    for revision in ("main", COMMIT):
        answers |= {f"/{name}/resolve/{revision}/{path}": content for path, content in files.items()}
        answers[f"/api/models/{name}/tree/{revision}"] = json.dumps(tree).encode()
        answers[f"/api/models/{name}/revision/{revision}"] = json.dumps(
            {"id": name, "sha": COMMIT, "siblings": siblings}
        ).encode()
    answers[f"/api/models/{name}"] = answers[f"/api/models/{name}/revision/main"]
    return answers


@contextmanager
def serve(hub: FakeHub):
    """Run the hub; yields its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), hub.handler())
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
