"""One provider call is charged once, however many layers see it."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata
from llama_index.core.llms.callbacks import llm_completion_callback

from tests.clients.helpers import async_client, check_books, sync_client
from tests.llama_index import models
from tests.llama_index.callbacks.helpers import (
    ASYNC,
    FLAT,
    HELLO,
    PRICES,
    SYNC,
    WITH_USAGE,
    Custom,
    Fact,
    flat_llm,
    for_calls,
    outcomes,
)
from tokenfence_integrations import Budget, BudgetExceeded, guard
from tokenfence_integrations.llama_index import BudgetCallbackHandler
from tokenfence_integrations.testing import SimulatedProvider

Layered = Callable[[Budget, Budget], Any]

each_sync_way = pytest.mark.parametrize("call", SYNC.values(), ids=SYNC)
each_async_way = pytest.mark.parametrize("call", ASYNC.values(), ids=ASYNC)


@pytest.fixture
def team() -> Budget:
    return Budget("$100", name="team")


@pytest.fixture(params=["guarded LLM", "guarded client", "custom LLM"])
def layered(
    request: pytest.FixtureRequest, make: Callable[..., Any], provider: SimulatedProvider
) -> Layered:
    """Makes an LLM with a handler on one budget, and a guard on another one."""

    def layered(handled: Budget, guarded: Budget) -> Any:
        handler = BudgetCallbackHandler(handled, prices=PRICES)
        manager = CallbackManager([handler])
        llm = make(flat_llm, callback_manager=manager)
        options = {"budget": guarded, "prices": PRICES, "on_limit": "raise"}
        if request.param == "guarded LLM":
            return guard(llm, **options)
        if request.param == "custom LLM":
            return guard(Custom(inner=llm, callback_manager=manager), **options)
        llm._client = guard(sync_client(provider.base_url), **options)
        llm._aclient = guard(async_client(provider.base_url), **options)
        return llm

    return layered


class TestSameBudget:
    @each_sync_way
    def test_sync(self, layered: Layered, team: Budget, provider: Any, call: Any) -> None:
        call(layered(team, team))
        check_books(team, provider)

    @each_async_way
    async def test_async(self, layered: Layered, team: Budget, provider: Any, call: Any) -> None:
        await call(layered(team, team))
        check_books(team, provider)

    def test_in_another_thread(self, layered: Layered, team: Budget, provider: Any) -> None:
        stream = layered(team, team).stream_chat(HELLO)
        reader = threading.Thread(target=list, args=(stream,))
        reader.start()
        reader.join()
        check_books(team, provider)

    async def test_in_another_task(self, layered: Layered, team: Budget, provider: Any) -> None:
        stream = await layered(team, team).astream_chat(HELLO)

        async def read() -> None:
            [_ async for _ in stream]

        await asyncio.create_task(read())
        check_books(team, provider)

    def test_an_exact_fit_is_enough(self, layered: Layered, provider: Any) -> None:
        budget = for_calls(1)
        llm = layered(budget, budget)
        llm.chat(HELLO)
        with pytest.raises(BudgetExceeded):
            llm.chat(HELLO)
        check_books(budget, provider)


class TestOtherBudgets:
    @each_sync_way
    def test_guard_below(self, layered: Layered, team: Budget, provider: Any, call: Any) -> None:
        writer = team.child("writer", "$1")
        call(layered(team, writer))
        check_books(team, provider)
        assert writer.snapshot().spent.usd == provider.billed

    @each_sync_way
    def test_guard_above(self, layered: Layered, team: Budget, provider: Any, call: Any) -> None:
        """The handler's account is the smaller one: it is charged as well."""
        writer = team.child("writer", "$1")
        call(layered(writer, team))
        self.check_once(team, writer, provider)

    @each_async_way
    async def test_guard_above_async(
        self, layered: Layered, team: Budget, provider: Any, call: Any
    ) -> None:
        writer = team.child("writer", "$1")
        await call(layered(writer, team))
        self.check_once(team, writer, provider)

    @each_sync_way
    def test_other_tree(self, layered: Layered, team: Budget, provider: Any, call: Any) -> None:
        other = Budget("$1")
        call(layered(team, other))
        self.check_once(team, team, provider)
        check_books(other, provider)

    @staticmethod
    def check_once(team: Budget, writer: Budget, provider: SimulatedProvider) -> None:
        provider.idle()
        assert provider.requests == 1
        assert team.snapshot().spent.usd == writer.snapshot().spent.usd == provider.billed
        assert team.reserved == team.uncertain == 0
        assert outcomes(team).count("settled") == 1

    def test_refused_below(self, layered: Layered, team: Budget, provider: Any) -> None:
        """Nothing was sent, so the handler's account is charged nothing."""
        with pytest.raises(BudgetExceeded):
            layered(team, Budget("$0")).chat(HELLO)
        assert provider.requests == 0
        assert team.reserved == team.spent == team.uncertain == 0

    def test_other_calls_amid_an_unread_stream(
        self, layered: Layered, team: Budget, provider: SimulatedProvider
    ) -> None:
        """What is reserved for a stream is not taken by whoever is called before it is read."""
        writer = team.child("writer", "$1")
        llm = layered(writer, team)
        stream = llm.stream_chat(HELLO)
        client: Any = guard(sync_client(provider.base_url), budget=team, prices=PRICES)
        client.chat.completions.create(
            model="flat", max_tokens=16, messages=[{"role": "user", "content": "Hello"}]
        )
        client.close()
        list(stream)
        provider.idle()
        assert team.snapshot().spent.usd == provider.billed == 2 * FLAT
        assert writer.snapshot().spent.usd == FLAT
        assert team.reserved == team.uncertain == 0


class TestHandlers:
    """Several handlers of one LLM."""

    @pytest.mark.parametrize("below_first", [True, False])
    def test_parent_and_child(
        self, with_handlers: Any, team: Budget, provider: Any, below_first: bool
    ) -> None:
        writer = team.child("writer", "$1")
        handlers = [BudgetCallbackHandler(b, prices=PRICES) for b in (team, writer)]
        with_handlers(*handlers[:: -1 if below_first else 1]).chat(HELLO)
        TestOtherBudgets.check_once(team, writer, provider)

    def test_two_of_one_budget(self, with_handlers: Any, team: Budget, provider: Any) -> None:
        handlers = [BudgetCallbackHandler(team, prices=PRICES) for _ in range(2)]
        llm = with_handlers(*handlers)
        llm.chat(HELLO)
        list(llm.stream_chat(HELLO))
        check_books(team, provider)

    def test_the_second_one_refuses(self, with_handlers: Any, team: Budget, provider: Any) -> None:
        """The first had reserved; it hears no more of it."""
        handlers = [BudgetCallbackHandler(b, prices=PRICES) for b in (team, Budget("$0"))]
        with pytest.raises(BudgetExceeded):
            with_handlers(*handlers).chat(HELLO)
        assert outcomes(team) == ["released"]
        assert provider.requests == 0


class Wrapper(CustomLLM):
    """An LLM that passes its prompts on.

    Attributes:
        inner: Who answers.
    """

    inner: Any

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="flat")

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return self.inner.complete(prompt)  # type: ignore[no-any-return]

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        return self.inner.stream_complete(prompt)


class TestGuardsInside:
    """An unguarded LLM that calls a guarded one: its guard knows better, and reserves anew."""

    @each_sync_way
    def test_wrapped(
        self, make: Any, with_handlers: Any, team: Budget, provider: Any, call: Any
    ) -> None:
        handler = BudgetCallbackHandler(team, prices=PRICES)
        inner = guard(with_handlers(handler), budget=team, prices=PRICES)
        call(Wrapper(inner=inner, callback_manager=CallbackManager([handler])))
        TestOtherBudgets.check_once(team, team, provider)

    def test_structured(self, make: Any, team: Budget, provider: SimulatedProvider) -> None:
        provider.behave(text='{"text": "yes"}')
        handler = BudgetCallbackHandler(team)
        plain = make(models.openai_llm, additional_kwargs=WITH_USAGE)
        structured = guard(plain, budget=team).as_structured_llm(Fact)
        structured.callback_manager = CallbackManager([handler])
        structured.chat(HELLO)
        TestOtherBudgets.check_once(team, team, provider)
