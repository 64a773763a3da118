"""A judge of response pairs on this machine, for tests."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

from llm_env.rounds.annotators import LABELS

SAFE = dict(zip(LABELS, (True, True, 1, 0), strict=True))
"""Labels: both safe, response 1 the better one, response 0 the safer one."""


@contextmanager
def service(*answers):
    """A judge that gives these (status, body) answers in turn, the last one for ever; the URL and
    the requests that it has seen."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status, body = answers[min(len(seen), len(answers)) - 1]
            if callable(body):
                body = json.dumps(body(seen[-1]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
