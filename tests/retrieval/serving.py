"""A served index for tests: a tiny one behind the application, and a real server on a port of its own."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from retrieval.serve.app import create_app
from retrieval.serve.pages import Pages
from retrieval.serve.security import Access
from retrieval.serve.server import Server, listen
from retrieval.serve.service import ServeOptions, Service

HOME = "http://127.0.0.1:8765"


@contextmanager
def served(
    index: Path | str, access: Access | None = None, pages: Pages | None = None, **options: Any
) -> Iterator[TestClient]:
    """A client of the application, without a network; its `service` is what is served."""
    with Service.open(str(index), ServeOptions(**{"workers": 1, **options})) as service:
        app = create_app(service, access or Access("127.0.0.1"), pages=pages)
        client = TestClient(app, base_url=HOME)
        client.service = service
        with client:
            yield client


@contextmanager
def running(index: Path | str, access: Access | None = None, **options: Any) -> Iterator[tuple[Service, str, int]]:
    """A server that listens: the service, its host and its port. It is stopped gracefully at the end."""
    access = access or Access("127.0.0.1")
    listening = listen(access.host, 0)
    port = int(listening.getsockname()[1])
    with Service.open(str(index), ServeOptions(**{"workers": 1, **options})) as service:
        server = Server(service, access, port)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield service, access.host, port
        finally:
            server.should_exit = True
            thread.join(timeout=40)
            assert not thread.is_alive(), "the server does not stop"
