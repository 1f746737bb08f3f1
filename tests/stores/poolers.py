"""Poolers in front of PostgreSQL: a small one of our own, and PgBouncer where there is one."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Queue
from socket import IPPROTO_TCP, SHUT_RDWR, TCP_NODELAY, socket
from typing import NamedTuple

import psycopg

from tests.proxy import connected
from tests.stores.clusters import free_port, until
from tests.stores.ports import Port
from tests.stores.postgres_servers import server

__all__ = ["POOLERS", "PgBouncer", "Pooler"]

STARTUP = 196_608
PGBOUNCER = os.environ.get("TOKENFENCE_TEST_PGBOUNCER") or shutil.which("pgbouncer")
"""Where its program is, if there is one: no wheel brings it."""


class Message(NamedTuple):
    """One of PostgreSQL's protocol: what it is, and all of its bytes."""

    kind: bytes
    sent: bytes


class Pooler:
    """Each transaction has the next one of a few connections, as in PgBouncer's transaction mode.

    Args:
        connections: How many there are to the server.
    """

    def __init__(self, connections: int = 2) -> None:
        self._servers: Queue[socket] = Queue()
        self._sockets: list[socket] = []
        self._settings = b""
        for _ in range(connections):
            self._connect()
        self._port = Port(self._serve)
        self.url = f"postgresql://postgres@127.0.0.1:{self._port.number}/postgres"

    def close(self) -> None:
        self._port.close()
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(SHUT_RDWR)
            each.close()

    def _connect(self) -> None:
        pooled = connected(server(18).folder / ".s.PGSQL.5432")
        self._sockets.append(pooled)
        said = b"user\0postgres\0database\0postgres\0\0"
        pooled.sendall((8 + len(said)).to_bytes(4) + STARTUP.to_bytes(4) + said)
        settings = []
        while (message := _read(pooled)).kind != b"Z":
            if message.kind == b"S":
                settings.append(message.sent)
        self._settings = b"".join(settings)
        self._servers.put(pooled)

    def _serve(self, client: socket) -> None:
        client.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        self._sockets.append(client)
        with suppress(OSError), client:
            self._greet(client)
            message = _read(client)
            while message.kind != b"X":
                pooled = self._servers.get()
                try:
                    self._transact(client, message, pooled)
                finally:
                    self._servers.put(pooled)
                message = _read(client)

    def _greet(self, client: socket) -> None:
        while int.from_bytes((start := _start(client))[:4]) != STARTUP:
            assert len(start) == 4
            client.sendall(b"N")  # no TLS
        number = b"K" + (12).to_bytes(4) + (1 << 30).to_bytes(4) + bytes(4)
        allowed = b"R" + (8).to_bytes(4) + bytes(4)
        client.sendall(allowed + self._settings + number + b"Z" + (5).to_bytes(4) + b"I")

    def _transact(self, client: socket, message: Message, pooled: socket) -> None:
        """Pass on messages both ways until no transaction is open any more."""
        while True:
            pooled.sendall(message.sent)
            if message.kind in b"QS":  # the server says when it is done with it
                while (reply := _read(pooled)).kind != b"Z":
                    client.sendall(reply.sent)
                client.sendall(reply.sent)
                if reply.sent[-1:] == b"I":
                    return
            message = _read(client)


def _start(client: socket) -> bytes:
    """What a client says first, less its length."""
    return _all(client, int.from_bytes(_all(client, 4)) - 4)


def _read(source: socket) -> Message:
    head = _all(source, 5)
    return Message(head[:1], head + _all(source, int.from_bytes(head[1:]) - 4))


def _all(source: socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = source.recv(count - len(data))
        if not more:
            raise ConnectionError
        data += more
    return data


class PgBouncer:
    """The program, in one of its modes, with two connections to the server."""

    def __init__(self, mode: str) -> None:
        assert PGBOUNCER is not None
        folder, port = Path(tempfile.mkdtemp(prefix="tokenfence-pgbouncer-")), free_port()
        settings = folder / "pgbouncer.ini"
        settings.write_text(
            f"[databases]\npostgres = host={server(18).folder} user=postgres\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = any\npool_mode = {mode}\ndefault_pool_size = 2\n"
        )
        user = {}
        if os.geteuid() == 0:  # as which it does not run
            user["user"] = "pgserver"
            folder.chmod(0o755)
        self._folder = folder
        self._process = subprocess.Popen(
            [PGBOUNCER, str(settings)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **user,  # type: ignore[arg-type]
        )
        self.url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        until(self._answers)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder)

    def _answers(self) -> bool:
        with suppress(psycopg.OperationalError):
            psycopg.connect(self.url).close()
            return True
        return False


POOLERS: dict[str, Callable[[], Pooler | PgBouncer]] = {"ours": Pooler}
if PGBOUNCER:
    POOLERS["PgBouncer"] = lambda: PgBouncer("transaction")
