"""Batches of commands as pipelines of scripts to a Redis server."""

import json
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple
from weakref import finalize

import redis
from redis import exceptions

from tokenfence_integrations.errors import StoreError
from tokenfence_integrations.stores.base import (
    AccountState,
    Amount,
    Anchor,
    Charge,
    Path,
    Resolve,
    is_of,
)
from tokenfence_integrations.stores.redis.errors import failed, refused
from tokenfence_integrations.stores.redis.nodes import Nodes
from tokenfence_integrations.stores.redis.scripts import NAMES, WRITERS, scripts
from tokenfence_integrations.stores.remote.wire import (
    Answer,
    Batch,
    News,
    Order,
    Outcome,
    Unapplied,
    Unreachable,
    Wire,
    accounts_of,
    tree_of,
)

__all__ = ["RedisWire"]

DONE = Answer(True)
NOT_DONE = Answer(False)

REMEMBERED = 10_000
"""How many paths are kept with their keys."""


class RedisWire(Wire):
    """Batches as pipelines of ``EVALSHA``, on one connection for each server."""

    def __init__(self, nodes: Nodes, prefix: str) -> None:
        self.where = nodes.where
        self._nodes = nodes
        self._prefix = prefix
        self._connections: dict[Any, Any] = {}
        self._entitled: set[Any] = set()  # to which we are connected with all rights
        # Before a garbage collection finds their sockets, and warns that they are open.
        finalize(self, _disconnect, self._connections).atexit = False
        self._heads: dict[tuple[type[Any], Path, int], _Head] = {}
        self._scripts = scripts()

    def exchange(self, batch: Batch) -> Sequence[Outcome]:
        orders = batch.orders
        outcomes: list[Outcome] = [NOT_DONE] * len(orders)
        asked: dict[Any, list[tuple[int, bytes]]] = {}
        for index, base, command in self._commands(batch):
            pool = self._nodes.pool_of(base)
            if pool not in self._entitled:
                self._check_rights(pool, base)
            asked.setdefault(pool, []).append((index, command))
        for pool, commands in asked.items():
            replies = self._ask(pool, [command for _, command in commands])
            for (index, _), reply in zip(commands, replies, strict=True):
                if index >= 0:
                    outcomes[index] = DONE if reply == 1 else self._outcome(orders[index], reply)
        return outcomes

    def state(self, raw: str) -> AccountState:
        numbers = [None if number == "n" else int(number) for number in raw.split(" ")]
        return AccountState(*numbers)  # type: ignore[arg-type]

    def charges(self, account: str | None) -> tuple[Charge, ...]:
        if account is not None:
            bases = [self._base(tree_of(account))]
        else:
            bases = [
                key.removesuffix("charges") for key in self._keys(f"{self._prefix}{{*}}:charges")
            ]
        found = []
        for base in bases:
            pool = self._nodes.pool_of(base)
            [flat] = self._ask(pool, [_packed("HGETALL", f"{base}charges")])
            if isinstance(flat, Exception):
                raise flat
            tag = base[len(self._prefix) + 1 : -2]
            pairs = (
                flat if isinstance(flat, dict) else dict(zip(flat[::2], flat[1::2], strict=True))
            )
            for name, record in pairs.items():
                amount, at, what, _, charged = json.loads(record)
                names = tuple(json.loads(charged))
                if account is None or account in names:
                    parts = Amount(*map(int, amount.split(" ")))
                    found.append(Charge(f"{tag}:{name.decode()}", names, parts, float(at), what))
        return tuple(sorted(found, key=lambda charge: charge.at))

    def accounts(self, budget: str | None) -> Collection[str]:
        # A server keeps no list of keys: it is asked for all that it has, some at a time.
        base = f"{self._prefix}{{*}}:" if budget is None else _literal(self._base(tree_of(budget)))
        keys = self._keys(f"{base}account:*")
        names = {key.partition("}:account:")[2] for key in keys}
        return {name for name in names if budget is None or is_of(name, budget)}

    def listen(self) -> "_RedisEars":
        return _RedisEars(self)

    def close(self) -> None:
        _disconnect(self._connections)
        self._entitled.clear()

    def forget(self) -> None:
        # redis-py's connections know the process that made them, and close no other's.
        self._connections.clear()
        self._entitled.clear()
        self._heads.clear()

    # Commands

    def _commands(self, batch: Batch) -> Iterator[tuple[int, str, bytes]]:
        """For each script to run: which order's (-1: none's), where, and as it is sent."""
        for tree in batch.renew:
            head = self._head("renew", self._base(tree), batch)
            yield -1, head.base, head.with_(0)
        for index, order in enumerate(batch.orders):
            command = order.command
            kind = type(command)
            if kind is Resolve:
                tag = command.id.rpartition(":")[0]  # type: ignore[union-attr]
                if not tag:
                    continue  # no charge's id: there is none
                head = self._head("resolve", f"{self._prefix}{{{tag}}}:", batch)
            else:
                head = self._head_of(kind, accounts_of(command), batch)
            yield index, head.base, head.with_(order.number, *WRITERS[kind](command, head.names))

    def _head_of(self, kind: type[Any], path: Path, batch: Batch) -> "_Head":
        """What all commands of this kind on this path, and of this epoch, begin with."""
        key = kind, path, batch.epoch
        head = self._heads.get(key)
        if head is None:
            if len(self._heads) >= REMEMBERED:
                self._heads.clear()
            base = self._base(tree_of(path[-1]))
            head = self._heads[key] = self._head(NAMES[kind], base, batch, path)
        return head

    def _head(self, script: str, base: str, batch: Batch, path: Path = ()) -> "_Head":
        owner = batch.owner
        keys = [f"{base}owners", f"{base}held:{owner}", f"{base}seen:{owner}", f"{base}charges"]
        keys += [f"{base}account:{name}" for name in path]
        sha = self._scripts[script].sha
        parts = ["EVALSHA", sha, len(keys), *keys, owner, batch.lease, batch.epoch]
        return _Head(base, len(parts), _bulks(parts), json.dumps(path))

    def _base(self, tree: str) -> str:
        # A hash tag ends at its first brace, and an empty one is none.
        tag = tree.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
        return f"{self._prefix}{{{tag}}}:"

    def _outcome(self, order: Order, reply: Any) -> Outcome:
        """What a reply other than 1 says."""
        if isinstance(reply, Exception):
            return reply
        first, *lines = reply.decode().split("\n")
        if first[0] == "!":
            return KeyError(accounts_of(order.command)[int(first[1:]) - 1])
        if first == "<":
            return StoreError(self.where, "another store writes under this one's name")
        if type(order.command) is Anchor:
            return Answer(first == "1", (), float(lines[0]))
        return Answer(first == "1", tuple([line or None for line in lines]))

    # The connection

    def _ask(self, pool: Any, commands: Sequence[bytes]) -> list[Any]:
        """The replies of a server to a pipeline; `StoreError` for what it refused."""
        try:
            connection = self._connections.get(pool)
            if connection is None:
                connection = self._connect(pool)
            replies, errors = _pipeline(connection, commands)
            if not errors:
                return replies
            if any(isinstance(error, exceptions.NoScriptError) for error in errors):
                self._load_scripts(connection)
                if all(isinstance(reply, exceptions.NoScriptError) for reply in replies):
                    replies, _ = _pipeline(connection, commands)
            return [
                self._refused(reply) if isinstance(reply, exceptions.RedisError) else reply
                for reply in replies
            ]
        except (exceptions.RedisError, OSError) as error:
            self.close()
            self._nodes.moved()
            raise failed(self.where, error) from error
        except BaseException:
            self.close()
            raise

    def _connect(self, pool: Any) -> Any:
        connection = pool.connection_class(**pool.connection_kwargs)
        self._connections[pool] = connection
        connection.connect()
        return connection

    def _check_rights(self, pool: Any, base: str) -> None:
        """Before a script stops half way, and what it has written by then stays."""
        check = "EVALSHA", self._scripts["rights"].sha, 1, f"{base}rights"
        [reply] = self._ask(pool, [_packed(*check)])
        if isinstance(reply, Exception):
            raise reply
        self._entitled.add(pool)

    def _load_scripts(self, connection: Any) -> None:
        loads = [_packed("SCRIPT", "LOAD", script.source) for script in self._scripts.values()]
        _, errors = _pipeline(connection, loads)
        if errors:
            raise errors[0]

    def _keys(self, pattern: str) -> Iterator[str]:
        """The keys like a pattern that begins with the store's prefix; some may come twice."""
        for pool in self._nodes.pools():
            cursor = "0"
            while True:
                scan = "SCAN", cursor, "MATCH", pattern, "COUNT", 1000
                [reply] = self._ask(pool, [_packed(*scan)])
                if isinstance(reply, Exception):
                    raise reply
                cursor, keys = reply[0].decode(), reply[1]
                yield from [key.decode() for key in keys]
                if cursor == "0":
                    break

    def _refused(self, error: exceptions.RedisError) -> Exception:
        """What a server's error reply to one command means; raises where it concerns them all."""
        if isinstance(error, exceptions.NoScriptError):
            return Unapplied()
        meaning = refused(self.where, error, is_cluster=self._nodes.is_cluster)
        if isinstance(meaning, Unreachable):
            self._nodes.moved()
            raise meaning
        return meaning


class _RedisEars:
    """A connection that is subscribed to the channels of trees."""

    def __init__(self, wire: RedisWire) -> None:
        self._wire = wire
        self._trees: dict[str, str] = {}  # by channel
        self._pool = wire._nodes.any_pool()  # of a cluster any will do: each tells the others
        client: Any = redis.Redis(connection_pool=self._pool)
        self._pubsub = client.pubsub()

    def hear(self, trees: frozenset[str], seconds: float) -> News:
        if self._pool not in self._wire._nodes.pools():
            raise Unreachable("another server has taken its place")
        channels = {f"{self._wire._base(tree)}freed": tree for tree in trees}
        try:
            if new := [channel for channel in channels if channel not in self._trees]:
                self._pubsub.subscribe(*new)
            if gone := [channel for channel in self._trees if channel not in channels]:
                self._pubsub.unsubscribe(*gone)
            self._trees = channels
            news = News()
            message = self._pubsub.get_message(timeout=seconds)
            while message is not None:
                tree = channels.get(message["channel"].decode(), "")
                if message["type"] == "subscribe":  # room made before that was not told
                    news.add(tree)
                elif message["type"] == "message":
                    account = message["data"].decode()
                    news.add(tree, [account] if account else None)
                message = self._pubsub.get_message(timeout=0)
            return news
        except (exceptions.RedisError, OSError) as error:
            raise failed(self._wire.where, error) from error

    def close(self) -> None:
        self._pubsub.close()


def _disconnect(connections: dict[Any, Any]) -> None:
    while connections:
        connections.popitem()[1].disconnect()


def _pipeline(connection: Any, commands: Sequence[bytes]) -> tuple[list[Any], list[Exception]]:
    """Send all commands, and read all replies; errors are replies, and told of besides."""
    connection.send_packed_command([b"".join(commands)])
    replies: list[Any] = []
    errors: list[Exception] = []
    for _ in commands:
        try:
            replies.append(connection.read_response(disable_decoding=True))
        except exceptions.ConnectionError:
            raise
        except exceptions.ResponseError as error:
            replies.append(error)
            errors.append(error)
    return replies, errors


# Commands as they are sent. redis-py does it as well, but anew for each of twenty parts, of which
# most are the same as the last time.


class _Head(NamedTuple):
    """The first parts of a command.

    Attributes:
        base: What the keys begin with.
        parts: How many they are.
        sent: The parts as they are sent.
        names: The accounts, as JSON.
    """

    base: str
    parts: int
    sent: str
    names: str

    def with_(self, *parts: Any) -> bytes:
        """The whole command, with these as its last parts."""
        return f"*{self.parts + len(parts)}\r\n{self.sent}{_bulks(parts)}".encode()


def _literal(text: str) -> str:
    """A pattern that nothing but this text is like."""
    return re.sub(r"([*?\[\]\\^])", r"\\\1", text)


def _packed(*parts: Any) -> bytes:
    return _Head("", 0, "", "").with_(*parts)


def _bulks(parts: Sequence[Any]) -> str:
    sent = ""
    for part in parts:
        text = str(part)
        size = len(text) if text.isascii() else len(text.encode())
        sent += f"${size}\r\n{text}\r\n"
    return sent
