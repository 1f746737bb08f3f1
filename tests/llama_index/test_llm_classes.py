"""Every class of LLMs: whose prices count, what is sent, how often is reserved, who reads tools."""

import copy
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.llms import LLM, CustomLLM, MockLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools import FunctionTool
from llama_index.llms.anthropic import Anthropic
from llama_index.llms.openai import OpenAI
from llama_index.llms.openai_like import OpenAILike
from pydantic import Field, PrivateAttr

from tests.clients.anthropic_server import COST, Server, tool_use
from tests.clients.helpers import check_books, check_covered, outcomes, scripted_client, sync_client
from tests.llama_index import models
from tests.llama_index.models import WAYS, ask
from tokenfence_integrations import (
    Budget,
    BudgetExceeded,
    Price,
    UnknownModelError,
    UnmeteredError,
    guard,
)
from tokenfence_integrations.llama_index import BudgetedLLM
from tokenfence_integrations.testing import SimulatedProvider, ToolCall, in_turn

Make = Callable[..., Any]

LONG = "word " * 400
PRICES = {"local": Price(input="$1/M", output="$10/M", max_output_tokens=1_000)}


def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


def tools() -> list[FunctionTool]:
    return [FunctionTool.from_defaults(multiply)]


def spend(budget: Budget) -> None:
    """Make a threshold of nothing be passed."""
    budget.reserve(model="gpt-4o", input_tokens=1, max_output_tokens=1).admit().lose()


class Elsewhere(OpenAI):
    """A class of a user's own, which gets its answers past OpenAI's client."""

    def chat(self, messages: Any, **kwargs: Any) -> Any:
        usage = {"prompt_tokens": 9, "completion_tokens": 5}
        return ChatResponse(message=ChatMessage("hi", role="assistant"), raw={"usage": usage})


def test_a_class_that_calls_something_else_is_metered_all_the_same(budget: Budget) -> None:
    guard(Elsewhere(model="gpt-4o", api_key="none"), budget=budget).chat([ChatMessage("Why?")])

    [record] = budget.ledger
    assert record.outcome == "settled"
    assert record.usage is not None
    assert record.usage[:2] == (9, 5)


# Anthropic


@pytest.mark.parametrize("way", WAYS)
async def test_anthropics_books_tell_cached_tokens_apart(
    way: str, server: Server, budget: Budget
) -> None:
    plain = models.anthropic_llm(server)
    llm = guard(plain, budget=budget)

    answer = await ask(llm, way, LONG)

    assert isinstance(llm, Anthropic)
    assert outcomes(budget) == ["settled"]
    assert budget.snapshot().spent.usd == server.billed == COST
    unguarded = await ask(plain, way, LONG)
    assert type(answer) is type(unguarded)
    assert answer == unguarded
    assert server.bodies[0] == server.bodies[1]


@pytest.mark.parametrize("way", WAYS)
async def test_each_retry_of_anthropics_sdk_is_an_attempt(
    way: str, server: Server, budget: Budget
) -> None:
    server.turns = [500, 429, 200]

    await ask(guard(models.anthropic_llm(server, max_retries=2), budget=budget), way)

    assert outcomes(budget) == ["uncertain", "released", "settled"]
    assert len(server.bodies) == 3
    assert budget.ledger[0].uncertain == budget.ledger[0].bound
    assert budget.snapshot().spent.usd == COST
    assert budget.reserved == 0


@pytest.mark.parametrize("way", WAYS)
async def test_a_retry_that_does_not_fit_is_not_made(way: str, server: Server) -> None:
    server.turns = [500, 200]
    budget = Budget("$0.02")  # for one of some $0.013

    answer = await ask(guard(models.anthropic_llm(server, max_retries=2), budget=budget), way, LONG)

    assert answer.raw["finish_reason"] == "budget_exceeded"
    assert len(server.bodies) == 1
    assert outcomes(budget) == ["uncertain"]


async def test_failures_to_connect_to_anthropic_are_free(server: Server, budget: Budget) -> None:
    server.turns = [httpx2.ConnectError("refused")]
    llm = guard(models.anthropic_llm(server, max_retries=1), budget=budget)

    for way in ("chat", "astream_chat"):
        with pytest.raises(anthropic.APIConnectionError):
            await ask(llm, way)

    assert outcomes(budget) == ["released"] * 4


@pytest.mark.parametrize("way", WAYS)
async def test_what_fails_before_anything_is_sent_is_free(
    way: str, server: Server, budget: Budget
) -> None:
    with pytest.raises(TypeError):
        await ask(guard(models.anthropic_llm(server), budget=budget), way, no_such_option=1)

    assert server.bodies == []
    assert outcomes(budget) == ["released"]


async def test_anthropic_is_capped(server: Server) -> None:
    llm = guard(models.anthropic_llm(server, max_tokens=64_000), budget="$0.01")
    await ask(llm, "chat", "hello")
    assert 0 < server.bodies[0]["max_tokens"] < 700

    llm = guard(models.anthropic_llm(server), budget="$0.01")
    await ask(llm, "achat", "hello", max_tokens=50_000)
    assert 0 < server.bodies[1]["max_tokens"] < 700

    extra = models.anthropic_llm(server, additional_kwargs={"max_tokens": 60_000})
    await ask(guard(extra, budget="$0.01"), "chat", "hello")
    assert 0 < server.bodies[2]["max_tokens"] < 700
    assert extra.additional_kwargs == {"max_tokens": 60_000}


async def test_anthropics_tools(server: Server, budget: Budget) -> None:
    server.turns = [[tool_use("multiply", a=6, b=7)]]
    llm = guard(models.anthropic_llm(server), budget=budget)

    for answer in (
        llm.chat_with_tools(tools(), "6 times 7?"),
        await llm.achat_with_tools(tools(), "6 times 7?"),
        [*llm.stream_chat_with_tools(tools(), "6 times 7?")][-1],
    ):
        (called,) = llm.get_tool_calls_from_response(answer)
        assert (called.tool_name, called.tool_kwargs) == ("multiply", {"a": 6, "b": 7})
    assert outcomes(budget) == ["settled"] * 3
    assert budget.snapshot().spent.usd == 3 * COST


# Over providers


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("turned", [False, True])
async def test_another_provider_takes_over(
    way: str, turned: bool, make: Make, server: Server, provider: SimulatedProvider
) -> None:
    budget = Budget("$1")
    if turned:
        other = make(models.openai_llm, model="gpt-4o-mini")
        llm = guard(models.anthropic_llm(server), budget=budget, fallback=other, threshold=0.0)
    else:
        other = models.anthropic_llm(server, model="claude-haiku-4-5")
        llm = guard(make(models.openai_llm), budget=budget, fallback=other, threshold=0.0)
    spend(budget)

    answer = await ask(llm, way, max_tokens=30)

    assert type(answer).__name__.endswith(type(await ask(other, way)).__name__)
    provider.idle()
    theirs = provider.bill[0].cost if turned else COST // 3
    assert budget.snapshot().spent.usd == theirs
    assert [record.outcome for record in budget.ledger][1:] == ["settled"]
    assert budget.ledger[-1].model == other.model
    sent = provider.received[0].body if turned else server.bodies[0]
    assert sent["max_tokens"] in (30, models.CAP)


@pytest.mark.filterwarnings("ignore:.*(__|model_).*:DeprecationWarning")  # of its agents
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("turned", [False, True])
async def test_an_agent_goes_on_with_another_provider(
    streaming: bool, turned: bool, make: Make, server: Server, provider: SimulatedProvider
) -> None:
    provider.behave(output_tokens=200)
    text = [{"type": "text", "text": "It is 42."}]
    if turned:
        server.turns = [[tool_use("multiply", a=6, b=7)]]
        provider.script = in_turn(ToolCall("multiply", {"a": 1, "b": 42}), "It is 42.")
        first = models.anthropic_llm(server)
        other = make(models.openai_llm, model="gpt-4o-mini", max_tokens=200)
    else:
        provider.script = in_turn(ToolCall("multiply", {"a": 6, "b": 7}))
        server.turns = [[tool_use("multiply", a=1, b=42)], text]
        first = make(models.openai_llm, max_tokens=200)
        other = models.anthropic_llm(server, model="claude-haiku-4-5")
    budget = Budget("$1")
    llm = guard(first, budget=budget, fallback=other, threshold=0.000001)
    agent = FunctionAgent(tools=tools(), llm=llm, streaming=streaming)

    answer = await agent.run("6 times 7?")

    assert str(answer) == "It is 42."
    assert [str(call.tool_output) for call in answer.tool_calls] == ["42", "42"]
    provider.idle()
    assert (provider.requests, len(server.bodies)) == ((2, 1) if turned else (1, 2))
    # The smaller Claude costs a third.
    theirs = COST if turned else 2 * COST // 3
    assert budget.snapshot().spent.usd == provider.billed + theirs
    assert outcomes(budget) == ["settled"] * 3


def test_the_narrowest_of_a_chain_is_told(make: Make, server: Server, budget: Budget) -> None:
    wide = models.anthropic_llm(server, model="claude-sonnet-4-6")
    assert wide.metadata.context_window == 1_000_000
    small = make(models.openai_like, model="small")
    prices = {"small": Price(input=0, output=0)}
    llm = guard(wide, budget=budget, fallback=[make(models.openai_llm), small], prices=prices)

    told = llm.metadata

    assert told.context_window == 3_900  # what LlamaIndex takes for an OpenAILike
    assert not told.is_function_calling_model
    assert told.model_name == wide.model
    assert told.is_chat_model


# Anything else


class Parrot(CustomLLM):
    """Answers with its prompt; LlamaIndex's own methods come down to two of it."""

    model: str = "local"
    calls: list[str] = Field(default_factory=list)
    raw: Any = None

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name=self.model)

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        self.calls.append("complete")
        return CompletionResponse(text=prompt, raw=self.raw)

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        self.calls.append("stream_complete")
        for end in range(1, len(prompt) + 1):
            yield CompletionResponse(text=prompt[:end], delta=prompt[end - 1], raw=self.raw)


@pytest.mark.parametrize("way", WAYS)
async def test_nested_methods_reserve_once(way: str) -> None:
    plain = Parrot(raw={"usage": {"prompt_tokens": 9, "completion_tokens": 5}})
    budget = Budget("$1")

    answer = await ask(guard(plain, budget=budget, prices=PRICES), way)

    assert answer == await ask(plain, way)
    assert outcomes(budget) == ["settled"]
    assert budget.snapshot().spent.usd == 9 * 1_000 + 5 * 10_000
    assert len(plain.calls) == 2


@pytest.mark.parametrize("way", WAYS)
async def test_without_a_usage_the_outcome_is_uncertain(way: str) -> None:
    budget = Budget("$1")

    await ask(guard(Parrot(), budget=budget, prices=PRICES), way)

    record = budget.ledger[0]
    assert (record.outcome, record.uncertain) == ("uncertain", record.bound)
    assert budget.reserved == 0


@pytest.mark.parametrize("way", WAYS)
async def test_a_model_without_a_price_is_refused(way: str) -> None:
    budget = Budget("$1")
    for plain in (Parrot(), MockLLM()):
        with pytest.raises(UnknownModelError):
            await ask(guard(plain, budget=budget), way)
    assert outcomes(budget) == []


@pytest.mark.parametrize("way", WAYS)
async def test_mock_llm(way: str) -> None:
    plain = MockLLM(max_tokens=5)
    budget = Budget("$1")
    llm = guard(plain, budget=budget, prices={"MockLLM": PRICES["local"]})

    assert await ask(llm, way) == await ask(plain, way)

    assert outcomes(budget) == ["uncertain"]
    assert isinstance(llm, MockLLM)
    assert budget.ledger[0].uncertain < 6 * 10_000 + 1_000_000


class Own(FunctionCallingLLM):
    """A function-calling LLM of one's own, which keeps its tool calls its own way."""

    model: str = "local"
    max_retries: int = 0
    _asked: int = PrivateAttr(default=0)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name=self.model, is_function_calling_model=True)

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[Any],
        user_msg: Any = None,
        chat_history: Any = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        named = [tool.metadata.name for tool in tools]
        return {"messages": [*(chat_history or []), ChatMessage(user_msg)], "my_tools": named}

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        return [ToolSelection(tool_id="1", **call) for call in response.additional_kwargs["mine"]]

    def chat(self, messages: Any, my_tools: Any = (), **kwargs: Any) -> ChatResponse:
        self._asked += 1
        mine = [{"tool_name": name, "tool_kwargs": {"a": 6, "b": 7}} for name in my_tools]
        return ChatResponse(
            message=ChatMessage(role=MessageRole.ASSISTANT, content="hello"),
            additional_kwargs={"mine": mine, "prompt_tokens": 9, "completion_tokens": 5},
        )

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text=self.chat([ChatMessage(prompt)]).message.content or "")

    def stream_chat(self, messages: Any, **kwargs: Any) -> Any:
        yield self.chat(messages, **kwargs)

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        yield self.complete(prompt)

    async def achat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        return self.chat(messages, **kwargs)

    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        return self.complete(prompt)

    async def astream_chat(self, messages: Any, **kwargs: Any) -> Any:
        async def gen() -> Any:
            yield self.chat(messages, **kwargs)

        return gen()

    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        async def gen() -> Any:
            yield self.complete(prompt)

        return gen()


async def test_a_function_calling_llm_of_ones_own(budget: Budget) -> None:
    llm = guard(Own(), budget=budget, prices=PRICES)

    answer = await llm.achat_with_tools(tools(), "6 times 7?")
    (called,) = llm.get_tool_calls_from_response(answer)
    result = llm.predict_and_call(tools(), "6 times 7?")

    assert isinstance(llm, FunctionCallingLLM)
    assert called.tool_kwargs == {"a": 6, "b": 7}
    assert str(result) == "42"
    assert outcomes(budget) == ["settled"] * 2
    assert budget.snapshot().spent.usd == 2 * (9 * 1_000 + 5 * 10_000)
    assert llm._asked == 2


def test_retries_that_nobody_sees_are_told_or_refused(
    caplog: pytest.LogCaptureFixture, server: Server, make: Make
) -> None:
    guard(Own(max_retries=3), budget="$1", prices=PRICES)
    assert "max_retries=3" in caplog.text
    with pytest.raises(UnmeteredError, match="max_retries=3"):
        guard(Own(max_retries=3), budget="$1", prices=PRICES, strict=True)
    with pytest.raises(UnmeteredError, match="max_retries=3"):
        guard(Own(), budget="$1", prices=PRICES, strict=True, fallback=Own(max_retries=3))

    caplog.clear()
    guard(Own(max_retries=0), budget="$1", prices=PRICES, strict=True)
    guard(models.anthropic_llm(server, max_retries=3), budget="$1", strict=True)
    guard(make(models.openai_llm, max_retries=3), budget="$1", strict=True)
    assert caplog.text == ""


# OpenAI's options


async def test_openai_like_of_an_unknown_name_needs_a_price(make: Make) -> None:
    provider_prices = {"llama-3-local": PRICES["local"]}
    with SimulatedProvider(prices={"llama-3-local": (1, 10)}) as provider:
        plain = models.openai_like(provider.base_url, model="llama-3-local")
        with pytest.raises(UnknownModelError):
            guard(plain, budget="$1").complete("Why?")
        budget = Budget("$1")
        llm = guard(plain, budget=budget, prices=provider_prices)
        for way in WAYS:
            await ask(llm, way)
        assert isinstance(llm, OpenAILike)
        check_books(budget, provider, records=8)
        await models.close(plain)


async def test_a_model_for_one_call(
    make: Make, budget: Budget, provider: SimulatedProvider
) -> None:
    for kind in (models.openai_llm, models.openai_like):
        llm = guard(make(kind), budget=budget)
        for way in WAYS:
            await ask(llm, way, model="gpt-4o-mini")

    assert {line.model for line in provider.bill} == {"gpt-4o-mini"}
    assert {record.model for record in budget.ledger} == {"gpt-4o-mini"}
    check_books(budget, provider, records=16)


@pytest.mark.parametrize(
    ("options", "call", "sent"),
    [
        ({"max_tokens": 40}, {"max_tokens": 7_000}, 40),  # LlamaIndex ignores that of the call
        ({"max_tokens": 7_000}, {"max_tokens": 40}, None),
        ({"max_tokens": None}, {"max_tokens": 30}, 30),
        ({"max_tokens": None}, {"max_tokens": 7_000}, None),
        ({"max_tokens": None}, {}, None),
        ({"max_tokens": 40, "additional_kwargs": {"max_tokens": 20}}, {}, 20),
        ({"max_tokens": 40, "additional_kwargs": {"max_tokens": 7_000}}, {}, None),
        ({"max_tokens": None, "additional_kwargs": {"max_completion_tokens": 20}}, {}, 20),
        ({"max_tokens": None, "additional_kwargs": {"max_completion_tokens": 7_000}}, {}, None),
    ],
)
@pytest.mark.parametrize("way", ["chat", "astream_chat"])
async def test_caps_win_wherever_a_maximum_stands(
    way: str,
    options: dict[str, Any],
    call: dict[str, Any],
    sent: int | None,
    make: Make,
    provider: SimulatedProvider,
) -> None:
    plain = make(models.openai_llm, **options)
    await ask(guard(plain, budget="$0.01"), way, **call)

    body = provider.received[0].body
    caps = [body[name] for name in ("max_tokens", "max_completion_tokens") if body.get(name)]
    if sent is not None:
        assert max(caps) == sent
    else:  # $0.01 is 1,000 tokens of gpt-4o
        assert 0 < max(caps) < 1_000
    assert provider.billed <= 10_000_000
    assert plain.max_tokens == options["max_tokens"]
    assert plain.additional_kwargs == options.get("additional_kwargs", {})


# Clients


@pytest.mark.parametrize("way", WAYS)
async def test_clients_that_are_not_reused(
    way: str, budget: Budget, provider: SimulatedProvider, recwarn: pytest.WarningsRecorder
) -> None:
    plain = OpenAI(
        model="gpt-4o",
        max_tokens=None,
        api_key="none",
        api_base=provider.base_url,
        max_retries=0,
        reuse_client=False,
    )

    llm = guard(plain, budget=budget)
    await ask(llm, way)

    check_books(budget, provider, records=1)
    assert llm._client is None
    assert llm._aclient is None


async def test_clients_that_are_reused_no_longer(
    make: Make, budget: Budget, provider: SimulatedProvider, recwarn: pytest.WarningsRecorder
) -> None:
    llm = guard(make(models.openai_llm), budget=budget)
    for reused in (True, False, True):
        llm.reuse_client = reused
        client, aclient = llm._get_client(), llm._get_aclient()
        await ask(llm, "chat")
        await ask(llm, "achat")
        assert (llm._get_client() is client, llm._get_aclient() is aclient) == (reused, reused)

    check_books(budget, provider, records=6)


async def test_clients_made_late_are_shared_by_the_copies_of_each_call(
    provider: SimulatedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    for name in ("SyncOpenAI", "AsyncOpenAI"):
        real = getattr(__import__("llama_index.llms.openai.base", fromlist=[name]), name)

        def make(*args: Any, _real: Any = real, _name: str = name, **kwargs: Any) -> Any:
            made.append(_name)
            return _real(*args, **kwargs)

        monkeypatch.setattr(f"llama_index.llms.openai.base.{name}", make)
    budget = Budget("$0.1")
    plain = OpenAI(model="gpt-4o", api_key="none", api_base=provider.base_url, max_retries=0)
    llm = guard(plain, budget=budget, fallback="gpt-4o-mini")

    for _ in range(2):
        for way in WAYS:
            await ask(llm, way)  # each in a copy that sends a cap

    assert all("max_tokens" in request.body for request in provider.received)
    assert sorted(made) == ["AsyncOpenAI", "SyncOpenAI"]
    check_books(budget, provider, records=16)
    llm._client.close()
    await llm._aclient.close()


def test_a_client_that_the_user_has_guarded(provider: SimulatedProvider) -> None:
    inner, outer = Budget("$1"), Budget("$2")
    client = sync_client(provider.base_url)
    plain = models.openai_llm(provider.base_url)
    for budgets in ("apart", "same"):
        provider.clear()
        own = guard(client, budget=inner if budgets == "apart" else outer)
        before = outer.snapshot().spent
        plain._client = own
        guard(plain, budget=outer).complete("Why?")
        provider.idle()
        assert outer.snapshot().spent.usd - before.usd == provider.billed
        assert outer.snapshot().spent.calls - before.calls == 1
        if budgets == "apart":
            assert inner.snapshot().spent.usd == provider.billed
    assert inner.snapshot().spent.calls == 1
    client.close()


@pytest.mark.parametrize("kind", [models.openai_llm, models.responses_llm])
async def test_an_unguarded_client_in_the_place_of_the_guarded_one(
    kind: Callable[..., Any], make: Make, budget: Budget, provider: SimulatedProvider
) -> None:
    llm = guard(make(kind), budget=budget)
    for _ in range(2):  # whose clients are known by the second time
        other = make(kind)
        llm._client, llm._aclient = other._client, other._aclient
        await ask(llm, "complete")
        await ask(llm, "achat")

    assert outcomes(budget) == ["settled"] * 4
    check_books(budget, provider, records=4)


@pytest.mark.parametrize("kind", [models.openai_llm, models.responses_llm])
async def test_a_client_on_another_budget_in_the_place_of_the_guarded_one(
    kind: Callable[..., Any], make: Make, budget: Budget, provider: SimulatedProvider
) -> None:
    llm, other, theirs = guard(make(kind), budget=budget), make(kind), Budget("$100")
    await ask(llm, "complete")
    llm._client = guard(other._client, budget=theirs)
    await ask(llm, "complete")
    await ask(llm, "complete")

    check_books(budget, provider, records=3)
    assert theirs.snapshot().spent.calls == 2
    assert theirs.snapshot().spent.usd == provider.billed // 3 * 2


@pytest.mark.parametrize("kind", [models.openai_llm, models.responses_llm])
async def test_a_client_that_takes_the_budget_in_scope(
    kind: Callable[..., Any], make: Make, budget: Budget, provider: SimulatedProvider
) -> None:
    plain = make(kind)
    plain._client = guard(plain._client)
    llm = guard(plain, budget=budget)  # outside of any scope

    with budget.scope():
        await ask(llm, "complete")

    check_books(budget, provider, records=1)


async def test_embeddings_with_a_client_on_another_budget_in_the_place_of_the_guarded_one(
    make: Make, budget: Budget, provider: SimulatedProvider
) -> None:
    embedding = guard(make(models.openai_embedding), budget=budget)
    embedding.get_query_embedding("one")
    embedding._client = guard(make(models.openai_embedding)._client, budget=Budget("$100"))
    embedding.get_query_embedding("two")

    assert outcomes(budget) == ["settled", "uncertain"]  # LlamaIndex's embeddings report no usage
    check_covered(budget, provider)


async def test_a_client_of_another_address_in_the_place_of_the_guarded_one(
    make: Make, budget: Budget
) -> None:
    """Prices are those of the LLM, as before: at that address its model has none."""
    llm = guard(make(models.openai_llm), budget=budget)
    message = {"role": "assistant", "content": "Because."}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": "gpt-4o",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 20, "total_tokens": 1020},
    }
    wire = scripted_client(body)._client
    url = "https://api.deepseek.com/v1"
    llm._client = openai.OpenAI(base_url=url, api_key="unused", http_client=wire)
    for _ in range(2):  # whose client is known by the second time
        await ask(llm, "complete")

    assert outcomes(budget) == ["settled"] * 2
    assert budget.snapshot().spent.usd == 2 * 2_700_000  # $2.50 and $10 a million
    llm._client.close()


@pytest.mark.parametrize("way", WAYS)
async def test_a_budget_in_scope_counts(way: str, make: Make, provider: SimulatedProvider) -> None:
    llm = guard(make(models.openai_llm))
    one, other = Budget("$1"), Budget("$1")
    with one.scope():
        await ask(llm, way)
    with other.scope():
        await ask(llm, way)

    provider.idle()
    assert one.snapshot().spent.usd == other.snapshot().spent.usd == provider.billed // 2
    assert one.reserved == other.reserved == 0


# Copies


def test_nothing_of_the_terms_is_shown_or_dumped(make: Make, budget: Budget) -> None:
    plain = make(models.openai_llm)
    llm = guard(plain, budget=budget, fallback="gpt-4o-mini")

    assert repr(llm) == repr(plain)
    assert llm.to_dict() == plain.to_dict()
    assert llm.model_dump() == plain.model_dump()
    assert llm.to_json() == plain.to_json()
    assert llm.class_name() == plain.class_name()
    assert type(llm).__name__ == "OpenAI"


def test_copies_share_the_budget(make: Make, budget: Budget, provider: SimulatedProvider) -> None:
    llm = guard(make(models.openai_llm), budget=budget)

    for copied in (llm.model_copy(), copy.copy(llm), llm.model_copy(update={"model": "gpt-4"})):
        assert isinstance(copied, BudgetedLLM)
        copied.complete("Why?")

    check_books(budget, provider, records=3)


def test_a_deep_copy_spends_from_the_same_budget(budget: Budget) -> None:
    llm = guard(Parrot(), budget=budget, prices=PRICES)

    for copied in (copy.deepcopy(llm), llm.model_copy(deep=True)):
        assert copied.tokenfence is budget
        copied.complete("Why?")

    assert len(budget.ledger) == 2


def test_a_deep_copy_makes_clients_of_its_own(provider: SimulatedProvider, budget: Budget) -> None:
    plain = OpenAI(model="gpt-4o", api_key="none", api_base=provider.base_url, max_tokens=40)
    llm = guard(plain, budget=budget)

    for each in (llm.model_copy(deep=True), llm):
        each.complete("Why?")
        each.complete("Why?")
        each._client.close()

    check_books(budget, provider, records=4)


def test_a_budget_does_not_travel_to_another_process(budget: Budget) -> None:
    with pytest.raises(TypeError, match="process"):
        pickle.dumps(guard(Parrot(), budget=budget, prices=PRICES))


def test_what_an_llm_notes_in_a_capped_call_it_still_knows(
    make: Make, provider: SimulatedProvider
) -> None:
    plain = make(models.responses_llm, max_output_tokens=None, track_previous_responses=True)
    llm = guard(plain, budget="$0.5")

    llm.chat([ChatMessage("Why?")])
    llm.chat([ChatMessage("And then?")])

    first, second = provider.received
    assert "previous_response_id" not in first.body or first.body["previous_response_id"] is None
    assert second.body["previous_response_id"]


async def test_the_stop_is_a_text_of_each_class(make: Make, server: Server) -> None:
    plain: list[LLM] = [
        make(models.openai_llm),
        make(models.responses_llm),
        make(models.openai_like),
        models.anthropic_llm(server),
        Parrot(),
    ]
    for llm in plain:
        for way in WAYS:
            answer = await ask(guard(llm, budget=0, prices=PRICES), way)
            assert answer.additional_kwargs["finish_reason"] == "budget_exceeded"
            with pytest.raises(BudgetExceeded):
                await ask(guard(llm, budget=0, prices=PRICES, on_limit="raise"), way)
    assert server.bodies == []
