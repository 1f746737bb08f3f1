"""What a query would cost, told before anything is sent: a dry run of the engine.

The engine runs as it would, on a copy whose LLMs and embedding models answer with filler text and
note what they were asked. It runs once with answers of an expected length, for an estimate, and
once with answers as long as they can be, for a bound.
"""

from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.base_selector import BaseSelector, SelectorResult, SingleSelection
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager
from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.llms import LLM, ChatMessage, ChatResponse, CompletionResponse
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.question_gen.types import BaseQuestionGenerator, SubQuestion
from llama_index.core.schema import NodeWithScore, TextNode
from pydantic import BaseModel

from tokenfence_integrations.engine.calls.request import CallRequest
from tokenfence_integrations.errors import TokenFenceError, in_units
from tokenfence_integrations.llama_index.components import with_parts
from tokenfence_integrations.llama_index.embeddings import request_for_texts
from tokenfence_integrations.llama_index.exchange import request_for
from tokenfence_integrations.llama_index.openai_clients import counts_exactly
from tokenfence_integrations.llama_index.providers import provider_of
from tokenfence_integrations.models.subclasses import guarded_class, guarded_copy
from tokenfence_integrations.pricing.book import Cards, Prices, as_book
from tokenfence_integrations.usage import Usage

__all__ = ["Cost", "CostEstimate", "cost_of"]

WORD = " word"
"""Filler, of which each repetition is one token."""

BYTES_PER_TOKEN = 4
"""Of English prose: what is expected where a tokenizer is not known."""

DEFAULT_CHUNK = 1_024
"""Tokens of a node that cannot be looked at: LlamaIndex's own chunk size."""


class Cost(NamedTuple):
    """What a query costs.

    Args:
        usd: Dollars.
        calls: Provider calls.
        input_tokens: Tokens of all prompts and embedded texts.
        output_tokens: Tokens of all answers.
    """

    usd: float
    calls: int
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """What one query of an engine would cost.

    Args:
        expected: With answers of the expected length.
        bound: The most, with answers as long as they can be: with a budget of this size no call of
            the query is refused, as far as the assumptions hold.
        assumptions: What could not be known, and was assumed.
    """

    expected: Cost
    bound: Cost
    assumptions: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{name} ${cost.usd:.6f} ({in_units(cost.calls, 'calls')}, "
            f"{cost.input_tokens:,} tokens in, "
            f"{cost.output_tokens:,} out)"
            for name, cost in (("expected", self.expected), ("at most ", self.bound))
        ]
        return "\n".join([*lines, *[f"assuming {assumed}" for assumed in self.assumptions]])


class UnforeseenError(TokenFenceError, ValueError):
    """An engine whose next step depends on an answer, in a way that a dry run cannot know."""


def cost_of(
    query_engine: BaseQueryEngine,
    question: str,
    *,
    expected_output_tokens: int = 256,
    sub_questions: int | None = None,
    prices: Prices = None,
) -> CostEstimate:
    """Estimate what a query would cost; nothing is sent.

    Retrieval by similarity takes the longest nodes of the index, since only the embedding model
    knows which ones are similar. Each engine of a router is tried: the most expensive one gives the
    bound, their mean the estimate.

    Args:
        query_engine: Any query engine, guarded or not; it is left unchanged.
        question: What would be asked.
        expected_output_tokens: The expected length of each answer, 1 or more.
        sub_questions: How many questions a sub-question engine asks, 1 or more; default: one for
            each of its engines.
        prices: Your own prices by model name; guarded LLMs use their own.

    Returns:
        The estimate and the bound.

    Raises:
        TypeError: It is not a query engine.
        UnknownModelError: A model has no known price.
        ValueError: A number is out of range, or the course of the query cannot be foreseen (such as
            an agent's).

    Example:
        >>> estimate = cost_of(index.as_query_engine(), "Why?")  # doctest: +SKIP
        >>> estimate.expected.usd, estimate.bound.calls  # doctest: +SKIP
        (0.00061, 2)
    """
    if not isinstance(query_engine, BaseQueryEngine):
        raise TypeError(
            f"cost_of() takes a query engine, got {type(query_engine).__name__}: the calls of an "
            f"agent or a conversation cannot be known in advance"
        )
    for name, number in (
        ("expected_output_tokens", expected_output_tokens),
        ("sub_questions", 1 if sub_questions is None else sub_questions),
    ):
        if type(number) is not int or number < 1:
            raise ValueError(f"{name} must be 1 or more, got {number!r}")
    expected = DryRun(prices, expected_output_tokens, sub_questions)
    runs = expected.through(query_engine, question)
    most = DryRun(prices, None, sub_questions).through(query_engine, question)
    mean = [sum(parts) / len(runs) for parts in zip(*[run.cost() for run in runs], strict=True)]
    bound = max((run.cost() for run in most), key=lambda cost: cost.usd)
    assumptions = dict.fromkeys(told for run in (*runs, *most) for told in run.assumptions)
    return CostEstimate(
        Cost(mean[0], *[round(number) for number in mean[1:]]), bound, tuple(assumptions)
    )


@dataclass(slots=True)
class DryRun:
    """One dry run of an engine, and what was noted in it.

    Args:
        prices: Prices of your own.
        output_tokens: The length of each answer; None: as long as it can be.
        sub_questions: How many questions a sub-question engine asks.
        choice: Which engine each router chooses, from 0.
    """

    prices: Prices
    output_tokens: int | None
    sub_questions: int | None
    choice: int = 0
    choices: int = 1
    total: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    assumptions: dict[str, None] = field(default_factory=dict)

    def through(self, engine: BaseQueryEngine, question: str) -> "list[DryRun]":
        """Run it, once for each choice that its routers have."""
        runs: list[DryRun] = []
        while not runs or len(runs) < runs[0].choices:
            run = replace(self, choice=len(runs), total=[0, 0, 0, 0], assumptions={})
            run._make(engine, question)
            runs.append(run)
        return runs

    def cost(self) -> Cost:
        """What was noted."""
        usd, *counts = self.total
        return Cost(usd / 1e9, *counts)

    def _make(self, engine: BaseQueryEngine, question: str) -> None:
        dry = with_parts(engine, self._part)
        try:
            response = BaseQueryEngine.query(dry, question)
            for _ in getattr(response, "response_gen", None) or ():
                pass
        except TokenFenceError:
            raise
        except Exception as error:
            raise UnforeseenError(
                f"the course of a query of {type(engine).__name__} depends on the answers, and "
                f"cannot be foreseen ({type(error).__name__}: {error})"
            ) from error

    def _part(self, part: Any) -> Any:
        """The dry form of a part of an engine."""
        if isinstance(part, CallbackManager):
            return _unheard()
        if isinstance(part, StructuredLLM):
            return part
        if isinstance(part, LLM):
            return _dry(part, DryLLM, self)
        if isinstance(part, BaseEmbedding):
            return _dry(part, DryEmbedding, self)
        if isinstance(part, BaseSelector) and not isinstance(part, DrySelector):
            return DrySelector(with_parts_of(part, self._part), self)
        if isinstance(part, BaseQuestionGenerator) and not isinstance(part, DryQuestions):
            return DryQuestions(with_parts_of(part, self._part), self)
        if isinstance(part, VectorIndexRetriever):
            return DryRetriever(part, self)
        return part

    # What is noted

    def answer(self, llm: LLM, content: str | Sequence[ChatMessage], options: Any) -> str:
        """Note a call to an LLM.

        Returns:
            Filler as long as the answer.
        """
        request = request_for(llm, content, options, exact=True)
        output = self._note(llm, request, "llms")
        return WORD * output

    def embed(self, embedding: BaseEmbedding, texts: Sequence[str]) -> None:
        """Note a request for embeddings."""
        self._note(embedding, request_for_texts(embedding, texts, exact=True), "embeddings")

    def _note(self, thing: Any, request: CallRequest, kind: str) -> int:
        terms = getattr(thing, "tokenfence_terms", None)
        book: Cards = (
            as_book(self.prices, provider_of(thing, kind)) if terms is None else terms.book
        )
        card = book.card(request.model)
        own = request.max_output_tokens
        longest = 0 if request.ceiling == 0 else (own or request.most_output(card))
        into = request.most_input(card)
        counted = None if request.exact_tokens is None else request.exact_tokens(card)
        if self.output_tokens is None:
            output, exact = longest, counts_exactly(thing)
            into = into if counted is None or not exact else min(into, counted)
            usd = card.bound(into, output * request.choices, service_tier=request.service_tier)
        else:
            output = min(self.output_tokens, longest)
            into = into // BYTES_PER_TOKEN if counted is None else counted
            used = Usage(into, output * request.choices)
            usd = card.cost(used, service_tier=request.service_tier)
        for place, count in enumerate((usd, 1, into, output * request.choices)):
            self.total[place] += count
        return output


def _dry(thing: Any, mixin: type, run: DryRun) -> Any:
    terms = getattr(thing, "tokenfence_terms", None)
    cls = guarded_class(type(thing), mixin, _dry_names)
    below = getattr(thing, "tokenfence_metered_below", False)
    copied = guarded_copy(thing, cls, terms, metered_below=below)
    copied.tokenfence_run = run
    copied.callback_manager = _unheard()
    return copied


def _unheard() -> CallbackManager:
    """A callback manager without handlers: made without any, it takes those of the settings."""
    manager = CallbackManager()
    manager.set_handlers([])
    return manager


def _dry_names(cls: Any) -> dict[str, Any]:
    from pydantic import Field

    return {
        "__annotations__": {"tokenfence_run": Any},
        "tokenfence_run": Field(default=None, exclude=True, repr=False),
    }


def with_parts_of(part: Any, replace_part: Callable[[Any], Any]) -> Any:
    """A copy of a part with its own parts replaced, itself being left out."""
    return with_parts(part, lambda one: one if one is part else replace_part(one))


if TYPE_CHECKING:
    _LLM = LLM
    _Embedding = BaseEmbedding
else:
    _LLM = _Embedding = object


class DryLLM(_LLM):
    """An LLM that answers with filler, and sends nothing."""

    tokenfence_run: DryRun

    def _text(self, content: Any, options: Any) -> str:
        return self.tokenfence_run.answer(self, content, options)

    def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        text = self._text(messages, kwargs)
        return ChatResponse(message=ChatMessage(text, role="assistant"), delta=text)

    def complete(self, prompt: Any, *args: Any, **kwargs: Any) -> CompletionResponse:
        text = self._text(prompt, kwargs)
        return CompletionResponse(text=text, delta=text)

    async def achat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        return self.chat(messages, **kwargs)

    async def acomplete(self, prompt: Any, *args: Any, **kwargs: Any) -> CompletionResponse:
        return self.complete(prompt, *args, **kwargs)

    def stream_chat(self, messages: Any, **kwargs: Any) -> Any:
        return _one(self.chat(messages, **kwargs))

    def stream_complete(self, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        return _one(self.complete(prompt, *args, **kwargs))

    async def astream_chat(self, messages: Any, **kwargs: Any) -> Any:
        return _aone(self.chat(messages, **kwargs))

    async def astream_complete(self, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        return _aone(self.complete(prompt, *args, **kwargs))

    def structured_predict(
        self, output_cls: Any, prompt: Any, llm_kwargs: Any = None, **prompt_args: Any
    ) -> Any:
        messages = prompt.format_messages(**prompt_args)
        options = {**(llm_kwargs or {}), "response_format": output_cls}
        return _made_up(output_cls, self._text(messages, options))

    async def astructured_predict(self, *args: Any, **kwargs: Any) -> Any:
        return self.structured_predict(*args, **kwargs)

    def stream_structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        return _one(self.structured_predict(*args, **kwargs))

    async def astream_structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        return _aone(self.structured_predict(*args, **kwargs))


class DryEmbedding(_Embedding):
    """An embedding model that makes no vectors, and sends nothing."""

    tokenfence_run: DryRun

    def _get_text_embeddings(self, texts: Any) -> Any:
        self.tokenfence_run.embed(self, texts)
        return [[1.0]] * len(texts)

    def _get_text_embedding(self, text: Any) -> Any:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: Any) -> Any:
        return self._get_text_embeddings([query])[0]

    async def _aget_text_embeddings(self, texts: Any) -> Any:
        return self._get_text_embeddings(texts)

    async def _aget_text_embedding(self, text: Any) -> Any:
        return self._get_text_embedding(text)

    async def _aget_query_embedding(self, query: Any) -> Any:
        return self._get_text_embedding(query)


class DryRetriever(BaseRetriever):
    """Retrieves the longest nodes of an index, in place of the most similar ones."""

    def __init__(self, retriever: VectorIndexRetriever, run: DryRun) -> None:
        super().__init__()
        self._retriever = retriever
        self._run = run

    def _retrieve(self, query_bundle: Any) -> list[NodeWithScore]:
        retriever, run = self._retriever, self._run
        if retriever._needs_embedding() and query_bundle.embedding is None:
            run.embed(retriever._embed_model, query_bundle.embedding_strs)
        count = retriever.similarity_top_k
        known = [*getattr(retriever._docstore, "docs", {}).values()]
        longest = sorted(known, key=lambda node: len(node.get_content()), reverse=True)
        run.assumptions[f"the {count} longest nodes of the index are retrieved"] = None
        if not longest:
            run.assumptions[
                f"nodes of {DEFAULT_CHUNK} tokens: those of the vector store cannot be seen here"
            ] = None
            longest = [TextNode(text=WORD * DEFAULT_CHUNK)] * count
        return [NodeWithScore(node=node, score=1.0) for node in longest[:count]]


class DrySelector(BaseSelector):
    """Makes a selector's call, and chooses what the run says."""

    def __init__(self, selector: BaseSelector, run: DryRun) -> None:
        self._selector = selector
        self._run = run

    def _get_prompts(self) -> dict[str, Any]:
        return {}

    def _update_prompts(self, prompts: Any) -> None:
        return None

    def _select(self, choices: Any, query: Any) -> SelectorResult:
        _asked(lambda: self._selector._select(choices, query))
        run, count = self._run, len(choices)
        if "Multi" in type(self._selector).__name__:
            run.assumptions["a selector of several engines selects all of them"] = None
            chosen = range(count)
        else:
            run.choices = max(run.choices, count)
            chosen = range(run.choice % count, run.choice % count + 1)
        return SelectorResult(selections=[SingleSelection(index=i, reason="") for i in chosen])

    async def _aselect(self, choices: Any, query: Any) -> SelectorResult:
        return self._select(choices, query)


class DryQuestions(BaseQuestionGenerator):
    """Makes a question generator's call, and asks the question itself of each engine."""

    def __init__(self, generator: BaseQuestionGenerator, run: DryRun) -> None:
        self._generator = generator
        self._run = run

    def _get_prompts(self) -> dict[str, Any]:
        return {}

    def _update_prompts(self, prompts: Any) -> None:
        return None

    def generate(self, tools: Any, query: Any) -> list[SubQuestion]:
        _asked(lambda: self._generator.generate(tools, query))
        count = self._run.sub_questions or len(tools)
        self._run.assumptions[f"{count} sub-questions are asked"] = None
        names = [tools[place % len(tools)].name for place in range(count)]
        return [SubQuestion(sub_question=query.query_str, tool_name=name) for name in names]

    async def agenerate(self, tools: Any, query: Any) -> list[SubQuestion]:
        return self.generate(tools, query)


def _asked(ask: Callable[[], Any]) -> None:
    """Have a call noted whose answer, being filler, cannot be parsed."""
    try:
        ask()
    except TokenFenceError:
        raise
    except Exception:
        return


def _made_up(output_cls: type[BaseModel], text: str) -> BaseModel:
    """An object of some class, of filler; only its size counts."""
    made: dict[str, Any] = {}
    for name, about in output_cls.model_fields.items():
        samples: dict[Any, Any] = {str: text, bool: True, int: 1, float: 1.0, list: [], dict: {}}
        made[name] = samples.get(about.annotation)
    return output_cls.model_construct(**made)


def _one(response: Any) -> Generator[Any, None, None]:
    yield response


async def _aone(response: Any) -> AsyncGenerator[Any, None]:
    yield response
