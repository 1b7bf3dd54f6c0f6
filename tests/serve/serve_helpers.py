"""A server in a thread of the tests, behind a real socket, and a predictor that does what a test wants."""

import socket
import threading
import time
from contextlib import contextmanager

import pytest

for package in ("fastapi", "httpx", "python_multipart", "uvicorn"):
    pytest.importorskip(package, reason=f"no {package}: pip install fastapi uvicorn python-multipart httpx")

import httpx  # noqa: E402
import uvicorn  # noqa: E402

from modules.serve.app import make_app  # noqa: E402


@contextmanager
def serve(predictor, limits):
    """Serves in a thread; yields a client."""
    place = socket.create_server(("127.0.0.1", 0), backlog=64)
    server = uvicorn.Server(uvicorn.Config(make_app(predictor, "small", limits), log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
    thread.start()
    try:
        # Connections wait in the socket's queue until the server accepts them.
        with httpx.Client(base_url=f"http://127.0.0.1:{place.getsockname()[1]}", timeout=40) as client:
            yield client
    finally:
        if isinstance(predictor, StubPredictor):
            # The server waits for what it computes, also after a test that failed.
            predictor.free.set()
        server.should_exit = True
        thread.join()


class StubPredictor:
    """A predictor that computes for as long as a test wants it to."""

    class_names, channels, label_values, spatial_dims, segments, engines = ("background", "a"), ("T1",), (0, 1), 3, (), ()

    def __init__(self):
        self.begun, self.free, self.calls, self.left = threading.Event(), threading.Event(), 0, 0

    def save_file(self, paths, folder, *, series, max_bytes, on_batch):
        """Calls `on_batch` until `free` is set."""
        self.calls += 1
        self.begun.set()
        try:
            while not self.free.wait(0.01):
                on_batch(1)
            raise SystemError("a text with the name of a patient")
        finally:
            self.left += 1


def wait_for(holds):
    """Waits until a condition holds."""
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
