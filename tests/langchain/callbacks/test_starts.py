"""What is reserved at a start: the model, its prices, its input and its output."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import openai
import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_openai import ChatOpenAI, OpenAI

from tests.clients.helpers import check_books, check_covered
from tests.engine.helpers import listen
from tests.langchain.callbacks.helpers import FLAT, chat, outcomes, with_handler
from tokenfence_integrations import Budget, BudgetExceeded, Price
from tokenfence_integrations.langchain.callbacks.handler import BudgetCallbackHandler
from tokenfence_integrations.langchain.callbacks.starts import Start, read_options
from tokenfence_integrations.pricing.book import PriceBook
from tokenfence_integrations.pricing.tokens import encoding_for
from tokenfence_integrations.testing import SimulatedProvider


@pytest.fixture
def text_model(provider: SimulatedProvider) -> Iterator[OpenAI]:
    with openai.DefaultHttpxClient(verify=False) as http:
        yield OpenAI(
            model="gpt-3.5-turbo-instruct",
            base_url=provider.base_url,
            api_key="unused",
            http_client=http,
            http_async_client=openai.DefaultAsyncHttpxClient(verify=False),
            max_tokens=16,
            max_retries=0,
        )


@pytest.fixture
def gpt(provider: SimulatedProvider, http: openai.DefaultHttpxClient) -> ChatOpenAI:
    return chat(provider, model="gpt-4o", http_client=http)


def start(metadata: dict[str, Any] | None = None, **params: Any) -> Start:
    return Start({"id": ["langchain", "ChatThing"], "kwargs": {}}, params, metadata or {})


class TestModel:
    def test_the_one_that_is_asked_for(self) -> None:
        assert start({"ls_model_name": "a"}, model="b", model_name="c").model == "a"
        assert start(model="b").model == "b"
        assert start(model="models/gemini").model == "gemini"
        assert start(_type="fake").model == "fake"
        assert start().model == "ChatThing"

    def test_one_bound_to_the_call(self, gpt: ChatOpenAI, budget: Budget, provider: Any) -> None:
        gpt.invoke("Hello", with_handler(BudgetCallbackHandler(budget)), model="gpt-4o-mini")
        check_books(budget, provider)
        assert budget.ledger[0].model == "gpt-4o-mini"

    @pytest.mark.parametrize(
        ("told", "expected"),
        [
            ({"ls_provider": "google_genai"}, "google"),
            ({"ls_provider": "anthropic"}, "anthropic"),
            ({}, "azure"),
        ],
    )
    def test_provider(self, told: dict[str, Any], expected: str) -> None:
        assert start(told, _type="azure-openai-chat").provider == expected

    def test_provider_behind_an_address(self) -> None:
        made_with = {"kwargs": {"openai_api_base": "https://api.groq.com/openai/v1"}}
        assert Start(made_with, {}, {"ls_provider": "openai"}).provider == "groq"

    def test_a_fake_model(self, budget: Budget) -> None:
        prices = {"fake-list-chat-model": Price(input=1, output=1, max_output_tokens=16)}
        model = FakeListChatModel(responses=["a" * 10_000])
        model.invoke("Hello", with_handler(BudgetCallbackHandler(budget, prices=prices)))
        [record] = budget.ledger
        assert record.outcome == "uncertain"
        assert record.bound < 1_000_000, "its constructor's fields are no input"


class TestOutput:
    def test_maximum(self) -> None:
        assert start({"ls_max_tokens": 5}).output_maximum == 5
        assert start(max_output_tokens=7).output_maximum == 7
        assert start(max_tokens=-1).output_maximum is None

    def test_the_call_s_own_maximum_wins(self) -> None:
        call = start({"ls_max_tokens": 5}, max_completion_tokens=100, max_tokens=5)
        assert call.output_maximum == 5

    def test_an_option_that_ls_params_do_not_tell(self) -> None:
        assert start({"ls_max_tokens": 5}, max_completion_tokens=100).output_maximum == 100

    @pytest.mark.parametrize("option", ["max_tokens", "max_completion_tokens"])
    def test_in_a_call(self, gpt: ChatOpenAI, budget: Budget, provider: Any, option: str) -> None:
        provider.behave(output_tokens=500)
        gpt.invoke("Hello", with_handler(BudgetCallbackHandler(budget)), **{option: 100})
        check_books(budget, provider)
        [record] = budget.ledger
        assert record.usage is not None
        assert record.usage.output_tokens == 100
        assert record.bound >= record.cost

    def test_without_one_it_is_the_model_s_ceiling(self, gpt: ChatOpenAI, budget: Budget) -> None:
        model = gpt.model_copy(update={"max_tokens": None})
        model.invoke("Hello", with_handler(BudgetCallbackHandler(budget)))
        [record] = budget.ledger
        assert record.bound > 16_384 * 10_000
        assert record.cap is None

    def test_expected_length(self, gpt: ChatOpenAI, budget: Budget, provider: Any) -> None:
        events = listen(budget)
        model = gpt.model_copy(update={"max_tokens": None})
        provider.behave(output_tokens=500)
        handler = BudgetCallbackHandler(budget, expected_output_tokens=100)
        model.invoke("Hello", with_handler(handler))
        check_books(budget, provider)
        assert 100 * 10_000 < budget.ledger[0].bound < 110 * 10_000 + 500_000
        assert "bound_exceeded" in [event.kind for event in events]

    def test_a_long_text_is_counted_where_its_bytes_do_not_fit(
        self, gpt: ChatOpenAI, provider: SimulatedProvider
    ) -> None:
        text = "the quick brown fox jumps over the lazy dog " * 50
        gpt.invoke(text, max_tokens=16)
        provider.idle()
        limit = f"{provider.billed / 1e9:.9f} USD"
        by_bytes = BudgetCallbackHandler(limit)
        by_count = BudgetCallbackHandler(limit, exact_input=True)

        with pytest.raises(BudgetExceeded):
            gpt.invoke(text, with_handler(by_bytes), max_tokens=16)
        # Where no vocabulary is at hand nothing can be counted, and the bytes decide.
        with nullcontext() if encoding_for("gpt-4o") else pytest.raises(BudgetExceeded):
            gpt.invoke(text, with_handler(by_count), max_tokens=16)
            assert by_count.tokenfence.remaining == 0

    def test_expected_length_is_no_more_than_the_maximum(
        self, model: ChatOpenAI, handler: BudgetCallbackHandler, budget: Budget
    ) -> None:
        handler._expected = 1_000
        model.invoke("Hello", with_handler(handler))
        assert budget.ledger[0].bound == FLAT

    def test_several_choices_count_once(
        self, gpt: ChatOpenAI, budget: Budget, provider: SimulatedProvider
    ) -> None:
        """Each of the generations carries the usage of all of them."""
        several = gpt.model_copy(update={"n": 3})
        config = with_handler(BudgetCallbackHandler(budget))
        several.invoke("Hello", config)
        gpt.invoke("Hello", config, n=3)
        check_books(budget, provider)
        assert all(record.bound >= record.cost >= 3 * 160_000 for record in budget.ledger)


class TestInput:
    def test_what_the_model_reads(self) -> None:
        tools = [{"type": "function", "function": {"name": "f"}}]
        params = {"model": "gpt-4o", "responses": ["x"], "tools": tools, "functions": None}
        assert read_options(params) == {"tools": tools}

    def test_tools_count(self, gpt: ChatOpenAI, budget: Budget, provider: Any) -> None:
        def weather(city: str) -> str:
            """Tell the weather of a city."""
            return city

        config = with_handler(BudgetCallbackHandler(budget))
        gpt.invoke("Hello", config)
        gpt.bind_tools([weather]).invoke("Hello", config)
        check_books(budget, provider)
        plain, with_tools = budget.ledger
        assert with_tools.bound > plain.bound

    def test_nothing_of_the_prompt_is_kept(
        self, gpt: ChatOpenAI, budget: Budget, caplog: pytest.LogCaptureFixture
    ) -> None:
        handler = BudgetCallbackHandler(budget)
        events = listen(budget)
        gpt.invoke("a secret", with_handler(handler))
        told = f"{events} {list(budget.ledger)} {vars(handler)} {caplog.text}"
        assert "secret" not in told


class TestCache:
    @pytest.mark.parametrize("method", ["invoke", "batch"])
    def test_hits_are_free(
        self,
        model: ChatOpenAI,
        handler: BudgetCallbackHandler,
        budget: Budget,
        provider: SimulatedProvider,
        method: str,
    ) -> None:
        cached = model.model_copy(update={"cache": InMemoryCache()})
        for _ in range(2):
            getattr(cached, method)(
                "Hello" if method == "invoke" else ["Hello"], with_handler(handler)
            )
        assert provider.requests == 1
        assert outcomes(budget) == ["released", "settled"]
        check_books(budget, provider, records=2)

    def test_a_hit_without_usage(self, handler: BudgetCallbackHandler, budget: Budget) -> None:
        from uuid import uuid4

        run_id = uuid4()
        params = {"model": "flat", "max_tokens": 16}
        handler.on_chat_model_start({}, [[]], run_id=run_id, invocation_params=params)
        message = AIMessage("known")
        message.usage_metadata = {"total_cost": 0}  # type: ignore[typeddict-item, typeddict-unknown-key]
        response = LLMResult(generations=[[ChatGeneration(message=message)]])
        handler.on_llm_end(response, run_id=run_id)
        handler.on_llm_end(response, run_id=run_id)
        assert outcomes(budget) == ["released"]

    def test_text_models_tell_nothing_of_hits(
        self, text_model: OpenAI, budget: Budget, provider: SimulatedProvider
    ) -> None:
        cached = text_model.model_copy(update={"cache": InMemoryCache()})
        config = with_handler(BudgetCallbackHandler(budget))
        for _ in range(2):
            cached.invoke("Hello", config)
        check_books(budget, provider)


class TestTextModels:
    def test_one_prompt(self, text_model: OpenAI, budget: Budget, provider: Any) -> None:
        text_model.invoke("Hello", with_handler(BudgetCallbackHandler(budget)))
        check_books(budget, provider)

    def test_all_prompts_in_one_request(
        self, text_model: OpenAI, budget: Budget, provider: SimulatedProvider
    ) -> None:
        """Their usage is told once, at the end of the first; each has its own reservation."""
        text_model.batch(["one", "two", "three"], with_handler(BudgetCallbackHandler(budget)))
        state = budget.snapshot()
        assert state.spent.usd == provider.billed == budget.ledger.total
        assert provider.requests == 1
        assert state.reserved.calls == state.uncertain.calls == 0
        assert outcomes(budget) == ["settled"] * 3
        assert all(record.bound >= record.cost for record in budget.ledger)

    async def test_async(self, text_model: OpenAI, budget: Budget, provider: Any) -> None:
        async with openai.DefaultAsyncHttpxClient(verify=False) as http:
            client = openai.AsyncOpenAI(
                base_url=provider.base_url, api_key="unused", http_client=http
            )
            model = text_model.model_copy(update={"async_client": client.completions})
            await model.abatch(["one", "two"], with_handler(BudgetCallbackHandler(budget)))
        assert budget.snapshot().spent.usd == provider.billed
        assert outcomes(budget) == ["settled"] * 2

    def test_a_failure_is_that_of_all(
        self, text_model: OpenAI, budget: Budget, provider: SimulatedProvider
    ) -> None:
        provider.behave(status=500, bill_errors=True)
        with pytest.raises(openai.InternalServerError):
            text_model.batch(["one", "two"], with_handler(BudgetCallbackHandler(budget)))
        assert outcomes(budget) == ["uncertain"] * 2
        provider.idle()
        assert budget.snapshot().uncertain.usd >= provider.billed

    def test_streams_have_no_usage(
        self, text_model: OpenAI, budget: Budget, provider: SimulatedProvider
    ) -> None:
        list(text_model.stream("Hello", with_handler(BudgetCallbackHandler(budget))))
        assert outcomes(budget) == ["uncertain"]
        check_covered(budget, provider)

    def test_refused(self, text_model: OpenAI, provider: SimulatedProvider) -> None:
        with pytest.raises(RuntimeError, match="no room"):
            text_model.invoke("Hello", with_handler(BudgetCallbackHandler("$0")))
        assert provider.requests == 0


class TestRetries:
    def test_each_attempt_of_a_runnable_is_a_run(
        self, model: ChatOpenAI, handler: BudgetCallbackHandler, budget: Budget, provider: Any
    ) -> None:
        failing = provider.behavior.__class__(status=429)
        provider.script = lambda request: failing if request.index < 2 else None
        retrying = model.with_retry(wait_exponential_jitter=False, stop_after_attempt=3)
        retrying.invoke("Hello", with_handler(handler))
        assert outcomes(budget) == ["released", "released", "settled"]
        check_books(budget, provider, records=3)

    def test_refusals_cost_nothing_however_often_they_are_tried(
        self, model: ChatOpenAI, provider: SimulatedProvider
    ) -> None:
        budget = Budget("$0")
        handler = BudgetCallbackHandler(budget, prices={"flat": Price(input=1, output=1)})
        retrying = model.with_retry(wait_exponential_jitter=False)
        with pytest.raises(RuntimeError, match="no room"):
            retrying.invoke("Hello", with_handler(handler))
        with pytest.raises(RuntimeError, match="no room"):
            model.with_fallbacks([model]).invoke("Hello", with_handler(handler))
        assert provider.requests == 0
        assert outcomes(budget) == []


class TestArguments:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"on_limit": "stop"}, "guard the model"),
            ({"expected_output_tokens": 0}, "1 or more"),
            ({"lease": 0}, "above 0"),
            ({"wait": -1}, "0 or more"),
            ({"allocations": {"a/b": 1}}, "without '/'"),
            ({"allocations": {"a~b": 1}}, "without '/' and '~'"),
            ({"allocations": {"a": "much"}}, "much"),
        ],
    )
    def test_out_of_range(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            BudgetCallbackHandler("$1", **options)

    def test_on_limit_warn_lets_it_through(
        self, model: ChatOpenAI, provider: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        budget = Budget("$0")
        prices = {"flat": Price(input=0, output="$10/M", max_output_tokens=16)}
        handler = BudgetCallbackHandler(budget, prices=prices, on_limit="warn")
        model.invoke("Hello", with_handler(handler))
        assert "let through" in caplog.text
        check_books(budget, provider)

    def test_on_unknown_release(
        self, model: ChatOpenAI, budget: Budget, provider: SimulatedProvider
    ) -> None:
        provider.behave(status=500)
        prices = {"flat": Price(input=0, output="$10/M", max_output_tokens=16)}
        handler = BudgetCallbackHandler(budget, prices=prices, on_unknown="release")
        with pytest.raises(openai.InternalServerError):
            model.invoke("Hello", with_handler(handler))
        assert outcomes(budget) == ["released"]

    def test_books_are_made_once(self) -> None:
        handler = BudgetCallbackHandler("$1", prices={"flat": Price(input=0, output=1)})
        book = handler._handling.book("openai")
        assert isinstance(book, PriceBook)
        assert handler._handling.book("openai") is book
