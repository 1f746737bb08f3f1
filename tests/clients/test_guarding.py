"""What guard() makes of a client: the same kind of thing, sharing what it was made of."""

import asyncio
import copy
import logging
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai._models import FinalRequestOptions

from tests.clients.helpers import (
    ANSWER,
    CALL,
    HELLO,
    check_books,
    outcomes,
    scripted_client,
    sync_client,
)
from tokenfence_integrations import (
    Budget,
    ListPrice,
    NoBudgetError,
    Price,
    PriceBook,
    UnmeteredError,
    async_guard,
    guard,
)
from tokenfence_integrations.testing import SimulatedProvider

SOCKETS = ["realtime", "responses", "beta.realtime", "beta.responses"]


class Tracing(openai.OpenAI):
    """A subclass with a constructor, a method and an override of its own."""

    def __init__(self, tracer: list[str], base_url: str) -> None:
        super().__init__(
            api_key="unused",
            base_url=base_url,
            max_retries=0,
            http_client=openai.DefaultHttpxClient(verify=False),
        )
        self.tracer = tracer

    def ask(self, text: str) -> str | None:
        reply = self.chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": text}]
        )
        return reply.choices[0].message.content

    def _prepare_request(self, request: Any) -> None:
        self.tracer.append(request.url.path)


@pytest.fixture
def azure(provider: SimulatedProvider) -> Iterator[openai.AzureOpenAI]:
    with openai.AzureOpenAI(
        azure_endpoint=provider.url,
        api_key="unused",
        api_version="2024-10-21",
        max_retries=0,
        http_client=openai.DefaultHttpxClient(verify=False),
    ) as client:
        yield client


class TestSameKindOfThing:
    def test_class_and_attributes(self, provider: SimulatedProvider) -> None:
        with sync_client(
            provider.base_url,
            organization="org",
            project="proj",
            timeout=12.5,
            max_retries=7,
            default_headers={"X-Mine": "1"},
            default_query={"q": "2"},
            _strict_response_validation=True,
        ) as client:
            client.note = "mine"  # type: ignore[attr-defined]
            guarded = guard(client, budget="$1")
            assert isinstance(guarded, openai.OpenAI)
            assert type(guarded) is not openai.OpenAI
            assert type(guarded).__name__ == "OpenAI"
            assert type(guarded).__module__ == openai.OpenAI.__module__
            for name in ("api_key", "organization", "project", "timeout", "max_retries", "note"):
                assert getattr(guarded, name) == getattr(client, name), name
            assert guarded.base_url == client.base_url
            assert guarded.default_headers == client.default_headers
            assert guarded.default_query == client.default_query
            assert guarded.user_agent == client.user_agent
            assert guarded._client is client._client
            assert guarded._strict_response_validation is True

    def test_classes_are_made_once(self, bare: openai.OpenAI) -> None:
        assert type(guard(bare, budget=1)) is type(guard(bare, budget=2))

    def test_the_original_stays_unguarded(
        self, provider: SimulatedProvider, bare: openai.OpenAI
    ) -> None:
        resource = bare.chat.completions
        guarded = guard(bare, budget="$1")
        assert bare.chat.completions is resource
        assert guarded.chat.completions is not resource
        assert not hasattr(bare, "tokenfence")
        assert type(bare) is openai.OpenAI
        bare.chat.completions.create(**CALL)
        assert guarded.tokenfence.spent == 0
        guarded.chat.completions.create(**CALL)
        assert guarded.tokenfence.snapshot().spent.usd == provider.bill[1].cost

    def test_subclass_with_its_own_constructor(self, provider: SimulatedProvider) -> None:
        traced: list[str] = []
        with Tracing(traced, provider.base_url) as client:
            guarded = guard(client, budget="$1")
            assert isinstance(guarded, Tracing)
            assert guarded.ask("Hello")
            assert traced == ["/v1/chat/completions"]
            check_books(guarded.tokenfence, provider)

    def test_shallow_copies_share_the_budget(
        self, provider: SimulatedProvider, bare: openai.OpenAI, budget: Budget
    ) -> None:
        twin = copy.copy(guard(bare, budget=budget))
        assert twin.tokenfence is budget
        twin.chat.completions.create(**CALL)
        check_books(budget, provider)

    def test_default_headers_arrive(self, provider: SimulatedProvider, budget: Budget) -> None:
        with sync_client(provider.base_url, default_headers={"X-Mine": "1"}) as client:
            guard(client, budget=budget).chat.completions.create(**CALL)
        assert provider.received[0].headers["x-mine"] == "1"

    def test_custom_http_client_is_used(self, provider: SimulatedProvider, budget: Budget) -> None:
        seen: list[str] = []
        http_client = openai.DefaultHttpxClient(
            verify=False, event_hooks={"request": [lambda request: seen.append(request.method)]}
        )
        with openai.OpenAI(
            base_url=provider.base_url, api_key="unused", http_client=http_client
        ) as client:
            guard(client, budget=budget).chat.completions.create(**CALL)
        assert seen == ["POST"]


class TestCopies:
    @pytest.mark.parametrize("method", ["with_options", "copy"])
    def test_copies_are_guarded_and_share_the_budget(
        self, provider: SimulatedProvider, bare: openai.OpenAI, budget: Budget, method: str
    ) -> None:
        guarded = guard(bare, budget=budget)
        copied = getattr(guarded, method)(timeout=3.0)
        again = getattr(copied, method)(default_headers={"X-Mine": "1"})
        assert copied.timeout == 3.0
        assert type(again) is type(guarded)
        assert again.tokenfence is budget
        copied.chat.completions.create(**CALL)
        again.chat.completions.create(**CALL)
        check_books(budget, provider)
        assert len(provider.bill) == 2

    async def test_async_copies(
        self, provider: SimulatedProvider, bare_async: openai.AsyncOpenAI, budget: Budget
    ) -> None:
        copied = async_guard(bare_async, budget=budget).with_options(max_retries=0)
        await copied.chat.completions.create(**CALL)
        assert copied.tokenfence is budget
        check_books(budget, provider)

    def test_copy_without_retries_makes_none(
        self, provider: SimulatedProvider, budget: Budget
    ) -> None:
        provider.behave(status=500)
        with sync_client(provider.base_url, max_retries=2) as client:
            copied = guard(client, budget=budget).with_options(max_retries=0)
            with pytest.raises(openai.InternalServerError):
                copied.chat.completions.create(**CALL)
        assert provider.requests == 1
        assert outcomes(budget) == ["uncertain"]


class TestAzure:
    def test_sync(self, provider: SimulatedProvider, azure: openai.AzureOpenAI) -> None:
        guarded = guard(azure, budget="$1")
        assert isinstance(guarded, openai.AzureOpenAI)
        guarded.chat.completions.create(**CALL)
        check_books(guarded.tokenfence, provider)
        assert provider.bill[0].model == "gpt-4o"
        copied = guarded.with_options(max_retries=0)
        copied.chat.completions.create(**CALL)
        check_books(guarded.tokenfence, provider)

    async def test_async(self, provider: SimulatedProvider) -> None:
        async with openai.AsyncAzureOpenAI(
            azure_endpoint=provider.url,
            api_key="unused",
            api_version="2024-10-21",
            http_client=openai.DefaultAsyncHttpxClient(verify=False),
        ) as client:
            guarded = async_guard(client, budget="$1")
            assert isinstance(guarded, openai.AsyncAzureOpenAI)
            await guarded.chat.completions.create(**CALL)
            stream = await guarded.chat.completions.create(**CALL, stream=True)
            assert [chunk async for chunk in stream]
        check_books(guarded.tokenfence, provider)

    def test_token_provider_is_asked(self, provider: SimulatedProvider) -> None:
        with openai.AzureOpenAI(
            azure_endpoint=provider.url,
            azure_ad_token_provider=lambda: "fresh",
            api_version="2024-10-21",
            http_client=openai.DefaultHttpxClient(verify=False),
        ) as client:
            guard(client, budget="$1").chat.completions.create(**CALL)
        assert provider.received[0].headers["authorization"] == "Bearer fresh"

    def test_fallback_names_another_deployment(
        self, provider: SimulatedProvider, azure: openai.AzureOpenAI
    ) -> None:
        guarded = guard(azure, budget="$1", fallback="gpt-4o-mini", threshold=0.0)
        guarded.chat.completions.create(**CALL)
        assert provider.bill[0].model == "gpt-4o-mini"
        check_books(guarded.tokenfence, provider)

    def test_pinned_deployment_takes_no_fallback(self, provider: SimulatedProvider) -> None:
        with openai.AzureOpenAI(
            azure_endpoint=provider.url,
            azure_deployment="gpt-4o",
            api_key="unused",
            api_version="2024-10-21",
            http_client=openai.DefaultHttpxClient(verify=False),
        ) as client:
            with pytest.raises(ValueError, match=r"'gpt-4o-mini' cannot work.*pinned"):
                guard(client, budget="$1", fallback="gpt-4o-mini")
            guarded = guard(client, budget="$1")
            guarded.chat.completions.create(**CALL)
        check_books(guarded.tokenfence, provider)


class TestWhatCannotBeGuarded:
    def test_guarding_twice(self, bare: openai.OpenAI) -> None:
        guarded = guard(bare, budget="$1")
        for thing in (guarded, guarded.with_options(timeout=1)):
            with pytest.raises(TypeError, match="guarded already"):
                guard(thing, budget="$1")

    def test_replaced_request_method(self, bare: openai.OpenAI) -> None:
        bare.request = lambda *args, **kwargs: None  # type: ignore[assignment, method-assign]
        with pytest.raises(TypeError, match=r"replaced on the instance.*guard the client first"):
            guard(bare, budget="$1")

    @pytest.mark.parametrize("thing", [None, "sk-key", openai, openai.OpenAI, object()])
    def test_no_client(self, thing: Any) -> None:
        with pytest.raises(
            TypeError, match=r"cannot guard (an instance of|the class) .*takes an OpenAI client"
        ):
            guard(thing, budget="$1")
        with pytest.raises(TypeError, match="cannot guard "):
            async_guard(thing, budget="$1")

    def test_a_class_is_told_from_its_instances(self) -> None:
        with pytest.raises(TypeError, match="OpenAI: make an instance of it first"):
            guard(openai.OpenAI, budget="$1")  # type: ignore[call-overload]

    def test_prices_without_names(self, bare: openai.OpenAI) -> None:
        with pytest.raises(TypeError, match="prices are by model name"):
            guard(bare, budget="$1", prices=Price(input=0, output=0))  # type: ignore[call-overload]

    def test_async_guard_takes_async_clients(self, bare: openai.OpenAI) -> None:
        with pytest.raises(TypeError, match=r"takes an async client, got OpenAI; use guard\(\)"):
            async_guard(bare, budget="$1")  # type: ignore[type-var]

    def test_guard_takes_async_clients_too(self, bare_async: openai.AsyncOpenAI) -> None:
        assert isinstance(guard(bare_async, budget="$1"), openai.AsyncOpenAI)

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"budget": "€5"}, "accepted"),
            ({"budget": -1}, "accepted"),
            ({"budget": float("nan")}, "accepted"),
            ({"budget": True}, "accepted"),
            ({"budget": ""}, "accepted"),
            ({"on_limit": "explode"}, "on_limit must be one of 'stop', 'warn', 'raise'"),
            ({"on_unknown": "ignore"}, "on_unknown must be one of"),
            ({"threshold": 1.5}, "threshold must be a share between"),
            ({"threshold": "80%"}, "threshold must be a share between"),
            ({"wait": -1}, "wait must be a number of seconds"),
            ({"wait": float("inf")}, "wait must be a number of seconds"),
            ({"min_output_tokens": 0}, "min_output_tokens must be 1 or more"),
            ({"fallback": ""}, "fallback must name models"),
            ({"fallback": ["gpt-4o-mini", None]}, "fallback must name models"),
            ({"fallback": {1.5: "gpt-4o-mini"}}, "stage must be a share"),
        ],
    )
    def test_bad_arguments(self, bare: openai.OpenAI, wrong: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            guard(bare, **{"budget": "$1", **wrong})

    def test_prices_must_be_prices(self, bare: openai.OpenAI) -> None:
        with pytest.raises((TypeError, ValueError), match="my-model"):
            guard(bare, budget="$1", prices={"my-model": 3})  # type: ignore[dict-item]


class TestScope:
    def test_the_surrounding_budget_counts(
        self, provider: SimulatedProvider, bare: openai.OpenAI, budget: Budget
    ) -> None:
        guarded = guard(bare)
        with budget.scope():
            assert guarded.tokenfence is budget
            guarded.chat.completions.create(**CALL)
        check_books(budget, provider)

    def test_its_own_budget_comes_first(
        self, provider: SimulatedProvider, bare: openai.OpenAI, budget: Budget
    ) -> None:
        other = Budget("$1")
        with other.scope():
            guard(bare, budget=budget).chat.completions.create(**CALL)
        check_books(budget, provider)
        assert other.calls == 0

    async def test_tasks_have_their_own(
        self, provider: SimulatedProvider, bare_async: openai.AsyncOpenAI, budget: Budget
    ) -> None:
        guarded = async_guard(bare_async)
        children = [budget.child(name) for name in ("one", "two", "three")]

        async def work(child: Budget, calls: int) -> None:
            with child.scope():
                for _ in range(calls):
                    await guarded.chat.completions.create(**CALL)

        await asyncio.gather(*[work(child, n) for n, child in enumerate(children, 1)])
        assert [child.calls for child in children] == [1, 2, 3]
        check_books(budget, provider)

    @pytest.mark.parametrize("stream", [False, True])
    def test_no_budget(
        self, provider: SimulatedProvider, bare: openai.OpenAI, stream: bool
    ) -> None:
        guarded = guard(bare)
        with pytest.raises(NoBudgetError, match=r"outside any budget\.scope\(\)"):
            guarded.chat.completions.create(**CALL, stream=stream)
        with pytest.raises(NoBudgetError):
            _ = guarded.tokenfence
        assert provider.requests == 0


class TestWhatCannotBeMetered:
    TOOLS = ({"type": "web_search"}, {"type": "function", "name": "f", "parameters": {}})

    def test_strict_refuses_hosted_tools(
        self, provider: SimulatedProvider, bare: openai.OpenAI, budget: Budget
    ) -> None:
        strict = guard(bare, budget=budget, strict=True)
        with pytest.raises(UnmeteredError, match=r"hosted tool 'web_search'.*nothing was sent"):
            strict.responses.create(model="gpt-4o", input="Hi", tools=[*self.TOOLS])
        with pytest.raises(UnmeteredError, match="web search"):
            strict.chat.completions.create(**CALL, web_search_options={})
        assert provider.requests == 0
        assert budget.calls == 0

    def test_otherwise_it_warns_once(
        self,
        provider: SimulatedProvider,
        bare: openai.OpenAI,
        budget: Budget,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        guarded = guard(bare, budget=budget)
        for client in (guarded, guarded, guarded.with_options(timeout=5)):
            client.responses.create(
                model="gpt-4o", input="Hi", tools=[*self.TOOLS], max_output_tokens=16
            )
        [record] = [r for r in caplog.records if "web_search" in r.getMessage()]
        assert (record.name, record.levelno) == ("tokenfence", logging.WARNING)
        check_books(budget, provider)

    def test_unknown_endpoints(
        self, bare: openai.OpenAI, budget: Budget, caplog: pytest.LogCaptureFixture
    ) -> None:
        with pytest.raises(openai.NotFoundError):
            guard(bare, budget=budget).post("/videos", cast_to=object, body={"model": "sora-2"})
        assert "POST /videos cannot be metered" in caplog.text
        strict = guard(bare, budget=budget, strict=True)
        with pytest.raises(UnmeteredError, match="POST /videos"):
            strict.post("/videos", cast_to=object, body={"model": "sora-2"})

    def test_free_endpoints_are_silent(
        self, bare: openai.OpenAI, budget: Budget, caplog: pytest.LogCaptureFixture
    ) -> None:
        strict = guard(bare, budget=budget, strict=True)
        strict.models.list()
        strict.models.retrieve("gpt-4o")
        strict.files.create(file=b"{}", purpose="assistants")
        assert len(budget.ledger) == 0
        assert not [record for record in caplog.records if record.name == "tokenfence"]

    @pytest.mark.parametrize("path", SOCKETS)
    def test_websockets(self, bare: openai.OpenAI, path: str) -> None:
        resource: Any = guard(bare, budget="$1", strict=True)
        for name in path.split("."):
            resource = getattr(resource, name)
        options = {} if path.endswith("responses") else {"model": "gpt-4o-realtime-preview"}
        with pytest.raises(UnmeteredError, match="WebSocket"):
            resource.connect(**options).enter()

    def test_websockets_that_only_prepare_options(self, bare: openai.OpenAI) -> None:
        strict = guard(bare, budget="$1", strict=True)
        options = FinalRequestOptions(method="get", url="wss://api.openai.com/v1/live")
        with pytest.raises(UnmeteredError, match="WebSocket"):
            strict._prepare_options(options)

    def test_websockets_warn_once(
        self, bare: openai.OpenAI, caplog: pytest.LogCaptureFixture
    ) -> None:
        guarded = guard(bare, budget="$1")
        for _ in range(2):
            with pytest.raises(Exception, match=r"404|openai\[realtime\]"):  # there is none
                guarded.responses.connect().enter()
        assert caplog.text.count("a WebSocket cannot be metered") == 1


def test_own_prices_are_used(
    provider: SimulatedProvider, bare: openai.OpenAI, budget: Budget
) -> None:
    with SimulatedProvider(prices={"my-model": (1, 2)}) as own:
        with sync_client(own.base_url) as client:
            price = Price(input="$1/M", output="$2/M", max_output_tokens=8192)
            guarded = guard(client, budget=budget, prices={"my-model": price})
            guarded.chat.completions.create(model="my-model", messages=HELLO)
        check_books(budget, own)


def test_a_deployment_has_the_price_of_a_listed_model(budget: Budget) -> None:
    with SimulatedProvider(prices={"chat-prod": ("2.5", 10)}) as own:
        with sync_client(own.base_url) as client:
            guarded = guard(client, budget=budget, prices={"chat-prod": ListPrice("gpt-4o")})
            guarded.chat.completions.create(model="chat-prod", messages=HELLO)
        assert [line.model for line in own.bill] == ["chat-prod"]
        check_books(budget, own)


def test_a_picture_for_a_deployment_has_the_bound_of_the_listed_model(budget: Budget) -> None:
    picture = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}
    ask: Any = [{"role": "user", "content": [picture]}]
    with scripted_client(ANSWER) as client:
        guarded = guard(client, budget=budget, prices={"chat-prod": ListPrice("gpt-4o")})
        for model in ("gpt-4o", "chat-prod"):
            guarded.chat.completions.create(model=model, messages=ask, max_tokens=16)
    listed, deployed = budget.ledger
    assert deployed.bound == listed.bound < 128_000 * 2_500, "no context window for each picture"


def test_a_book_of_prices_is_taken_as_it_is(budget: Budget) -> None:
    # A proxy's address is nobody's: here all that it offers is Anthropic's.
    with SimulatedProvider(prices={"claude-opus-4-5": (5, 25)}) as own:
        with sync_client(own.base_url) as client:
            guarded = guard(client, budget=budget, prices=PriceBook(provider="anthropic"))
            guarded.chat.completions.create(model="claude-opus-4-5", messages=HELLO, max_tokens=9)
        check_books(budget, own)


@pytest.mark.parametrize(
    "model", ["gpt-4o-search-preview", "gpt-4o-mini-search-preview", "gpt-5-search-api"]
)
def test_strict_refuses_models_that_always_search(budget: Budget, model: str) -> None:
    with scripted_client(ANSWER) as client, pytest.raises(UnmeteredError, match="web search"):
        guard(client, budget=budget, strict=True).chat.completions.create(
            model=model, messages=HELLO, max_tokens=16
        )


@pytest.mark.parametrize("path", ["/models/gemini-2.5-pro:generateContent", "/tools/search"])
def test_strict_refuses_what_only_looks_free(budget: Budget, path: str) -> None:
    with scripted_client({}) as client, pytest.raises(UnmeteredError):
        guard(client, budget=budget, strict=True).post(path, cast_to=object, body={})


def test_an_endpoint_is_warned_of_once(
    bare: openai.OpenAI, budget: Budget, caplog: pytest.LogCaptureFixture
) -> None:
    guarded = guard(bare, budget=budget)
    for thread in ("thread_abc", "thread_def"):
        with pytest.raises(openai.NotFoundError):
            guarded.post(f"/threads/{thread}/runs", cast_to=object, body={})
    assert len([record for record in caplog.records if record.name == "tokenfence"]) == 1


@pytest.mark.parametrize(
    "path",
    [
        "/chat/completions/chatcmpl-1",
        "/organization/projects",
        "/responses/input_tokens",
        "/threads/t_1/messages",
    ],
)
def test_strict_lets_through_what_is_free(budget: Budget, path: str) -> None:
    with scripted_client({}) as client:
        guard(client, budget=budget, strict=True).post(path, cast_to=object, body={})


def test_a_copy_with_another_address_has_its_prices(budget: Budget) -> None:
    with scripted_client(ANSWER) as client:
        elsewhere = guard(client, budget=budget).with_options(
            base_url="https://api.groq.com/openai/v1"
        )
        elsewhere.chat.completions.create(
            model="llama-3.1-8b-instant", messages=HELLO, max_tokens=16
        )
    assert outcomes(budget) == ["settled"]
