"""Loopback servers that answer with the very bytes a test wants, and a small proxy."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import ssl

PATIENCE = 10.0


@dataclass
class Seen:
    """One request as it came over the wire."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    connection: int

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def raw(self) -> str:
        return f"{self.method} {self.target} {self.headers} {self.body!r}"


Answer: TypeAlias = Callable[[socket.socket, Seen], "bool | None"]


def answer(
    body: bytes = b"{}", status: str = "200 OK", *, length: int | None = None, **headers: str
) -> Answer:
    """Return an answer with a length, that keeps the connection; a wrong ``length`` truncates."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = ("\r\n".join(lines) + "\r\n\r\n").encode()

    def send(connection: socket.socket, seen: Seen) -> bool:
        connection.sendall(head + body)
        return length is None

    return send


def raw(*pieces: bytes, pause: float = 0.0) -> Answer:
    """Return an answer of bytes as they are, with a pause before each further piece; then the connection closes."""

    def send(connection: socket.socket, seen: Seen) -> None:
        for number, piece in enumerate(pieces):
            if number:
                time.sleep(pause)
            connection.sendall(piece)

    return send


def close(connection: socket.socket, seen: Seen) -> None:
    """Close without an answer."""


@dataclass
class Server:
    """Answers each request with the next of its answers, the last one for ever."""

    answers: list[Answer] = field(default_factory=lambda: [answer()])
    context: ssl.SSLContext | None = None
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    _open: list[socket.socket] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    @property
    def url(self) -> str:
        return f"{'https' if self.context else 'http'}://127.0.0.1:{self.port}"

    def _start(self, run: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=run, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                connection.settimeout(PATIENCE)
                self.connections += 1
                self._open.append(connection)
                self._start(self._serve, connection, self.connections)

    def _serve(self, connection: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError, ValueError), connection:  # ValueError: stopped in the middle
            self.talk(connection, number)

    def talk(self, connection: socket.socket, number: int) -> None:
        if self.context is None and connection.recv(1, socket.MSG_PEEK) == b"\x16":
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")  # a TLS greeting, answered as servers do
            return
        if self.context is not None:
            connection = self.context.wrap_socket(connection, server_side=True)
        with connection, connection.makefile("rb") as stream:
            while True:
                seen = read_request(stream, number)
                if seen is None:
                    return
                self.seen.append(seen)
                reply = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                if not reply(connection, seen):
                    return

    def stop(self) -> None:
        for opened in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
            opened.close()
        for thread in self._threads:
            thread.join(PATIENCE)


def read_request(stream: object, number: int) -> Seen | None:
    readline: Callable[[], bytes] = stream.readline  # type: ignore[attr-defined]
    read: Callable[[int], bytes] = stream.read  # type: ignore[attr-defined]
    first = readline().decode("latin-1").split()
    if len(first) != 3:
        return None
    headers = []
    while True:
        line = readline().decode("latin-1").rstrip("\r\n")
        if not line:
            break
        name, _, value = line.partition(":")
        headers.append((name, value.strip()))
    seen = Seen(first[0], first[1], headers, b"", number)
    seen.body = read(int(seen.header("content-length") or 0))
    return seen


class Proxy(Server):
    """A proxy that passes plain requests on and makes tunnels; ``refuse`` answers that instead."""

    refuse: Answer | None = None

    def talk(self, connection: socket.socket, number: int) -> None:
        with connection.makefile("rb") as stream:
            seen = read_request(stream, number)
        if seen is None:
            return
        self.seen.append(seen)
        if self.refuse is not None:
            self.refuse(connection, seen)
        elif seen.method == "CONNECT":
            host, _, port = seen.target.rpartition(":")
            with socket.create_connection((host, int(port)), PATIENCE) as onward:
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                _relay(connection, onward)
        else:
            host_port, _, path = seen.target.partition("://")[2].partition("/")
            host, _, port = host_port.rpartition(":")
            with socket.create_connection((host, int(port)), PATIENCE) as onward:
                lines = [f"{seen.method} /{path} HTTP/1.1", *(f"{k}: {v}" for k, v in seen.headers)]
                onward.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode() + seen.body)
                _relay(connection, onward)


def _relay(one: socket.socket, other: socket.socket) -> None:
    while True:
        ready, _, _ = select.select([one, other], [], [], PATIENCE)
        if not ready:
            return
        for source in ready:
            data = source.recv(65536)
            if not data:
                return
            (other if source is one else one).sendall(data)


@contextlib.contextmanager
def serving(*answers: Answer, context: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server(list(answers) or [answer()], context)
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def proxying(refuse: Answer | None = None) -> Iterator[Proxy]:
    proxy = Proxy()
    proxy.refuse = refuse
    try:
        yield proxy
    finally:
        proxy.stop()


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
