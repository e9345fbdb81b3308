"""A port in front of another one that can cut connections in the middle, as a cable or a dying machine does."""

import socket
import struct
import threading
from contextlib import suppress

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s, so that closing resets the connection


class CuttingProxy:
    """`with CuttingProxy(port) as proxy:` passes on what goes between clients of `proxy.port` and `port`."""

    def __init__(self, port: int) -> None:
        self.cut_request: int | None = None  # bytes of requests still to pass before their connection is cut, once
        self.cut_answer: int | None = None  # likewise of answers
        self.cuts = 0  # connections cut so far
        self._target = port
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    def __enter__(self) -> "CuttingProxy":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`
        self._listener.close()
        for one in self._sockets:
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [client, server]
                for name, source, sink in (("cut_request", client, server), ("cut_answer", server, client)):
                    threading.Thread(target=self._pump, args=(name, source, sink), daemon=True).start()

    def _pump(self, name: str, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if (passed := self._passed(name, len(data))) < len(data):
                    sink.sendall(data[:passed])
                    for end in (source, sink):
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    break
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # wakes the pump of the other direction
            end.close()

    def _passed(self, name: str, count: int) -> int:
        """How many of so many bytes go on."""
        with self._lock:
            left: int | None = getattr(self, name)
            if left is None:
                return count
            if left >= count:
                setattr(self, name, left - count)
                return count
            setattr(self, name, None)
            self.cuts += 1
            return left
