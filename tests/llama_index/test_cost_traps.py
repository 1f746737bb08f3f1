"""Five ways in which LlamaIndex's users spend more than they meant to, each within a budget.

Each budget is passed by the run without a guard, by the provider's bill. With one, the bill stays
within it, and what is paid for is given back.
"""

from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import PromptHelper, VectorStoreIndex, get_response_synthesizer
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.schema import NodeWithScore, TextNode

from tests.clients.helpers import check_books, in_dollars
from tests.llama_index import models
from tests.llama_index.entry_points import (
    OWN_WARNINGS,
    QUESTION,
    answers,
    function_agent,
    looping,
    memory,
    query_engine,
    sub_question,
)
from tokenfence_integrations import Budget, BudgetExceeded, guard
from tokenfence_integrations.testing import SimulatedProvider
from tokenfence_integrations.testing.script import Request

pytestmark = OWN_WARNINGS

NOTICE = "[TokenFence] Budget of"


@pytest.fixture
def plain(make: Callable[..., Any]) -> Any:
    return make(models.openai_llm, max_tokens=200)


def _part_of(provider: SimulatedProvider, share: float = 0.5) -> Budget:
    """A budget of a share of what was billed so far; the provider's books begin anew."""
    provider.idle()
    spent = provider.billed
    provider.clear()
    return Budget(in_dollars(int(spent * share)))


def _check_kept(budget: Budget, provider: SimulatedProvider) -> None:
    check_books(budget, provider)
    assert 0 < provider.billed <= (budget.snapshot().limits.usd or 0)


class TestSubQuestions:
    """One query is six calls: the questions, four answers, and the summary."""

    @pytest.fixture(autouse=True)
    def scripted(self, provider: SimulatedProvider) -> None:
        provider.script = answers
        provider.behave(output_tokens=150)

    def test_the_answers_so_far_are_returned(self, plain: Any, provider: SimulatedProvider) -> None:
        sub_question(plain, use_async=False).query(QUESTION)
        assert provider.requests == 6
        budget = _part_of(provider, 0.75)

        response = sub_question(guard(plain, budget=budget), use_async=False).query(QUESTION)

        _check_kept(budget, provider)
        answered = [n.text for n in response.source_nodes if n.text.startswith("Sub question")]
        paid = [text for text in answered if NOTICE not in text]
        assert len(paid) == provider.requests - 1 > 0
        assert NOTICE in str(response)

    async def test_a_fallback_answers_the_rest(
        self, plain: Any, provider: SimulatedProvider
    ) -> None:
        await sub_question(plain).aquery(QUESTION)
        budget = _part_of(provider)

        llm = guard(plain, budget=budget, fallback="gpt-4o-mini")
        response = await sub_question(llm).aquery(QUESTION)

        _check_kept(budget, provider)
        assert provider.requests == 6
        assert NOTICE not in str(response)


class TestTreeSummarize:
    """Twenty chunks are twenty summaries, and one or more of those."""

    CHUNKS = 20
    WORDS = 600

    @pytest.fixture(autouse=True)
    def scripted(self, provider: SimulatedProvider) -> None:
        provider.script = self._summary

    @staticmethod
    def _summary(request: Request) -> str:
        asked = str(request.body["messages"][-1]["content"])
        return "All of them." if "Summary" in asked else f"Summary {request.index}."

    def _query(self, llm: Any, **options: Any) -> Any:
        helper = PromptHelper(context_window=1_500, num_output=200, chunk_overlap_ratio=0)
        synthesizer = get_response_synthesizer(
            llm=llm, response_mode="tree_summarize", prompt_helper=helper, **options
        )
        nodes = [
            NodeWithScore(node=TextNode(text=" ".join([f"tide{i}"] * self.WORDS)), score=1.0)
            for i in range(self.CHUNKS)
        ]
        return synthesizer, nodes

    def test_the_summaries_so_far_are_summarized(
        self, plain: Any, provider: SimulatedProvider
    ) -> None:
        synthesizer, nodes = self._query(plain)
        assert str(synthesizer.synthesize(QUESTION, nodes)) == "All of them."
        assert provider.requests > self.CHUNKS
        budget = _part_of(provider)

        synthesizer, nodes = self._query(guard(plain, budget=budget))
        response = str(synthesizer.synthesize(QUESTION, nodes))

        _check_kept(budget, provider)
        assert response.startswith("All of them.\n\n[TokenFence] Budget of")
        asked = str(provider.received[-1].body["messages"])
        assert all(f"Summary {i}." in asked for i in range(provider.requests - 1))

    def test_the_summaries_so_far_are_returned(
        self, plain: Any, provider: SimulatedProvider
    ) -> None:
        budget = Budget(calls=8)
        synthesizer, nodes = self._query(guard(plain, budget=budget))
        response = str(synthesizer.synthesize(QUESTION, nodes))

        check_books(budget, provider)
        assert all(f"Summary {i}." in response for i in range(8))
        assert response.count(NOTICE) == 1

    def test_nothing_is_asked_of_refusals_alone(
        self, plain: Any, provider: SimulatedProvider
    ) -> None:
        """A last summary of nothing would fit."""
        synthesizer, nodes = self._query(guard(plain, budget="$0.006", min_output_tokens=200))
        assert str(synthesizer.synthesize(QUESTION, nodes)).startswith(NOTICE)
        assert provider.requests == 0

    @pytest.mark.parametrize("streaming", [False, True])
    async def test_a_last_summary_of_some_says_so(
        self, plain: Any, provider: SimulatedProvider, streaming: bool
    ) -> None:
        """Side by side, each holds more than it costs: when all are done, the last one may fit."""
        synthesizer, nodes = self._query(plain)
        await synthesizer.asynthesize(QUESTION, nodes)
        budget = _part_of(provider)

        synthesizer, nodes = self._query(guard(plain, budget=budget), streaming=streaming)
        response = await synthesizer.asynthesize(QUESTION, nodes)
        said = "".join([t async for t in response.response_gen]) if streaming else str(response)

        _check_kept(budget, provider)
        assert said.startswith("All of them.\n\n[TokenFence] Budget of")
        assert said.count(NOTICE) == 1
        assert NOTICE not in str(provider.received[-1].body["messages"])

    @pytest.mark.parametrize("streaming", [False, True])
    def test_the_last_summary_alone_does_not_fit(
        self, plain: Any, provider: SimulatedProvider, streaming: bool
    ) -> None:
        synthesizer, nodes = self._query(plain)
        synthesizer.synthesize(QUESTION, nodes)
        calls = provider.requests
        provider.clear()
        budget = Budget(calls=calls - 1)

        synthesizer, nodes = self._query(guard(plain, budget=budget), streaming=streaming)
        response = str(synthesizer.synthesize(QUESTION, nodes))

        check_books(budget, provider)
        assert provider.requests == calls - 1
        assert response.count("Summary ") == provider.requests
        assert response.endswith("Request blocked.")

    @pytest.mark.parametrize("streaming", [False, True])
    def test_refining_keeps_the_answer_so_far(
        self, plain: Any, provider: SimulatedProvider, streaming: bool
    ) -> None:
        provider.script = lambda request: f"Answer {request.index}."
        budget = Budget(calls=1)
        engine = query_engine(guard(plain, budget=budget), "refine", streaming=streaming)

        response = str(engine.query(QUESTION))

        assert response.startswith("Answer 0.\n\n[TokenFence] Budget of 1 call exceeded")
        assert provider.requests == 1

    def test_answers_to_other_questions_are_not_mixed_in(
        self, plain: Any, provider: SimulatedProvider
    ) -> None:
        provider.script = lambda _: "tide"
        budget = Budget(calls=1)
        engine = query_engine(guard(plain, budget=budget))
        assert str(engine.query(QUESTION)) == "tide"
        assert str(engine.query(QUESTION)).startswith(NOTICE)


class TestAgent:
    """A tool that fails is called again and again, each time with all that was before."""

    CALLS = 12

    async def test_the_tools_results_are_returned(
        self, plain: Any, provider: SimulatedProvider
    ) -> None:
        provider.script = lambda request: (
            looping(request) if request.tool_results < self.CALLS else "I give up."
        )
        output = await function_agent(plain).run(user_msg=QUESTION, memory=memory([]))
        assert len(output.tool_calls) == self.CALLS
        budget = _part_of(provider)

        said = memory([])
        agent = function_agent(guard(plain, budget=budget))
        output = await agent.run(user_msg=QUESTION, memory=said)

        _check_kept(budget, provider)
        assert NOTICE in str(output)
        assert len(output.tool_calls) == provider.requests >= self.CALLS // 3
        assert sum(message.role == "tool" for message in said.get_all()) == provider.requests


class TestEmbeddings:
    """Two thousand nodes are two hundred requests."""

    NODES = 2_000
    BATCH = 10

    @pytest.fixture
    def nodes(self) -> list[TextNode]:
        return [TextNode(text=f"Tide {i} is high.") for i in range(self.NODES)]

    def test_it_is_known_how_many_are_embedded(
        self, make: Callable[..., Any], provider: SimulatedProvider, nodes: list[TextNode]
    ) -> None:
        plain = make(models.openai_embedding, embed_batch_size=self.BATCH)
        VectorStoreIndex([node.model_copy() for node in nodes], embed_model=plain)
        all_requests = provider.requests
        budget = _part_of(provider)

        embed_model = guard(plain, budget=budget)
        with pytest.raises(BudgetExceeded) as refused:
            VectorStoreIndex([node.model_copy() for node in nodes], embed_model=embed_model)
        _check_kept(budget, provider)
        assert refused.value.completed == provider.requests * self.BATCH

        budget.top_up("$1")
        VectorStoreIndex([node.model_copy() for node in nodes], embed_model=embed_model)
        assert provider.requests == all_requests  # nothing was paid for twice
        _check_kept(budget, provider)


class TestChat:
    """Each turn sends all turns before it."""

    TURNS = 15

    def _talk(self, engine: Any) -> list[str]:
        return [str(engine.chat(f"{QUESTION} Again, {i}.")) for i in range(self.TURNS)]

    def test_the_history_is_kept(self, plain: Any, provider: SimulatedProvider) -> None:
        self._talk(SimpleChatEngine.from_defaults(llm=plain, memory=memory([])))
        budget = _part_of(provider)

        llm = guard(plain, budget=budget)
        engine = SimpleChatEngine.from_defaults(llm=llm, memory=memory([]))
        said = self._talk(engine)

        _check_kept(budget, provider)
        assert self.TURNS // 3 < provider.requests < self.TURNS
        assert [NOTICE in text for text in said] == [
            turn >= provider.requests for turn in range(self.TURNS)
        ]
        history = [str(message.content) for message in engine.chat_history]
        assert history[1::2] == said

    def test_counting_afterwards_stops_too_late(
        self, plain: Any, provider: SimulatedProvider
    ) -> None:
        """LlamaIndex's own token budget: the call that passes it is paid, and its answer lost."""
        self._talk(SimpleChatEngine.from_defaults(llm=plain, memory=memory([])))
        provider.idle()
        allowed = sum(line.input_tokens + line.output_tokens for line in provider.bill) // 2
        provider.clear()

        counting = plain.model_copy()
        handler = TokenCountingHandler(token_budget=allowed, verbose=False)
        counting.callback_manager = CallbackManager([handler])
        engine = SimpleChatEngine.from_defaults(llm=counting, memory=memory([]))
        with pytest.raises(ValueError, match="Token budget exceeded"):
            self._talk(engine)
        provider.idle()
        spent = sum(line.input_tokens + line.output_tokens for line in provider.bill)
        assert spent > allowed
        assert sum(m.role == "assistant" for m in engine.chat_history) == provider.requests - 1

        provider.clear()
        budget = Budget(tokens=allowed)
        self._talk(
            SimpleChatEngine.from_defaults(llm=guard(plain, budget=budget), memory=memory([]))
        )
        provider.idle()
        assert sum(line.input_tokens + line.output_tokens for line in provider.bill) <= allowed
