"""One provider call is charged once, however many layers see it."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

from tests.clients.helpers import check_books, in_dollars
from tests.langchain.callbacks.helpers import FLAT, PRICES, chat, for_calls, outcomes, with_handler
from tokenfence_integrations import Budget, Usage, guard
from tokenfence_integrations.engine.calls.handover import Handover, offered
from tokenfence_integrations.langchain.callbacks.handler import (
    BudgetCallbackHandler,
    budget_callbacks,
)
from tokenfence_integrations.testing import Behavior, SimulatedProvider

pytestmark = pytest.mark.filterwarnings("ignore:Unexpected type for token usage:UserWarning")

Layered = Callable[[Budget], Any]


@pytest.fixture
def team() -> Budget:
    return Budget("$100", name="team")


@pytest.fixture(params=["guarded model", "guarded client"])
def layered(
    request: pytest.FixtureRequest, provider: SimulatedProvider, model: ChatOpenAI
) -> Iterator[Layered]:
    """Makes a model that is guarded on a budget, itself or by its client."""
    if request.param == "guarded model":
        yield lambda budget: guard(model, budget=budget, prices=PRICES)  # type: ignore[call-overload]
        return
    with openai.DefaultHttpxClient(verify=False) as http:

        def with_client(budget: Budget) -> Any:
            client = openai.OpenAI(
                base_url=provider.base_url, api_key="unused", http_client=http, max_retries=0
            )
            guarded = guard(client, budget=budget, prices=PRICES, on_limit="raise")
            asynchronous = openai.AsyncOpenAI(base_url=provider.base_url, api_key="unused")
            return chat(
                provider,
                client=guarded.chat.completions,
                root_client=guarded,
                async_client=asynchronous.chat.completions,
                root_async_client=asynchronous,
            )

        yield with_client


def handled(budget: Budget, **options: Any) -> Any:
    return with_handler(BudgetCallbackHandler(budget, prices=PRICES, **options))


WAYS: dict[str, Callable[[Any, Any], Any]] = {
    "invoke": lambda m, c: m.invoke("Hello", c),
    "stream": lambda m, c: list(m.stream("Hello", c)),
    "batch": lambda m, c: m.batch(["Hello", "Bye"], c),
    "generate": lambda m, c: m.generate([[HumanMessage("Hello")], [HumanMessage("Bye")]], **c),
}
each_way = pytest.mark.parametrize("call", WAYS.values(), ids=WAYS)


class TestHandlerAndGuard:
    @each_way
    def test_same_budget(self, layered: Layered, team: Budget, provider: Any, call: Any) -> None:
        call(layered(team), handled(team))
        check_books(team, provider)

    @each_way
    def test_guard_below(self, layered: Layered, team: Budget, provider: Any, call: Any) -> None:
        writer = team.child("writer", "$1")
        call(layered(writer), handled(team))
        settled = [record for record in team.ledger if record.outcome == "settled"]
        assert team.reserved == 0
        assert team.snapshot().spent.usd == provider.billed == writer.snapshot().spent.usd
        assert len(settled) == len(provider.bill)

    @each_way
    def test_guard_above(self, layered: Layered, team: Budget, provider: Any, call: Any) -> None:
        """The handler's account is the smaller one: it is charged as well, by the same record."""
        writer = team.child("writer", "$1")
        call(layered(team), handled(writer))
        check_books(team, provider)
        assert writer.snapshot().spent.usd == provider.billed

    @each_way
    def test_siblings(self, layered: Layered, team: Budget, provider: Any, call: Any) -> None:
        """Two accounts, each charged in full; so their common parent holds both."""
        writer, reader = team.child("writer", "$1"), team.child("reader", "$1")
        call(layered(writer), handled(reader))
        assert writer.snapshot().spent.usd == reader.snapshot().spent.usd == provider.billed
        assert team.reserved == 0

    @each_way
    def test_other_tree(self, layered: Layered, team: Budget, provider: Any, call: Any) -> None:
        other = Budget("$1")
        call(layered(other), handled(team))
        check_books(team, provider)
        check_books(other, provider)

    def test_shares_of_the_guard_s_budget(
        self, layered: Layered, team: Budget, provider: SimulatedProvider
    ) -> None:
        config = handled(team, allocations={"alpha": "$1"})
        layered(team).invoke("Hello", {**config, "tags": ["alpha"]})
        check_books(team, provider)
        assert team.children["alpha"].snapshot().spent.usd == provider.billed

    def test_nothing_of_the_request_changes(
        self, layered: Layered, team: Budget, provider: SimulatedProvider
    ) -> None:
        """What a handler reserves for is no maximum to be sent."""
        model = layered(team).model_copy(update={"max_tokens": None})
        model.invoke("Hello", handled(team.child("writer"), expected_output_tokens=3))
        [request] = provider.received
        assert not {"max_tokens", "max_completion_tokens"} & request.body.keys()
        check_books(team, provider)

    def test_retries_are_seen_by_the_client_below(
        self, layered: Layered, team: Budget, provider: SimulatedProvider
    ) -> None:
        model = layered(team)
        retrying = model.root_client.with_options(max_retries=2)
        model = model.model_copy(
            update={"root_client": retrying, "client": retrying.chat.completions}
        )
        first = provider.behavior.__class__(status=500, bill_errors=True)
        provider.script = lambda request: first if request.index == 0 else None
        model.invoke("Hello", handled(team.child("writer")))
        assert outcomes(team) == ["settled", "uncertain"]
        assert team.reserved == 0

    def test_refused_below(self, layered: Layered, team: Budget) -> None:
        """Nothing was sent, so the handler's account is charged nothing."""
        with pytest.raises(RuntimeError, match="no room"):
            _raising(layered(Budget("$0"))).invoke("Hello", handled(team))
        assert outcomes(team) == ["released"]

    def test_hits_of_the_cache_leave_nothing(
        self, layered: Layered, team: Budget, provider: SimulatedProvider
    ) -> None:
        """Of two prompts the first is known; the client takes the first call for the second."""
        model = layered(team).model_copy(update={"cache": InMemoryCache()})
        writer = team.child("writer")
        model.invoke([HumanMessage("Hello")], handled(writer))
        WAYS["generate"](model, handled(writer))
        assert provider.requests == 2
        assert writer.snapshot().spent.usd == provider.billed == team.snapshot().spent.usd
        assert outcomes(team) == ["released", "settled", "settled"]


class TestStops:
    def test_a_made_up_answer_is_free(
        self, model: ChatOpenAI, team: Budget, provider: SimulatedProvider
    ) -> None:
        guarded: Any = guard(model, budget="$0", prices=PRICES)  # type: ignore[call-overload]
        assert "Budget of" in guarded.invoke("Hello", handled(team)).content
        assert "Budget of" in "".join(c.content for c in guarded.stream("Hello", handled(team)))
        assert outcomes(team) == ["released", "released"]
        assert provider.requests == 0

    def test_the_fallback_s_price_counts(
        self, provider: SimulatedProvider, http: openai.DefaultHttpxClient, team: Budget
    ) -> None:
        """The run's start names the model that was asked for, not the one that answered."""
        model = chat(provider, model="gpt-4o", http_client=http)
        guarded: Any = guard(model, budget="$0.0001", fallback="gpt-4o-mini")  # type: ignore[call-overload]
        guarded.invoke("Hello", handled(team))
        assert [line.model for line in provider.bill] == ["gpt-4o-mini"]
        check_books(team, provider)


class TestHandlers:
    """Several handlers, in the config and in the context."""

    def test_two_of_one_budget(self, model: ChatOpenAI, team: Budget, provider: Any) -> None:
        handlers = [BudgetCallbackHandler(team, prices=PRICES) for _ in range(2)]
        with budget_callbacks(team, prices=PRICES):
            model.invoke("Hello", with_handler(*handlers))
        check_books(team, provider)

    def test_the_same_one_twice(self, model: ChatOpenAI, team: Budget, provider: Any) -> None:
        handler = BudgetCallbackHandler(team, prices=PRICES)
        own = model.model_copy(update={"callbacks": [handler]})
        own.invoke("Hello", with_handler(handler))
        check_books(team, provider)

    @pytest.mark.parametrize("below_first", [True, False])
    def test_parent_and_child(
        self, model: ChatOpenAI, team: Budget, provider: SimulatedProvider, below_first: bool
    ) -> None:
        writer = team.child("writer", "$1")
        handlers = [BudgetCallbackHandler(b, prices=PRICES) for b in (team, writer)]
        model.batch(["one", "two"], with_handler(*handlers[:: -1 if below_first else 1]))
        assert team.snapshot().spent.usd == provider.billed == writer.snapshot().spent.usd
        assert team.reserved == 0

    def test_two_trees_and_clients_of_both(
        self, model: ChatOpenAI, team: Budget, provider: SimulatedProvider
    ) -> None:
        user = Budget("$1", name="user")
        handlers = [BudgetCallbackHandler(b, prices=PRICES) for b in (team, user)]
        for budget in (team, user):
            guarded: Any = guard(model, budget=budget, prices=PRICES)  # type: ignore[call-overload]
            guarded.invoke("Hello", with_handler(*handlers))
        check_books(team, provider)
        check_books(user, provider)

    def test_the_second_one_refuses(self, model: ChatOpenAI, team: Budget, provider: Any) -> None:
        """The first had reserved; it hears no more of it."""
        handlers = [BudgetCallbackHandler(b, prices=PRICES) for b in (team, Budget("$0"))]
        with pytest.raises(RuntimeError, match="no room"):
            model.invoke("Hello", with_handler(*handlers))
        assert outcomes(team) == ["released"]
        assert provider.requests == 0

    def test_a_refusal_amid_a_batch_releases_what_was_started(
        self, model: ChatOpenAI, provider: SimulatedProvider
    ) -> None:
        budget = for_calls(2)
        prompts = [[HumanMessage(str(n))] for n in range(3)]
        with pytest.raises(RuntimeError, match="no room"):
            model.generate(prompts, **handled(budget, wait=0))
        assert outcomes(budget) == ["released", "released"]
        assert budget.reserved == 0
        assert provider.requests == 0


class TestContext:
    def test_it_covers_what_runs_inside(self, model: ChatOpenAI, provider: Any) -> None:
        with budget_callbacks("$1", prices=PRICES) as handler:
            model.invoke("Hello")
            (model | (lambda message: message.content)).invoke("Hello")
        model.invoke("Hello")
        assert provider.requests == 3
        assert handler.tokenfence.snapshot().spent.usd == 2 * FLAT

    async def test_tasks_inherit_it(self, amodel: ChatOpenAI, provider: Any) -> None:
        with budget_callbacks("$1", prices=PRICES) as handler:
            await asyncio.gather(*[amodel.ainvoke("Hello") for _ in range(5)])
        check_books(handler.tokenfence, provider)

    def test_nested_ones_all_hold(self, model: ChatOpenAI, team: Budget, provider: Any) -> None:
        writer, user = team.child("writer"), Budget("$1")
        with (
            budget_callbacks(team, prices=PRICES) as outermost,
            budget_callbacks(user, prices=PRICES),
            budget_callbacks(writer, prices=PRICES),
        ):
            model.invoke("Hello")
            model.invoke("Hello", with_handler(outermost))
            list(model.stream("Hello"))
        assert writer.snapshot().spent.usd == provider.billed == 3 * FLAT
        assert team.snapshot().spent.usd == user.snapshot().spent.usd == provider.billed
        assert team.reserved == user.reserved == 0

    def test_the_budget_in_scope(self, model: ChatOpenAI, team: Budget, provider: Any) -> None:
        handler = BudgetCallbackHandler(prices=PRICES)
        with team.scope():
            model.invoke("Hello", with_handler(handler))
            assert handler.tokenfence is team
        check_books(team, provider)
        with pytest.raises(LookupError, match="budget"):
            model.invoke("Hello", with_handler(handler))

    def test_hooks_do_not_pile_up(self) -> None:
        from langchain_core.tracers.context import _configure_hooks

        before = len(_configure_hooks)
        for _ in range(3):
            with budget_callbacks("$1"):
                pass
        assert len(_configure_hooks) == before


class TestOffers:
    """What is on offer to the layers below is for this run alone."""

    def test_a_call_made_while_a_stream_is_read(
        self, model: ChatOpenAI, team: Budget, provider: SimulatedProvider
    ) -> None:
        """The client would take the stream's own reservation, and the stream would cost nothing."""
        client = guard(model.root_client, budget=team, prices=PRICES)
        for _ in model.stream("Hello", handled(team)):
            if provider.requests == 1:
                client.chat.completions.create(
                    model="flat", messages=[{"role": "user", "content": "Bye"}], max_tokens=16
                )
        assert provider.requests == 2
        check_books(team, provider)

    @pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
    def test_a_call_made_while_protocol_events_are_read(
        self, model: ChatOpenAI, team: Budget, provider: SimulatedProvider
    ) -> None:
        client = guard(model.root_client, budget=team, prices=PRICES)
        for _ in model.stream_events("Hello", handled(team), version="v3"):
            if provider.requests == 1:
                client.chat.completions.create(
                    model="flat", messages=[{"role": "user", "content": "Bye"}], max_tokens=16
                )
        assert provider.requests == 2
        check_books(team, provider)

    def test_what_a_layer_further_out_has_reserved(
        self, layered: Layered, team: Budget, provider: SimulatedProvider
    ) -> None:
        """A middleware, say. The handler leaves it alone, and the client below takes it."""
        other = Budget("$1")
        call = team.reserve(model="flat", input_tokens=9, max_output_tokens=16, prices=PRICES)
        with call:
            token = offered.set(Handover(call))
            handlers = [BudgetCallbackHandler(b, prices=PRICES) for b in (team, other)]
            layered(team).invoke("Hello", with_handler(*handlers))
            offered.reset(token)
        assert [record.outcome for record in team.ledger] == ["settled"]
        check_books(team, provider)
        check_books(other, provider)

    def test_what_a_layer_further_out_has_reserved_stays_on_offer(
        self, model: ChatOpenAI, team: Budget, provider: SimulatedProvider
    ) -> None:
        """Its call may take two runs: a retry. It ends it itself."""
        provider.script = lambda request: Behavior(status=429) if request.index == 0 else None
        retrying = model.with_retry(wait_exponential_jitter=False)
        with team.reserve(
            model="flat", input_tokens=9, max_output_tokens=16, prices=PRICES
        ) as call:
            token = offered.set(Handover(call))
            retrying.invoke("Hello", handled(team))
            offered.reset(token)
            assert call.open
            call.settle(Usage(9, 16))
        check_books(team, provider)

    def test_what_a_layer_further_out_has_reserved_above(
        self, layered: Layered, team: Budget, provider: SimulatedProvider
    ) -> None:
        """It charges too few accounts: the handler's own reservation takes its place."""
        writer = team.child("writer", in_dollars(FLAT))
        call = team.reserve(model="flat", input_tokens=9, max_output_tokens=16, prices=PRICES)
        with call:
            token = offered.set(Handover(call))
            layered(team).invoke("Hello", handled(writer))
            offered.reset(token)
        assert outcomes(team) == ["released", "settled"]
        check_books(team, provider, records=2)
        assert writer.remaining == 0

    def test_what_is_for_a_client_alone_is_not_for_a_run(
        self, model: ChatOpenAI, team: Budget, provider: SimulatedProvider
    ) -> None:
        """A model that a guarded model's own code calls is charged as a call of its own."""
        call = team.reserve(model="flat", input_tokens=9, max_output_tokens=16, prices=PRICES)
        with call:
            token = offered.set(Handover(call, wire=True))
            model.invoke("Hello", handled(team))
            offered.reset(token)
            assert call.open
            call.release()
        check_books(team, provider, records=2)

    def test_a_guard_on_another_budget_in_between(
        self, provider: SimulatedProvider, http: openai.DefaultHttpxClient, team: Budget
    ) -> None:
        """Its client is guarded on the handler's budget, and takes what the handler offers."""
        other = Budget("$1")
        model = chat(provider, http_client=http)
        client = guard(model.root_client, budget=team, prices=PRICES)
        changes = {"root_client": client, "client": client.chat.completions}
        guarded: Any = guard(model.model_copy(update=changes), budget=other, prices=PRICES)  # type: ignore[call-overload]
        guarded.invoke("Hello", handled(team))
        check_books(team, provider)
        check_books(other, provider)

    def test_handlers_of_others_are_not_disturbed(self, model: ChatOpenAI, team: Budget) -> None:
        seen: list[str] = []

        class Watcher(BaseCallbackHandler):
            def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
                seen.append("start")

            def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
                seen.append("end")

        model.invoke("Hello", with_handler(BudgetCallbackHandler(team, prices=PRICES), Watcher()))
        assert seen == ["start", "end"]


def _raising(model: Any) -> Any:
    terms = getattr(model, "tokenfence_terms", None)
    return (
        model if terms is None else model.model_copy(update={"tokenfence_terms": terms.raising()})
    )
