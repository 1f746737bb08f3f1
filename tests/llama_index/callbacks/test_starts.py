"""What does not fit is refused before the provider is called, on every way through LlamaIndex."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from llama_index.core import PromptTemplate, Settings, SummaryIndex
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.instrumentation.dispatcher import instrument_tags
from llama_index.core.llms import MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.schema import TextNode
from llama_index.core.tools import FunctionTool

from tests.clients.helpers import check_books
from tests.llama_index import models
from tests.llama_index.callbacks.helpers import (
    ASYNC,
    FLAT,
    HELLO,
    PRICES,
    SYNC,
    Fact,
    flat_llm,
    outcomes,
    read,
)
from tokenfence_integrations import Budget, BudgetExceeded, Price, UnknownModelError
from tokenfence_integrations.llama_index import (
    BudgetCallbackHandler,
    LlamaIndexBudgetExceeded,
    installed,
)
from tokenfence_integrations.testing import SimulatedProvider

pytestmark = [
    # LlamaIndex looks at all members of its agents, deprecated ones of pydantic's included.
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning"),
]

PROMPT = PromptTemplate("Hello {name}")


def add(a: int, b: int) -> int:
    """Add."""
    return a + b


TOOL = FunctionTool.from_defaults(add)


def index() -> SummaryIndex:
    return SummaryIndex([TextNode(text="Water is wet.")])


def engine(mode: str) -> Any:
    # The default memory is a database that LlamaIndex never closes.
    memory = ChatMemoryBuffer.from_defaults(token_limit=4_000)
    return index().as_chat_engine(chat_mode=mode, memory=memory)


def agent(kind: Any = FunctionAgent, **options: Any) -> Any:
    return kind(name="adder", description="adds", tools=[TOOL], llm=Settings.llm, **options)


async def run(agent: Any) -> Any:
    return await agent.run("Hello")


SYNC_ENTRIES: dict[str, Callable[[Any], Any]] = {
    **SYNC,
    "chat_with_tools": lambda m: m.chat_with_tools([TOOL], "Hello"),
    "stream_chat_with_tools": lambda m: list(m.stream_chat_with_tools([TOOL], "Hello")),
    "predict": lambda m: m.predict(PROMPT, name="you"),
    "stream": lambda m: list(m.stream(PROMPT, name="you")),
    "structured_predict": lambda m: m.structured_predict(Fact, PROMPT, name="you"),
    "stream_structured_predict": lambda m: list(
        m.stream_structured_predict(Fact, PROMPT, name="you")
    ),
    "as_structured_llm": lambda m: m.as_structured_llm(Fact).chat(HELLO),
    "predict_and_call": lambda m: m.predict_and_call([TOOL], "Hello"),
    "compact": lambda m: index().as_query_engine().query("Hello"),
    "refine": lambda m: index().as_query_engine(response_mode="refine").query("Hello"),
    "tree_summarize": lambda m: (
        index().as_query_engine(response_mode="tree_summarize").query("Hello")
    ),
    "streaming query engine": lambda m: list(
        index().as_query_engine(streaming=True).query("Hello").response_gen
    ),
    "simple chat engine": lambda m: engine("simple").chat("Hello"),
    "context chat engine": lambda m: engine("context").chat("Hello"),
    "streaming chat engine": lambda m: list(engine("context").stream_chat("Hello").response_gen),
}
ASYNC_ENTRIES: dict[str, Callable[[Any], Any]] = {
    **ASYNC,
    "achat_with_tools": lambda m: m.achat_with_tools([TOOL], "Hello"),
    "astream_chat_with_tools": lambda m: read(m.astream_chat_with_tools([TOOL], "Hello")),
    "apredict": lambda m: m.apredict(PROMPT, name="you"),
    "astream": lambda m: read(m.astream(PROMPT, name="you")),
    "astructured_predict": lambda m: m.astructured_predict(Fact, PROMPT, name="you"),
    "astream_structured_predict": lambda m: read(
        m.astream_structured_predict(Fact, PROMPT, name="you")
    ),
    "apredict_and_call": lambda m: m.apredict_and_call([TOOL], "Hello"),
    "aquery": lambda m: index().as_query_engine().aquery("Hello"),
    "achat engine": lambda m: engine("context").achat("Hello"),
    "function agent": lambda m: run(agent()),
    "function agent, not streaming": lambda m: run(agent(streaming=False)),
    "react agent": lambda m: run(agent(ReActAgent)),
    "agent workflow": lambda m: run(AgentWorkflow(agents=[agent()], root_agent="adder")),
}


class TestRefused:
    """The provider is never called, nothing is left reserved, and the exception is the budget's."""

    @pytest.fixture(autouse=True)
    def no_room(self, make: Callable[..., Any]) -> Iterator[Any]:
        self.budget = Budget("$0.000000001")
        with installed(self.budget, prices=PRICES):
            Settings.llm = make(flat_llm, is_function_calling_model=True, context_window=8_000)
            yield

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    @pytest.mark.parametrize("call", SYNC_ENTRIES.values(), ids=SYNC_ENTRIES)
    def test_sync(self, provider: SimulatedProvider, call: Any) -> None:
        with pytest.raises(LlamaIndexBudgetExceeded, match="has no room for this call to flat"):
            call(Settings.llm)
        self.check(provider)

    @pytest.mark.parametrize("call", ASYNC_ENTRIES.values(), ids=ASYNC_ENTRIES)
    async def test_async(self, provider: SimulatedProvider, call: Any) -> None:
        with pytest.raises(LlamaIndexBudgetExceeded, match="has no room for this call to flat"):
            await call(Settings.llm)
        self.check(provider)

    def check(self, provider: SimulatedProvider) -> None:
        assert provider.requests == 0
        assert self.budget.reserved == 0
        assert self.budget.snapshot().spent.calls == 0


class TestReserved:
    """What is reserved is what LlamaIndex is going to send."""

    @pytest.fixture
    def bounds(self, budget: Budget) -> list[Any]:
        bounds: list[Any] = []
        budget.on_event(lambda e: bounds.append(e.bound) if e.kind == "admitted" else None)
        return bounds

    @pytest.mark.parametrize(
        ("made", "asked", "most"),
        [
            ({"max_tokens": 9}, {}, 9),
            ({"max_tokens": 9}, {"max_tokens": 5}, 9),  # the LLM's own is sent all the same
            ({"max_tokens": None}, {"max_tokens": 5}, 5),
            ({"max_tokens": None}, {}, 16),  # the model's ceiling
            ({"max_tokens": 9, "additional_kwargs": {"max_tokens": 12}}, {}, 12),
            ({"max_tokens": 5}, {"n": 3}, 15),
        ],
    )
    def test_output(
        self,
        with_handlers: Any,
        handler: Any,
        bounds: list[Any],
        provider: SimulatedProvider,
        made: dict[str, Any],
        asked: dict[str, Any],
        most: int,
    ) -> None:
        with_handlers(handler, **made).chat(HELLO, **asked)
        assert bounds == [most * 10_000]
        provider.idle()
        assert provider.billed <= bounds[0]

    def test_the_model_of_the_call(
        self, make: Any, handler: Any, budget: Budget, provider: SimulatedProvider
    ) -> None:
        llm = make(models.openai_llm, callback_manager=CallbackManager([handler]))
        llm.chat(HELLO, model="gpt-4o-mini")
        assert [record.model for record in budget.ledger] == ["gpt-4o-mini"]
        check_books(budget, provider)

    def test_expected_output_tokens(
        self, with_handlers: Any, budget: Budget, bounds: list[Any]
    ) -> None:
        handler = BudgetCallbackHandler(budget, prices=PRICES, expected_output_tokens=3)
        with_handlers(handler).chat(HELLO)
        assert bounds == [30_000]
        assert budget.snapshot().spent.usd == FLAT

    def test_exact_input(self, make: Any, budget: Budget, provider: SimulatedProvider) -> None:
        bounds: list[int] = []
        budget.on_event(lambda e: bounds.append(e.bound) if e.kind == "admitted" else None)
        handler = BudgetCallbackHandler(budget, exact_input=True)
        llm = make(models.openai_llm, max_tokens=7, callback_manager=CallbackManager([handler]))
        provider.behave(output_tokens=7)
        llm.chat(HELLO)
        check_books(budget, provider)
        assert bounds == [provider.billed]

    def test_of_the_payload_alone(self, budget: Budget, handler: BudgetCallbackHandler) -> None:
        """Somebody who tells of events in his own way: the payload has to do."""
        serialized = {"class_name": "mine", "model_name": "flat", "num_output": 12}
        payload = {EventPayload.MESSAGES: HELLO, EventPayload.SERIALIZED: serialized}
        handler.on_event_start(CBEventType.LLM, {**payload}, event_id="1")
        assert budget.snapshot().reserved.usd == 120_000
        unset = {EventPayload.SERIALIZED: {**serialized, "num_output": -1}}
        handler.on_event_start(CBEventType.LLM, {**payload, **unset}, event_id="2")
        assert budget.snapshot().reserved.usd == 120_000 + FLAT
        handler.on_event_end(CBEventType.LLM, {EventPayload.EXCEPTION: KeyError()}, event_id="1")
        handler.on_event_end(CBEventType.LLM, None, event_id="2")
        assert outcomes(budget) == ["uncertain", "uncertain"]

    def test_an_unknown_model(self, with_handlers: Any, provider: SimulatedProvider) -> None:
        with pytest.raises(UnknownModelError, match="flat"):
            with_handlers(BudgetCallbackHandler("$1")).chat(HELLO)
        assert provider.requests == 0

    def test_a_free_one(self, budget: Budget) -> None:
        prices = {"MockLLM": Price(input=0, output=0), "mock": Price(input=0, output=0)}
        handler = BudgetCallbackHandler(budget, prices=prices)
        llm = MockLLM(callback_manager=CallbackManager([handler]))
        assert llm.complete("Hello").text == "Hello"
        assert budget.spent == budget.uncertain == 0

    async def test_the_budget_in_scope(self, with_handlers: Any, budget: Budget) -> None:
        llm = with_handlers(BudgetCallbackHandler(prices=PRICES))
        with budget.scope():
            await llm.achat(HELLO)
        assert budget.snapshot().spent.usd == FLAT

    def test_warn(self, with_handlers: Any, caplog: Any) -> None:
        budget = Budget("$0")
        handler = BudgetCallbackHandler(budget, prices=PRICES, on_limit="warn")
        with_handlers(handler).chat(HELLO)
        assert "flat" in caplog.text
        assert budget.snapshot().spent.usd == FLAT


class TestAllocations:
    @pytest.fixture
    def handler(self, budget: Budget) -> BudgetCallbackHandler:
        shares = {"researcher": "$1", "team=alpha": None, "adder": "$2"}
        return BudgetCallbackHandler(budget, prices=PRICES, allocations=shares)

    @pytest.mark.parametrize(
        ("tags", "child"),
        [({"role": "researcher"}, "researcher"), ({"team": "alpha"}, "team=alpha"), ({"a": 1}, "")],
    )
    def test_by_tags(self, llm: Any, budget: Budget, tags: Any, child: str) -> None:
        with instrument_tags(tags):
            llm.chat(HELLO)
        [record] = budget.ledger
        assert record.budget == (f"budget/{child}" if child else "budget")
        assert record.tags == tags

    @pytest.mark.parametrize("streaming", [True, False])
    async def test_by_agent(
        self, with_handlers: Any, handler: Any, budget: Budget, streaming: bool
    ) -> None:
        llm = with_handlers(handler, is_function_calling_model=True, context_window=8_000)
        made = FunctionAgent(
            name="adder", description="adds", tools=[TOOL], llm=llm, streaming=streaming
        )
        await run(AgentWorkflow(agents=[made], root_agent="adder"))
        assert budget.children["adder"].snapshot().spent.usd == FLAT

    def test_a_share_holds(self, with_handlers: Any, budget: Budget, provider: Any) -> None:
        handler = BudgetCallbackHandler(budget, prices=PRICES, allocations={"poor": 0})
        llm = with_handlers(handler)
        with instrument_tags({"role": "poor"}), pytest.raises(BudgetExceeded):
            llm.chat(HELLO)
        assert provider.requests == 0


class TestArguments:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"on_limit": "stop"}, "a callback has no reply"),
            ({"expected_output_tokens": 0}, "expected_output_tokens must be 1 or more"),
            ({"lease": 0}, "lease must be"),
            ({"allocations": {"a/b": 1}}, "must be text without '/'"),
            ({"allocations": {"a~b": 1}}, "must be text without '/' and '~'"),
        ],
    )
    def test_out_of_range(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            BudgetCallbackHandler("$1", **options)
