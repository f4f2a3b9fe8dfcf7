"""HTTP servers on this machine, and a proxy that cuts connections."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles


class Served:
    """Serves a folder. `requests` has the path of each request."""

    def __init__(self, folder):
        self.requests = []
        app = Starlette(routes=[Mount("/", StaticFiles(directory=folder))])

        async def recorded(scope, receive, send):
            if scope["type"] == "http":
                self.requests.append(scope["path"])
            await app(scope, receive, send)

        self.server = uvicorn.Server(uvicorn.Config(recorded, port=0, log_level="error", lifespan="off"))
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self):
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.server.force_exit = True
        self.thread.join(10)


class Cut:
    """A proxy of the server on `port`: after `after[n]` bytes, connection n is reset, or hangs if `hang`."""

    def __init__(self, port, after, *, hang=False):
        self.port, self.after, self.hang = port, list(after), hang
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.listener.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                limit = self.after.pop(0) if self.after else None
                threading.Thread(target=self._forward, args=(client, limit), daemon=True).start()

    def _forward(self, client, limit):
        with socket.create_connection(("127.0.0.1", self.port)) as server, contextlib.suppress(OSError):
            server.sendall(client.recv(1 << 16))
            sent = 0
            while data := server.recv(1 << 14):
                data = data if limit is None else data[: limit - sent]
                client.sendall(data)
                sent += len(data)
                if sent == limit:
                    while self.hang:
                        time.sleep(0.1)
                    time.sleep(0.2)  # let the client read first: a reset discards bytes that it has not read
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    break
        client.close()
