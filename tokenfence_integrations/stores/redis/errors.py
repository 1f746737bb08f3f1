"""What the errors of a Redis server mean, and what to do about them."""

import re

from redis import exceptions

from tokenfence_integrations.errors import StoreError
from tokenfence_integrations.stores.remote.wire import Unreachable

__all__ = ["code_of", "failed", "refused"]

_CODES: dict[type[Exception], str] = {
    exceptions.OutOfMemoryError: "OOM",
    exceptions.ReadOnlyError: "READONLY",
    exceptions.BusyLoadingError: "LOADING",
    exceptions.NoPermissionError: "NOPERM",
    exceptions.AuthenticationError: "NOAUTH",
    exceptions.MovedError: "MOVED",
    exceptions.AskError: "ASK",
    exceptions.TryAgainError: "TRYAGAIN",
    exceptions.ClusterDownError: "CLUSTERDOWN",
    exceptions.MasterDownError: "MASTERDOWN",
}

_FOR_A_WHILE = {
    "LOADING": "it is still loading its data; this ends by itself",
    "BUSY": "a script of another client keeps it busy; SCRIPT KILL ends that",
    "READONLY": "it is a replica, which cannot be written; give the address of the primary",
    "NOREPLICAS": "it has too few replicas to be written (min-replicas-to-write)",
    "MOVED": "its keys have moved to another server",
    "ASK": "its keys are moving to another server",
    "TRYAGAIN": "its keys are moving to another server",
    "CLUSTERDOWN": "its cluster does not serve all keys",
    "MASTERDOWN": "it is a replica whose primary is down",
    "UNBLOCKED": "it has just become a replica",
}

_OF_CLUSTERS = {"MOVED", "ASK", "TRYAGAIN"}

_IN_SCRIPTS = {
    "ACL failure": "NOPERM",
    "user executing the script": "NOPERM",  # Redis 6.2
    "a non local key": "TRYAGAIN",
}
"""By words of what is said of a command within a script without a code, the code."""

_FOR_SOMEBODY = {
    "OOM": "its memory is full: raise its maxmemory, or delete what is not needed",
    "MISCONF": "it cannot save its data to its disk; see its log",
    "NOAUTH": "it needs a user or a password, or different ones: redis://user:password@host:port/0",
    "WRONGPASS": "it rejects this user or password: redis://user:password@host:port/0",
    "NOPERM": (
        "this user lacks rights: it needs EVALSHA, SCRIPT LOAD, what the scripts do (hashes, "
        "sorted sets, GET, SET, EXISTS, DEL, EXPIRE, TIME, PUBLISH), SUBSCRIBE, UNSUBSCRIBE and "
        "SCAN, and the keys and channels of its prefix; docs/stores.md lists them as an ACL command"
    ),
    "WRONGTYPE": "its keys are used by something else: give RedisStore another prefix",
}


def refused(where: str, error: Exception, *, is_cluster: bool) -> StoreError | Unreachable:
    """What an error means that a server answered to one command.

    Args:
        where: The server.
        error: As redis-py made it.
        is_cluster: Whether a cluster was given, in which keys can move.
    """
    code = code_of(error)
    if code in _OF_CLUSTERS and not is_cluster:
        return StoreError(where, f"it is part of a cluster: give a redis.RedisCluster ({error})")
    if code in _FOR_A_WHILE:
        return Unreachable(f"{_FOR_A_WHILE[code]} ({error})")
    return StoreError(where, f"{_FOR_SOMEBODY.get(code, 'it answers with an error')} ({error})")


def failed(where: str, error: Exception) -> StoreError | Unreachable:
    """What an error means that ended a connection, or forbade one."""
    if code_of(error):
        return refused(where, error, is_cluster=True)
    if "certificate" in str(error).lower():
        return StoreError(where, f"its certificate, or the client's, is not accepted ({error})")
    # Neither of two that do not both speak TLS says so.
    if isinstance(error, exceptions.TimeoutError):
        doubt = ", or without TLS on this port" if where.startswith("rediss:") else ""
        return Unreachable(f"it does not answer ({error}); is it stopped, or overloaded{doubt}?")
    doubt = ", and without TLS (rediss:// uses TLS)" if where.startswith("redis:") else ""
    return Unreachable(f"it cannot be reached ({error}); is it running, at this address{doubt}?")


def code_of(error: BaseException) -> str:
    """The first word of a server's error, which redis-py takes away where it knows it."""
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            return code
    # In the error of a script it stands within the text, with older servers.
    found = re.search(rf"(?:^|-)({'|'.join([*_FOR_A_WHILE, *_FOR_SOMEBODY])})\b", str(error))
    if found:
        return found[1]
    return next((code for words, code in _IN_SCRIPTS.items() if words in str(error)), "")
