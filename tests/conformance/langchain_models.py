"""LangChain's own test suite for chat models, ready for models that are plain or guarded.

What the suite asks of a model is written by LangChain; here is only what a model is, which server
answers it, and the one hook `stand_in` that makes the difference between plain and guarded.
"""

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import openai
import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.load import dumpd
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.integration_tests import chat_models as suite
from langchain_tests.unit_tests import ChatModelUnitTests

from tests.clients.helpers import check_books
from tokenfence_integrations import Budget, guard
from tokenfence_integrations.testing import Behavior, Request, SimulatedProvider, ToolCall

KEYS = {"api_key": "unused"}
"""What any provider's model can be made with, beside its name."""


class GuardedClass:
    """Stands in for a chat model's class: what it makes is guarded; else it is the guarded class.

    Args:
        cls: The class.
        budget: What its models' calls count against.
        model: A name of a model of its provider.
    """

    def __init__(self, cls: Any, budget: Budget, model: str) -> None:
        self._made_of = cls
        self._budget = budget
        self._model = model

    def __call__(self, **params: Any) -> Any:
        return guard(self._made_of(**params), budget=self._budget)

    def __getattr__(self, name: str) -> Any:
        return getattr(type(self(model=self._model, **KEYS)), name)


class Plain:
    """The models as they are."""

    def stand_in(self, cls: Any, model: str) -> Any:
        """What the suite takes for the class of its models."""
        return cls

    def check(self, provider: SimulatedProvider) -> None:
        """What has to hold after each test with a server."""
        provider.idle()


class Guarded(Plain):
    """The models with a budget around them, whose books must be the bill after every test."""

    @pytest.fixture(autouse=True)
    def open_budget(self) -> None:
        self.budget = Budget("$1000")

    def stand_in(self, cls: Any, model: str) -> Any:
        return GuardedClass(cls, self.budget, model)

    def check(self, provider: SimulatedProvider) -> None:
        check_books(self.budget, provider)


class _Unit(ChatModelUnitTests, Plain):
    """The suite's tests without a server."""

    @pytest.fixture
    def snapshot(self) -> Callable[..., Any]:
        """Nothing stored: what the plain model serializes to, made on the spot."""
        params = {**self.standard_chat_model_params, **self.chat_model_params}
        plain = dumpd(self.bare_class(**params))
        return lambda name: plain

    @pytest.fixture
    def benchmark(self, benchmark: Any) -> Any:
        """Once is enough here; `make bench` measures."""
        benchmark.disabled = True
        return benchmark


class OpenAIUnit(_Unit):
    """The suite's tests of ChatOpenAI without a server."""

    bare_class = ChatOpenAI

    @property
    def chat_model_class(self) -> Any:
        return self.stand_in(ChatOpenAI, "gpt-4o")

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "gpt-4o", "api_key": "test"}

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        params = super().standard_chat_model_params
        return {name: value for name, value in params.items() if name != "api_key"}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        environment = {
            "OPENAI_API_KEY": "from the environment",
            "OPENAI_ORG_ID": "an organization",
            "OPENAI_API_BASE": "http://127.0.0.1:1/v1",
        }
        expected = {
            "openai_api_key": "from the environment",
            "openai_organization": "an organization",
            "openai_api_base": "http://127.0.0.1:1/v1",
        }
        return environment, {}, expected


# The suite asks for every method of structured output, and Anthropic has one less.
@pytest.mark.filterwarnings("ignore:Unrecognized structured output method 'json_mode':UserWarning")
class AnthropicUnit(_Unit):
    """The suite's tests of ChatAnthropic without a server."""

    bare_class = ChatAnthropic

    @property
    def chat_model_class(self) -> Any:
        return self.stand_in(ChatAnthropic, "claude-sonnet-4-5")

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "claude-sonnet-4-5", "api_key": "test"}

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        params = super().standard_chat_model_params
        return {name: value for name, value in params.items() if name != "api_key"}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        environment = {"ANTHROPIC_API_KEY": "from the environment"}
        expected = {"anthropic_api_key": "from the environment"}
        return environment, {"model": "claude-sonnet-4-5"}, expected


# The suite's PDFs have no name, and one of its schemas is of pydantic 1.
@pytest.mark.filterwarnings("ignore:OpenAI may require a filename:UserWarning")
@pytest.mark.filterwarnings("ignore:Received a Pydantic BaseModel V1 schema:UserWarning")
# langchain-openai dumps the SDK's parsed reply, whose declared type leaves the parsed object out.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")
class OpenAIIntegration(ChatModelIntegrationTests, Plain):
    """The suite's tests of ChatOpenAI with the simulated provider, all of them: none is skipped."""

    options: ClassVar[Mapping[str, Any]] = {}
    """What the models are made with, beside what every one of them needs."""

    @pytest.fixture(autouse=True)
    async def server(self) -> AsyncIterator[None]:
        """A server, and HTTP clients of this test's own: LangChain's outlive the test's loop."""
        with (
            SimulatedProvider(script=answer) as provider,
            openai.DefaultHttpxClient(verify=False) as http_client,
        ):
            async with openai.DefaultAsyncHttpxClient(verify=False) as http_async_client:
                self.provider = provider
                self.http = {"http_client": http_client, "http_async_client": http_async_client}
                yield
                self.check(provider)

    @pytest.fixture(autouse=True)
    def files_at_hand(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The pictures, sounds and documents that the suite would download."""
        monkeypatch.setenv("LANGCHAIN_TESTS_USER_AGENT", "none: nothing is downloaded")
        file = SimpleNamespace(content=b"The contents of a file.")
        monkeypatch.setattr(suite, "httpx", SimpleNamespace(get=lambda url, **_: file))

    @pytest.fixture
    def vcr(self) -> SimpleNamespace:
        """No recorded answers: the server is there."""
        return SimpleNamespace(responses=["as if recorded"])

    @pytest.fixture
    def benchmark(self, benchmark: Any) -> Any:
        benchmark.disabled = True
        return benchmark

    @property
    def chat_model_class(self) -> Any:
        return self.stand_in(ChatOpenAI, "gpt-4o")

    @property
    def chat_model_params(self) -> dict[str, Any]:
        # Streams of other servers than OpenAI's tell their usage only when asked to.
        base = {"model": "gpt-4o", "base_url": self.provider.base_url, "stream_usage": True}
        return {**KEYS, **base, **self.http, **self.options}

    @property
    def model_override_value(self) -> str:
        return "gpt-4o-mini"

    @property
    def enable_vcr_tests(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_image_urls(self) -> bool:
        return True

    @property
    def supports_pdf_inputs(self) -> bool:
        return True

    @property
    def supports_audio_inputs(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def supports_image_tool_message(self) -> bool:
        return True

    @property
    def supports_pdf_tool_message(self) -> bool:
        return True

    @property
    def supported_usage_metadata_details(self) -> Any:
        return {
            "invoke": ["reasoning_output", "cache_read_input"],
            "stream": ["reasoning_output", "cache_read_input"],
        }

    def invoke_with_reasoning_output(self, *, stream: bool = False) -> AIMessage:
        self.provider.script = None
        self.provider.behave(reasoning_tokens=7)
        return self._invoke(stream)

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        self.provider.script = None
        self.provider.behave(cached_tokens=3)
        return self._invoke(stream)

    def _invoke(self, stream: bool) -> AIMessage:
        model = self.chat_model_class(**self.chat_model_params)
        if not stream:
            reply: AIMessage = model.invoke("Why is the sky blue?")
            return reply
        chunks: Iterator[AIMessageChunk] = model.stream("Why is the sky blue?")
        whole = next(chunks)
        for chunk in chunks:
            whole += chunk
        return whole


# What the suite wants its tools to be called with.
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "greeting_generator": {"answer_style": "pirate"},
    "magic_function": {"input": 3},
}
_JOKE = json.dumps({"setup": "Why do cats purr?", "punchline": "Nobody can know."})


def answer(request: Request) -> Behavior | ToolCall | str | None:
    """What a model would say to the suite's questions, where any answer will not do."""
    body = request.body
    tools = [tool.get("function", tool)["name"] for tool in body.get("tools") or ()]
    form = body.get("response_format") or (body.get("text") or {}).get("format") or {}
    if form.get("type") == "json_object":
        return _JOKE
    if tools == ["get_weather"] and not request.tool_results:
        return ToolCall("get_weather", {"location": "San Francisco"})
    if tools == ["unicode_customer"]:
        asked = json.dumps(body.get("messages") or body["input"], ensure_ascii=False)
        found = re.search(r"named '(.+?)'", asked)
        assert found is not None
        name = {"customer_name": found.group(1), "description": "A company"}
        return ToolCall("unicode_customer", name)
    for name, arguments in _ARGUMENTS.items():
        if name in tools:
            return Behavior(tool_arguments=arguments)
    return None
