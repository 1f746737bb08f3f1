"""What LangChain and its users see of a guarded model is what they would see of the plain one."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.load import dumpd
from langchain_core.runnables import ConfigurableField
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from tests.clients.helpers import check_books
from tests.langchain.models import LOCAL_PRICES, LocalChat, StreamingLocalChat, answer
from tokenfence_integrations import Budget, BudgetExceeded, guard
from tokenfence_integrations.langchain import BudgetedChatModel
from tokenfence_integrations.testing import SimulatedProvider


class Joke(BaseModel):
    """A joke."""

    setup: str
    punchline: str


def search(query: str) -> str:
    """Search the web."""
    return query


class Runs(BaseCallbackHandler):
    """Notes what happens in the runs of a model."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        known = {k: v for k, v in kwargs["metadata"].items() if k != "tokenfence_guard"}
        self.seen.append(("start", (serialized, kwargs["invocation_params"], known)))

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        self.seen.append(("token", token))

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.seen.append(("end", len(response.generations)))

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.seen.append(("error", type(error)))


def _by_byte(text: str) -> list[int]:
    return list(text.encode())


@pytest.fixture
def guarded(plain: ChatOpenAI, budget: Budget) -> Any:
    return guard(plain, budget=budget)


@pytest.mark.parametrize(
    "look",
    [
        dumpd,
        repr,
        lambda m: m.model_dump(),
        lambda m: m._identifying_params,
        lambda m: m._get_invocation_params(stop=["x"]),
        lambda m: m._get_llm_string(stop=["x"], temperature=0),
        lambda m: m._llm_type,
        lambda m: m.profile,
        lambda m: m.lc_id(),
        lambda m: m.get_name(),
        lambda m: inspect.signature(m.bind_tools),
        lambda m: inspect.signature(m.with_structured_output),
        lambda m: m.bind_tools([search], tool_choice="any").kwargs,
        lambda m: m.config_specs,
        lambda m: m.get_input_jsonschema(),
        lambda m: m.get_output_jsonschema(),
        # With a tokenizer of its own: OpenAI's would have to be downloaded where it is missing.
        lambda m: m.model_copy(update={"custom_get_token_ids": _by_byte}).get_num_tokens("hello"),
    ],
)
def test_it_looks_like_the_plain_model(
    look: Callable[[Any], Any], plain: ChatOpenAI, guarded: Any
) -> None:
    def without_clients(shown: Any) -> Any:
        clients = ("client", "async_client", "root_client", "root_async_client")
        if isinstance(shown, str):
            return [part for part in shown.split(", ") if " object at 0x" not in part]
        if isinstance(shown, dict):
            return {key: value for key, value in shown.items() if key not in clients}
        return shown

    assert without_clients(look(guarded)) == without_clients(look(plain))


def test_tracing_params_say_that_it_is_guarded(plain: ChatOpenAI, guarded: Any) -> None:
    params = guarded._get_ls_params(model="gpt-4o-mini")

    assert params.pop("tokenfence_guard") == guarded.tokenfence_terms.number
    assert params == plain._get_ls_params(model="gpt-4o-mini")


@pytest.mark.parametrize(
    "ask",
    [
        lambda m, c: m.invoke("hello", c),
        lambda m, c: list(m.stream("hello", c)),
        lambda m, c: m.batch(["hello"], c),
        lambda m, c: m.model_copy(update={"streaming": True}).invoke("hello", c),
    ],
)
def test_callbacks_see_the_same_runs(
    ask: Callable[[Any, Any], Any], plain: ChatOpenAI, guarded: Any
) -> None:
    bare, ours = Runs(), Runs()

    ask(plain, {"callbacks": [bare]})
    ask(guarded, {"callbacks": [ours]})

    assert ours.seen == bare.seen
    assert [kind for kind, _ in ours.seen].count("start") == 1


def test_callbacks_see_one_run_of_a_downgraded_call(
    plain: ChatOpenAI, provider: SimulatedProvider
) -> None:
    runs = Runs()
    model = guard(plain, budget="$0.0004", fallback="gpt-4o-mini")

    model.invoke("hello", {"callbacks": [runs]})
    list(model.stream("hello", {"callbacks": [runs]}))

    kinds = [kind for kind, _ in runs.seen]
    assert (kinds.count("start"), kinds.count("end"), kinds.count("error")) == (2, 2, 0)
    assert {request.model for request in provider.received} == {"gpt-4o-mini"}


def test_nobody_sees_what_bindings_note_for_fallbacks(plain: ChatOpenAI, budget: Budget) -> None:
    guarded = guard(plain, budget=budget, fallback=LocalChat(), prices=LOCAL_PRICES)
    bare, ours = Runs(), Runs()

    bound = guarded.bind_tools([search])
    plain.bind_tools([search]).invoke("hello", {"callbacks": [bare]})
    bound.invoke("hello", {"callbacks": [ours]})

    notes = bound.kwargs.keys() - plain.bind_tools([search]).kwargs.keys()
    assert notes
    assert ours.seen == bare.seen
    for note in notes:
        assert note not in guarded._get_llm_string(**bound.kwargs)


def test_callbacks_see_one_run_of_a_refused_call(plain: ChatOpenAI) -> None:
    runs = Runs()
    model = guard(plain, budget="$0.000001")

    model.invoke("hello", {"callbacks": [runs]})
    list(model.stream("hello", {"callbacks": [runs]}))

    kinds = [kind for kind, _ in runs.seen if kind != "token"]
    assert kinds == ["start", "end"] * 2


def test_answers_are_the_same(plain: ChatOpenAI, guarded: Any) -> None:
    def shown(message: Any) -> Any:
        return message.model_dump(exclude={"id": True, "response_metadata": {"id"}})

    assert shown(guarded.invoke("hello")) == shown(plain.invoke("hello"))
    streamed = [list(map(shown, model.stream("hello"))) for model in (guarded, plain)]
    assert streamed[0] == streamed[1]


def test_the_usage_of_a_stream_stays_hidden_unless_asked_for(
    make_chat: Callable[..., ChatOpenAI], budget: Budget, provider: SimulatedProvider
) -> None:
    usages = [
        [chunk.usage_metadata for chunk in guard(model, budget=budget).stream("hello")]
        for model in (make_chat(), make_chat(stream_usage=True))
    ]

    assert [any(usage) for usage in usages] == [False, True]
    assert all(r.body["stream_options"] == {"include_usage": True} for r in provider.received)
    check_books(budget, provider, records=2)


def test_configurable_fields_stay_guarded(
    plain: ChatOpenAI, budget: Budget, provider: SimulatedProvider
) -> None:
    fields = {
        "model_name": ConfigurableField(id="model"),
        "max_tokens": ConfigurableField(id="most"),
    }
    model = guard(plain, budget=budget).configurable_fields(**fields)

    model.invoke("hello", {"configurable": {"model": "gpt-4o-mini", "most": 5}})
    model.with_config(configurable={"model": "gpt-4.1-nano"}).invoke("hello")

    assert [record.model for record in budget.ledger] == ["gpt-4o-mini", "gpt-4.1-nano"]
    assert provider.received[0].body["max_completion_tokens"] == 5
    check_books(budget, provider, records=2)


def test_configurable_alternatives_stay_guarded(
    make_chat: Callable[..., ChatOpenAI], budget: Budget, provider: SimulatedProvider
) -> None:
    cheap = guard(make_chat(model="gpt-4o-mini"), budget=budget)
    model = guard(make_chat(), budget=budget).configurable_alternatives(
        ConfigurableField(id="tier"), default_key="dear", cheap=cheap
    )

    model.invoke("hello", {"configurable": {"tier": "cheap"}})

    assert [record.model for record in budget.ledger] == ["gpt-4o-mini"]
    check_books(budget, provider)


@pytest.mark.parametrize("configurable", ["any", ["model"]])
async def test_init_chat_model_is_guarded(
    configurable: Any, budget: Budget, provider: SimulatedProvider
) -> None:
    from langchain.chat_models import init_chat_model

    options = {"base_url": provider.base_url, "api_key": "unused", "max_tokens": 9}
    models = [
        guard(init_chat_model("openai:gpt-4o", **options), budget=budget),
        guard(
            init_chat_model("openai:gpt-4o", configurable_fields=configurable, **options),
            budget=budget,
            fallback="gpt-4o-mini",
        ),
    ]

    models[0].invoke("hello")
    config = {"configurable": {"model": "gpt-4.1-mini"}}
    models[1].invoke("hello", config)
    list(models[1].stream("hello", config))
    models[1].bind_tools([search]).with_config(tags=["a"]).invoke("hello", config)
    models[1].with_config(config).invoke("hello")

    assert [model.tokenfence for model in models] == [budget, budget]
    with pytest.raises(TypeError, match="guarded already"):
        guard(models[1], budget=budget)
    names = [record.model for record in budget.ledger]
    assert names == ["gpt-4o", "gpt-4.1-mini", "gpt-4.1-mini", "gpt-4.1-mini", "gpt-4.1-mini"]
    check_books(budget, provider, records=5)


# Structured output

METHODS = ["json_schema", "function_calling", "json_mode"]


@pytest.mark.parametrize("include_raw", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_structured_output_is_metered(
    method: Any, include_raw: bool, guarded: Any, budget: Budget, provider: SimulatedProvider
) -> None:
    if method == "json_mode":
        provider.behave(text='{"setup": "a", "punchline": "b"}')
    chain = guarded.with_structured_output(Joke, method=method, include_raw=include_raw)

    result = chain.invoke("Tell a joke, as JSON.")

    joke = result["parsed"] if include_raw else result
    assert isinstance(joke, Joke)
    check_books(budget, provider, records=1)


@pytest.mark.parametrize("method", METHODS)
def test_a_refused_structured_output_raises(
    method: Any, plain: ChatOpenAI, provider: SimulatedProvider
) -> None:
    chain = guard(plain, budget="$0.000001").with_structured_output(Joke, method=method)

    with pytest.raises(BudgetExceeded):
        chain.invoke("Tell a joke, as JSON.")
    with pytest.raises(BudgetExceeded):
        list(chain.stream("Tell a joke, as JSON."))
    assert provider.requests == 0


@pytest.mark.parametrize("include_raw", [False, True])
@pytest.mark.parametrize("method", METHODS)
async def test_structured_output_of_another_providers_fallback(
    method: Any, include_raw: bool, make_chat: Callable[..., ChatOpenAI]
) -> None:
    other = StructuredLocalChat(model="local-small", max_tokens=20)
    budget = Budget("$0.009")
    budget.record("0.000000001 USD")
    model = guard(make_chat(max_tokens=1_000), budget=budget, fallback=other, prices=LOCAL_PRICES)
    chain = model.with_structured_output(Joke, method=method, include_raw=include_raw)

    results = [chain.invoke("A joke."), await chain.ainvoke("A joke.")]
    streamed = [list(chain.stream("A joke.")), [part async for part in chain.astream("A joke.")]]
    # The keys of a raw answer come one after the other.
    results += [
        {key: value for part in parts for key, value in part.items()} if include_raw else parts[-1]
        for parts in streamed
    ]

    jokes = [result["parsed"] if include_raw else result for result in results]
    assert [joke.punchline for joke in jokes] == ["local"] * 4
    assert all(isinstance(joke, Joke) for joke in jokes)
    assert [record.model for record in budget.ledger][1:] == ["local-small"] * 4


class StructuredLocalChat(StreamingLocalChat):
    """A provider with a form of structured output of its own: words, of which the last counts."""

    def with_structured_output(
        self, schema: Any, *, include_raw: bool = False, **kwargs: Any
    ) -> Any:
        from langchain_core.runnables import RunnableLambda, RunnableMap, RunnablePassthrough

        asked = self.bind(local_form=schema.__name__)
        parser = RunnableLambda(
            lambda message: schema(setup="", punchline=message.content.split()[-1])
        )
        if not include_raw:
            return asked | parser
        parsed = RunnablePassthrough.assign(
            parsed=lambda answer: parser.invoke(answer["raw"]), parsing_error=lambda _: None
        )
        return RunnableMap(raw=asked) | parsed

    def _ask(self, messages: Any, options: dict[str, Any]) -> Any:
        assert options == {"local_form": "Joke"}
        return answer("my joke is local")


def test_a_class_that_takes_no_run_manager_is_called_without() -> None:
    class Older(LocalChat):
        def _generate(self, messages: Any, stop: Any = None, **kwargs: Any) -> Any:
            assert "run_manager" not in kwargs
            return super()._generate(messages, stop, **kwargs)

    model = guard(Older(max_tokens=20), budget="$1", prices=LOCAL_PRICES)
    assert model.invoke("hello").content == "hello"


def test_what_a_class_calls_of_its_own_methods_is_the_same_call() -> None:
    class Composed(StreamingLocalChat):
        def _generate(self, messages: Any, stop: Any = None, **kwargs: Any) -> Any:
            from langchain_core.language_models.chat_models import generate_from_stream

            return generate_from_stream(self._stream(messages, stop, **kwargs))

    budget = Budget("$1")
    model = guard(Composed(max_tokens=20), budget=budget, prices=LOCAL_PRICES)

    model.invoke("hello")

    assert [record.cost for record in budget.ledger] == [150_000]


def test_a_model_called_inside_of_another_is_metered_as_well() -> None:
    budget = Budget("$1")
    inner = guard(LocalChat(model="local-small"), budget=budget, prices=LOCAL_PRICES)

    def serve(messages: Any, **options: Any) -> Any:
        inner.invoke("think first")
        return answer("hello")

    outer = guard(LocalChat(serve=serve, max_tokens=20), budget=budget, prices=LOCAL_PRICES)
    outer.invoke("hello")

    assert isinstance(outer, BudgetedChatModel)
    assert [record.model for record in budget.ledger] == ["local-small", "local-large"]
    assert [record.cost for record in budget.ledger] == [15_000, 150_000]


@pytest.mark.filterwarnings("ignore:.*is in beta")
def test_a_providers_own_events_do_not_go_past_the_budget() -> None:
    class Native(StreamingLocalChat):
        def _stream_chat_model_events(self, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError("this goes past the budget")

    budget = Budget("$1")
    model = guard(Native(max_tokens=20), budget=budget, prices=LOCAL_PRICES)
    stream = model.stream_events("hello", version="v3")

    assert stream.output.text.strip() == "hello"
    assert [record.cost for record in budget.ledger] == [150_000]
