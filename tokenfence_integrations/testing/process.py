"""The simulated provider in a process of its own, where it takes no time from the caller."""

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from tokenfence_integrations.testing.billing import BillLine, Rate
from tokenfence_integrations.testing.script import Behavior

_MODULE = "tokenfence_integrations.testing"


class SpawnedProvider:
    """A simulated provider in another process, seen over HTTP.

    Args:
        port: Where it listens on 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        self._port = port

    @property
    def url(self) -> str:
        """The server's root, as in `AzureOpenAI(azure_endpoint=provider.url)`."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def base_url(self) -> str:
        """What `OpenAI(base_url=...)` takes."""
        return f"{self.url}/v1"

    @property
    def requests(self) -> int:
        """HTTP requests received, those for the bill apart."""
        return int(self._ask("GET")["requests"])

    @property
    def peak(self) -> int:
        """The most requests that were worked on at the same time."""
        return int(self._ask("GET")["peak"])

    @property
    def bill(self) -> list[BillLine]:
        """What was charged so far, in order."""
        return [BillLine(**line) for line in self._ask("GET")["lines"]]

    @property
    def billed(self) -> int:
        """The bill's total in nano-dollars."""
        return int(self._ask("GET")["billed"])

    def clear(self) -> None:
        """Empty the bill and everything stored, and set the counts to 0."""
        self._ask("DELETE")

    def _ask(self, method: str) -> dict[str, Any]:
        # http.client, because it knows no proxies.
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request(method, "/bill")
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
            return answer
        finally:
            connection.close()


@contextmanager
def spawn_provider(
    behavior: Behavior | None = None,
    *,
    script: str | None = None,
    prices: Mapping[str, tuple[Rate, Rate]] | None = None,
    allow_unknown_models: bool = False,
    **changes: Any,
) -> Iterator[SpawnedProvider]:
    """Run a simulated provider as a separate process while the block lasts.

    It ends with the block, and also when this process dies.

    Args:
        behavior: How requests are answered. Default `Behavior()`.
        script: "package.module:function", a `Script` that the other process imports. Default None.
        prices: Own models: (input, output) in $ per million tokens. Default none.
        allow_unknown_models: Answer models without a price, at $1 per million tokens.
        **changes: Fields of `Behavior`, instead of those of `behavior`.

    Yields:
        A `SpawnedProvider`.

    Raises:
        RuntimeError: The process did not start; its own message is on standard error.

    Example:
        >>> import openai
        >>> with spawn_provider(output_tokens=50) as provider:
        ...     client = openai.OpenAI(base_url=provider.base_url, api_key="unused")
    """
    # Bad values are refused here rather than in the other process.
    fields = asdict(replace(behavior or Behavior(), **changes))
    command = [sys.executable, "-m", _MODULE, "--behavior", json.dumps(fields)]
    if prices:
        rates = {name: [str(rate) for rate in pair] for name, pair in prices.items()}
        command += ["--prices", json.dumps(rates)]
    if script:
        command += ["--script", script]
    if allow_unknown_models:
        command.append("--allow-unknown-models")
    # The child ends when its standard input does: closed here, or by the system when we die.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            announced = process.stdout.readline().decode()
            if not announced:
                raise RuntimeError(f"The simulated provider did not start: {' '.join(command)}")
            yield SpawnedProvider(int(announced.rpartition(":")[2].removesuffix("/v1\n")))
        finally:
            process.stdin.close()
