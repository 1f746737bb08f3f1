"""What happens near the limit and at it: stop, raise, warn, fallbacks, caps."""

import gc
import logging
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import openai
import pydantic
import pytest

from tests.clients.helpers import (
    CALL,
    EXACT,
    HELLO,
    check_books,
    check_covered,
    cost_of,
    in_dollars,
    scripted_client,
    sync_client,
)
from tokenfence_integrations import (
    Budget,
    BudgetExceeded,
    Price,
    TokenFenceError,
    UnknownModelError,
    async_guard,
    guard,
)
from tokenfence_integrations.testing import SimulatedProvider

Ask = Callable[[Any], Any]


class Weather(pydantic.BaseModel):
    city: str


class TestRaise:
    def test_carries_the_numbers(self, provider: SimulatedProvider, bare: openai.OpenAI) -> None:
        budget = Budget("$0.000100", name="team").child("researcher")
        budget.record("$0.000080")
        guarded = guard(bare, budget=budget, on_limit="raise")
        with pytest.raises(BudgetExceeded, match=r"budget 'team' of \$0\.0001 has no room") as e:
            guarded.completions.create(**EXACT)
        error = pickle.loads(pickle.dumps(e.value))
        for refused in (e.value, error):
            assert isinstance(refused, openai.OpenAIError)
            assert isinstance(refused, TokenFenceError)
            assert isinstance(refused, RuntimeError)
            assert refused.budget == refused.limit == pytest.approx(0.0001)
            assert refused.spent == pytest.approx(0.00008)
            assert (refused.name, refused.model) == ("team", EXACT["model"])
            # 3 tokens of input and 16 of output, at $1.50 and $2 per million.
            assert refused.requested == pytest.approx((3 * 1.5 + 16 * 2) / 1e6)
        assert str(error) == str(e.value)
        assert provider.requests == 0

    @pytest.mark.parametrize(
        "ask",
        [
            lambda c: c.chat.completions.create(**CALL, stream=True),
            lambda c: c.chat.completions.parse(**CALL, response_format=Weather),
            lambda c: c.responses.create(model="gpt-4o", input="Hello"),
            lambda c: c.chat.completions.with_raw_response.create(**CALL),
            lambda c: c.chat.completions.stream(**CALL).__enter__(),
            lambda c: c.chat.completions.with_streaming_response.create(**CALL).__enter__(),
        ],
    )
    def test_everywhere(self, provider: SimulatedProvider, bare: openai.OpenAI, ask: Ask) -> None:
        guarded = guard(bare, budget="$0", on_limit="raise")
        with pytest.raises(BudgetExceeded):
            ask(guarded)
        assert provider.requests == 0
        assert guarded.tokenfence.reserved == 0


def test_a_prediction_may_be_billed_beside_the_answers_maximum(budget: Budget) -> None:
    """Each byte of it may be a token that the answer makes no use of, at the price of output."""
    told = "x" * 500
    usage = {"prompt_tokens": 9, "completion_tokens": 16 + len(told), "total_tokens": 541}
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "y"}}
    answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "gpt-4o"}
    with scripted_client({**answer, "choices": [choice], "usage": usage}) as client:
        prediction: Any = {"type": "content", "content": told}
        guard(client, budget=budget).chat.completions.create(**CALL, prediction=prediction)
    [record] = budget.ledger
    assert record.outcome == "settled"
    assert record.bound >= record.cost


MANY_TEXTS = ["The tide comes in, and the tide goes out again. " * 500] * 4
MANY_TOKENS = [[1, 2, 3, 4] * 1500] * 4
SEVERAL: dict[str, Ask] = {
    "embeddings of texts": lambda c: c.embeddings.create(
        model="text-embedding-3-small", input=MANY_TEXTS
    ),
    "embeddings of tokens": lambda c: c.embeddings.create(
        model="text-embedding-3-small", input=MANY_TOKENS
    ),
    "completions of texts": lambda c: c.completions.create(
        model="gpt-3.5-turbo-instruct", prompt=[text[:9000] for text in MANY_TEXTS]
    ),
    "completions of tokens": lambda c: c.completions.create(
        model="gpt-3.5-turbo-instruct", prompt=[tokens[:2000] for tokens in MANY_TOKENS]
    ),
}


class TestSeveralInputs:
    """A context window bounds each input of a request, not all of them together."""

    @pytest.mark.parametrize("ask", SEVERAL.values(), ids=SEVERAL)
    def test_the_bound_is_of_all(
        self, provider: SimulatedProvider, bare: openai.OpenAI, budget: Budget, ask: Ask
    ) -> None:
        ask(guard(bare, budget=budget))
        check_books(budget, provider)
        [record] = budget.ledger
        assert record.bound >= provider.billed

    def test_a_budget_for_one_of_them_refuses_all(
        self, provider: SimulatedProvider, bare: openai.OpenAI
    ) -> None:
        budget = Budget(tokens=8192)
        guarded = guard(bare, budget=budget, on_limit="raise")
        with pytest.raises(BudgetExceeded):
            guarded.embeddings.create(model="text-embedding-3-small", input=MANY_TOKENS)
        assert provider.requests == 0

    def test_many_short_texts_need_little_more_than_their_bytes(
        self, provider: SimulatedProvider, bare: openai.OpenAI
    ) -> None:
        texts = ["a"] * 1000
        budget = Budget(tokens=sum(map(len, texts)) + 2 * len(texts) + 64)
        guarded = guard(bare, budget=budget, on_limit="raise", exact_input=False)
        guarded.embeddings.create(model="text-embedding-3-small", input=texts)
        check_books(budget, provider)

    def test_a_suffix_counts_with_each(
        self, provider: SimulatedProvider, bare: openai.OpenAI, budget: Budget
    ) -> None:
        guarded = guard(bare, budget=budget)
        guarded.completions.create(**EXACT)
        guarded.completions.create(**EXACT, suffix="x" * 100)
        without, with_suffix = budget.ledger
        assert with_suffix.bound - without.bound >= 100 * 1_500  # $1.50 a million


class TestWarn:
    def test_lets_it_through_and_says_so(
        self, provider: SimulatedProvider, bare: openai.OpenAI, caplog: pytest.LogCaptureFixture
    ) -> None:
        guarded = guard(bare, budget="$0.0001", on_limit="warn")
        assert guarded.chat.completions.create(**CALL).model == "gpt-4o"
        assert list(guarded.chat.completions.create(**CALL, stream=True))
        check_books(guarded.tokenfence, provider)
        assert guarded.tokenfence.budget_exceeded
        records = [r for r in caplog.records if "let through" in r.getMessage()]
        assert len(records) == 2
        assert {(r.name, r.levelno) for r in records} == {("tokenfence", logging.WARNING)}

    def test_prompts_are_not_logged(
        self, bare: openai.OpenAI, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "tokenfence")
        for on_limit in ("warn", "stop"):
            guarded = guard(bare, budget="$0.0001", on_limit=on_limit)  # type: ignore[arg-type]
            message: Any = {"role": "user", "content": "my secret"}
            guarded.chat.completions.create(model="gpt-4o", messages=[message], max_tokens=4)
        logged = [record for record in caplog.records if record.name == "tokenfence"]
        assert logged
        assert "my secret" not in "".join(record.getMessage() for record in logged)


class TestFallback:
    def test_a_name_takes_over_at_the_threshold(
        self, provider: SimulatedProvider, bare: openai.OpenAI
    ) -> None:
        budget = Budget("$1")
        guarded = guard(bare, budget=budget, fallback="gpt-4o-mini", threshold=0.5)
        guarded.chat.completions.create(**CALL)
        budget.record("$0.499")
        guarded.chat.completions.create(**CALL)
        budget.record("$0.01")
        reply = guarded.chat.completions.create(**CALL)
        assert [line.model for line in provider.bill] == ["gpt-4o", "gpt-4o", "gpt-4o-mini"]
        assert reply.model == "gpt-4o-mini"
        asked = [(r.model_asked, r.model) for r in budget.ledger if r.model]
        assert asked[-1] == ("gpt-4o", "gpt-4o-mini")
        assert budget.snapshot().spent.usd == provider.billed + 509_000_000

    def test_it_also_takes_what_no_longer_fits(
        self, provider: SimulatedProvider, bare: openai.OpenAI
    ) -> None:
        cost = cost_of(provider, bare)
        guarded = guard(
            bare,
            budget=in_dollars(2 * cost - 1),
            fallback="babbage-002",
            threshold=1.0,
        )
        for _ in range(3):
            guarded.completions.create(**EXACT)
        assert [line.model for line in provider.bill] == [
            EXACT["model"],
            "babbage-002",
            "babbage-002",
        ]
        check_books(guarded.tokenfence, provider)

    def test_chain(self) -> None:
        rates = {"large": (8, 8), "middle": (2, 2), "small": (1, 1)}
        prices = {name: Price(input=into, output=out) for name, (into, out) in rates.items()}
        with SimulatedProvider(prices=rates) as provider, sync_client(provider.base_url) as client:
            cost = sum(cost_of(provider, client, model=model) for model in rates)
            guarded = guard(
                client,
                budget=in_dollars(cost),
                fallback=["middle", "small"],
                threshold=1.0,
                prices=prices,
            )
            call = {**EXACT, "model": "large"}
            for _ in rates:
                guarded.completions.create(**call)
            assert [line.model for line in provider.bill] == [*rates]
            assert guarded.tokenfence.remaining == 0
            assert guarded.completions.create(**call).model == "tokenfence"
            check_books(guarded.tokenfence, provider)

    def test_stages(self, provider: SimulatedProvider, bare: openai.OpenAI) -> None:
        budget = Budget("$1")
        stages = {0.5: "gpt-4o-mini", 0.9: "gpt-4.1-nano"}
        guarded = guard(bare, budget=budget, fallback=stages)
        for _ in range(3):
            guarded.chat.completions.create(**CALL)
            budget.record("$0.45")
        models = [line.model for line in provider.bill]
        assert models == ["gpt-4o", "gpt-4o", "gpt-4.1-nano"]

    def test_the_request_itself_is_left_alone(
        self, provider: SimulatedProvider, bare: openai.OpenAI
    ) -> None:
        guarded = guard(bare, budget="$1", fallback="gpt-4o-mini", threshold=0.0)
        call: dict[str, Any] = {**CALL, "extra_body": {"model": "gpt-4.1", "top_k": 3}}
        before = pickle.dumps(call)
        guarded.chat.completions.create(**call)
        assert pickle.dumps(call) == before
        body = provider.received[0].body
        assert (body["model"], body["top_k"]) == ("gpt-4o-mini", 3)
        check_books(guarded.tokenfence, provider)

    def test_streams_and_responses_too(
        self, provider: SimulatedProvider, bare: openai.OpenAI
    ) -> None:
        guarded = guard(bare, budget="$1", fallback="gpt-4o-mini", threshold=0.0)
        list(guarded.chat.completions.create(**CALL, stream=True))
        guarded.responses.create(model="gpt-4o", input="Hello")
        with guarded.responses.stream(model="gpt-4o", input="Hello") as stream:
            stream.until_done()
        assert {line.model for line in provider.bill} == {"gpt-4o-mini"}
        check_books(guarded.tokenfence, provider)

    def test_what_is_no_text_keeps_its_model(
        self, provider: SimulatedProvider, bare: openai.OpenAI
    ) -> None:
        """A chat model makes no embeddings, no pictures and no sound."""
        guarded = guard(bare, budget="$1", fallback="gpt-4o-mini", threshold=0.0)
        guarded.embeddings.create(model="text-embedding-3-large", input="Hello")
        guarded.images.generate(model="gpt-image-1", prompt="A cat")
        guarded.audio.speech.create(model="tts-1", voice="alloy", input="Hello")
        models = [line.model for line in provider.bill]
        assert models == ["text-embedding-3-large", "gpt-image-1", "tts-1"]
        check_books(guarded.tokenfence, provider)

    def test_a_dearer_model_is_no_fallback(
        self, provider: SimulatedProvider, bare: openai.OpenAI
    ) -> None:
        guarded = guard(bare, budget="$0.000001", fallback="gpt-4o", on_limit="raise")
        with pytest.raises(BudgetExceeded):
            guarded.chat.completions.create(**{**CALL, "model": "gpt-4o-mini"})
        assert provider.requests == 0


class TestCaps:
    """Without a maximum of the caller's, one that the budget can pay is sent."""

    def test_compatible_servers_take_max_tokens(
        self, provider: SimulatedProvider, bare: openai.OpenAI
    ) -> None:
        guarded = guard(bare, budget="$0.01")
        guarded.chat.completions.create(model="gpt-4o", messages=HELLO)
        body = provider.received[0].body
        assert 500 < body["max_tokens"] < 1000
        assert "max_completion_tokens" not in body
        assert guarded.tokenfence.ledger[0].cap == body["max_tokens"]

    def test_azure_takes_max_completion_tokens(self, provider: SimulatedProvider) -> None:
        with openai.AzureOpenAI(
            azure_endpoint=provider.url,
            api_key="unused",
            api_version="2024-10-21",
            http_client=openai.DefaultHttpxClient(verify=False),
        ) as client:
            guard(client, budget="$0.01").chat.completions.create(model="gpt-4o", messages=HELLO)
        assert provider.received[0].body["max_completion_tokens"] > 500
        assert "max_tokens" not in provider.received[0].body

    def test_responses_take_max_output_tokens(
        self, provider: SimulatedProvider, bare: openai.OpenAI
    ) -> None:
        guard(bare, budget="$0.01").responses.create(model="gpt-4o", input="Hello")
        assert provider.received[0].body["max_output_tokens"] > 500

    @pytest.mark.parametrize("key", ["max_tokens", "max_completion_tokens"])
    def test_the_callers_own_is_kept(
        self, provider: SimulatedProvider, bare: openai.OpenAI, key: str
    ) -> None:
        guarded = guard(bare, budget="$1")
        guarded.chat.completions.create(model="gpt-4o", messages=HELLO, **{key: 9})  # type: ignore[call-overload]
        body = provider.received[0].body
        assert body[key] == 9
        assert {"max_tokens", "max_completion_tokens"} & body.keys() == {key}

    @pytest.mark.parametrize("keys", [("max_tokens",), ("max_completion_tokens", "max_tokens")])
    def test_the_callers_own_is_lowered_where_it_was_given(
        self, provider: SimulatedProvider, bare: openai.OpenAI, keys: tuple[str, ...]
    ) -> None:
        guarded = guard(bare, budget="$0.01")
        guarded.chat.completions.create(model="gpt-4o", messages=HELLO, **dict.fromkeys(keys, 5000))
        body = provider.received[0].body
        assert {"max_tokens", "max_completion_tokens"} & body.keys() == {*keys}
        assert all(500 < body[key] < 1000 for key in keys)

    def test_a_rich_budget_caps_nothing(
        self, provider: SimulatedProvider, bare: openai.OpenAI, budget: Budget
    ) -> None:
        guard(bare, budget=budget).chat.completions.create(model="gpt-4o", messages=HELLO)
        assert not {"max_tokens", "max_completion_tokens"} & provider.received[0].body.keys()

    @pytest.mark.parametrize("stream", [False, True])
    def test_what_we_cut_is_marked(
        self, provider: SimulatedProvider, bare: openai.OpenAI, stream: bool
    ) -> None:
        provider.behave(output_tokens=5000)
        guarded = guard(bare, budget="$0.01")
        kinds: list[str] = []
        guarded.tokenfence.on_event(lambda event: kinds.append(event.kind))
        reply: Any = guarded.chat.completions.create(model="gpt-4o", messages=HELLO, stream=stream)
        if stream:
            assert list(reply)[-1].choices[0].finish_reason == "length"
        else:
            assert reply.choices[0].finish_reason == "length"
        [record] = guarded.tokenfence.ledger
        assert record.truncated
        assert "capped" in kinds
        check_books(guarded.tokenfence, provider)

    def test_what_the_caller_cut_is_not(
        self, provider: SimulatedProvider, bare: openai.OpenAI, budget: Budget
    ) -> None:
        provider.behave(output_tokens=5000)
        guard(bare, budget=budget).chat.completions.create(**CALL)
        assert not budget.ledger[0].truncated

    def test_the_cap_is_for_each_choice(
        self, provider: SimulatedProvider, bare: openai.OpenAI
    ) -> None:
        provider.behave(output_tokens=5000)
        guarded = guard(bare, budget="$0.01")
        guarded.chat.completions.create(model="gpt-4o", messages=HELLO, n=5)
        check_books(guarded.tokenfence, provider)
        assert provider.billed <= 10_000_000


class TestAboveTheBound:
    """A paid reply is never thrown away: it returns, and the next call is refused."""

    @pytest.mark.parametrize("stream", [False, True])
    def test_returns_and_is_booked(
        self,
        provider: SimulatedProvider,
        bare: openai.OpenAI,
        caplog: pytest.LogCaptureFixture,
        stream: bool,
    ) -> None:
        budget = Budget(in_dollars(cost_of(provider, bare) * 2))
        provider.behave(usage_factor=10)
        kinds: list[str] = []
        budget.on_event(lambda event: kinds.append(event.kind))
        guarded = guard(bare, budget=budget, on_limit="raise")
        reply: Any = guarded.completions.create(**EXACT, stream=stream)
        if stream:
            assert len(list(reply)) == 17
        else:
            assert reply.choices[0].text
        check_books(budget, provider)
        assert budget.spent > budget.budget
        assert "bound_exceeded" in kinds
        assert "cost more than its bound" in caplog.text
        with pytest.raises(BudgetExceeded):
            guarded.completions.create(**EXACT)
        assert provider.requests == 1


class TestUnknownModel:
    @pytest.mark.parametrize("on_limit", ["stop", "raise", "warn"])
    @pytest.mark.parametrize(
        "ask",
        [
            lambda c: c.chat.completions.create(model="gpt-9-ultra", messages=HELLO),
            lambda c: c.chat.completions.create(model="gpt-9-ultra", messages=HELLO, stream=True),
            lambda c: c.responses.create(model="gpt-9-ultra", input="Hello"),
            lambda c: c.embeddings.create(model="text-embedding-9", input="Hello"),
        ],
    )
    def test_is_never_free(
        self, provider: SimulatedProvider, bare: openai.OpenAI, ask: Ask, on_limit: Any
    ) -> None:
        guarded = guard(bare, budget="$100", on_limit=on_limit)
        with pytest.raises(UnknownModelError, match=r"prices=\{'.*': Price\("):
            ask(guarded)
        assert provider.requests == 0
        assert guarded.tokenfence.reserved == guarded.tokenfence.spent == 0

    async def test_async(self, provider: SimulatedProvider, bare_async: openai.AsyncOpenAI) -> None:
        guarded = async_guard(bare_async, budget="$100")
        with pytest.raises(UnknownModelError, match="gpt-4o-minni") as caught:
            await guarded.chat.completions.create(**{**CALL, "model": "gpt-4o-minni"})
        assert "gpt-4o-mini" in caught.value.nearest
        assert provider.requests == 0

    def test_no_model(self, provider: SimulatedProvider, bare: openai.OpenAI) -> None:
        guarded = guard(bare, budget="$1")
        none: Any = None
        with pytest.raises(UnknownModelError, match=r"Give model=, even with a stored prompt"):
            guarded.responses.create(prompt={"id": "pmpt_1"})
        with pytest.raises(UnknownModelError, match="names no model"):
            guarded.chat.completions.create(model=none, messages=[])
        assert provider.requests == 0

    def test_unknown_fallback(self, provider: SimulatedProvider, bare: openai.OpenAI) -> None:
        """Told when it is given, and not when it is to take over."""
        with pytest.raises(UnknownModelError, match="gpt-9-nano"):
            guard(bare, budget="$1", fallback="gpt-9-nano")
        guard(bare, fallback="my-model", prices={"my-model": Price(input=0, output=0)})
        assert provider.requests == 0


class TestOtherLimits:
    def test_calls(self, provider: SimulatedProvider, bare: openai.OpenAI) -> None:
        guarded = guard(bare, budget=Budget(calls=2), on_limit="raise")
        for _ in range(2):
            guarded.chat.completions.create(**CALL)
        with pytest.raises(BudgetExceeded) as caught:
            guarded.chat.completions.create(**CALL)
        assert (caught.value.quantity, caught.value.budget) == ("calls", 2)
        assert provider.requests == 2

    def test_tokens(self, provider: SimulatedProvider, bare: openai.OpenAI) -> None:
        guarded = guard(bare, budget=Budget(tokens=40), on_limit="raise")
        for _ in range(2):
            guarded.completions.create(**EXACT)
        with pytest.raises(BudgetExceeded) as caught:
            guarded.completions.create(**EXACT)
        assert caught.value.quantity == "tokens"
        assert sum(line.input_tokens + line.output_tokens for line in provider.bill) == 38

    def test_of_a_parent(self, provider: SimulatedProvider, bare: openai.OpenAI) -> None:
        team = Budget(calls=1, name="team")
        guard(bare, budget=team.child("one")).chat.completions.create(**CALL)
        with pytest.raises(BudgetExceeded, match="budget 'team' of 1 call has"):
            guard(bare, budget=team.child("two"), on_limit="raise").chat.completions.create(**CALL)
        check_books(team, provider)


def test_a_stream_being_read_does_not_block_its_own_reader(
    provider: SimulatedProvider, bare: openai.OpenAI
) -> None:
    """Waiting for a stream that only this thread can go on reading would last for ever."""
    cost = cost_of(provider, bare)
    guarded = guard(bare, budget=in_dollars(cost), wait=60)
    with guarded.completions.create(**EXACT, stream=True) as stream:
        next(stream)
        assert guarded.completions.create(**EXACT).model == "tokenfence"
    check_covered(guarded.tokenfence, provider)


def test_many_budgets_leave_nothing_behind(provider: SimulatedProvider) -> None:
    """A guard per request, as a web server makes them: classes are shared, clones go."""
    with sync_client(provider.base_url) as client:
        guarded = guard(client, budget="$1", prices={"mine": Price(input=1, output=1)})
        guarded.chat.completions.create(**CALL)
        budget = weakref.ref(guarded.tokenfence)
        del guarded
        gc.collect()
        assert budget() is None
