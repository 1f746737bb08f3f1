"""Guarded embeddings: copies of a dynamic subclass that meters each batch before it is sent."""

from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from langchain_core.embeddings import Embeddings

from tokenfence_integrations.engine.budget import Budget
from tokenfence_integrations.engine.calls.handover import Handover, offered
from tokenfence_integrations.engine.calls.meter import Call
from tokenfence_integrations.engine.calls.request import CallRequest
from tokenfence_integrations.errors import BudgetExceeded
from tokenfence_integrations.langchain.errors import LangChainBudgetExceeded
from tokenfence_integrations.langchain.openai_clients import Metered, still_metered
from tokenfence_integrations.langchain.terms import Terms
from tokenfence_integrations.models.flows import Flow, arun, run
from tokenfence_integrations.models.subclasses import guarded_class, guarded_copy
from tokenfence_integrations.pricing.rates import Card
from tokenfence_integrations.pricing.tokens import byte_bound, count_text
from tokenfence_integrations.usage import Usage

__all__ = ["BudgetedEmbeddings", "embedding_model_name", "guarded_embeddings"]

NAME_FIELDS = ("model", "model_name", "model_id", "deployment")
BATCH_FIELDS = ("chunk_size", "batch_size", "embed_batch_size")
"""Where embeddings keep how many texts they send in one request."""

if TYPE_CHECKING:
    _Embeddings = Embeddings
else:
    _Embeddings = object

running: "ContextVar[Any]" = ContextVar("tokenfence_embedding", default=None)
"""The guarded embeddings whose own code runs in this context: what it calls of its own methods is
the same request."""


class Way(NamedTuple):
    """The names of the methods that are called on a sync or on an async way."""

    documents: str
    query: str
    admit: str


SYNC = Way("embed_documents", "embed_query", "admit")
ASYNC = Way("aembed_documents", "aembed_query", "aadmit")


class BudgetedEmbeddings(_Embeddings):
    """The class of all guarded embeddings, in addition to their original class.

    Texts are sent in the original class's own batches, each with its own reservation. The
    ``embedded`` of a `BudgetExceeded` raised within a list holds the vectors already paid for.

    Example:
        >>> embeddings = guard(OpenAIEmbeddings(), budget="$1")  # doctest: +SKIP
        >>> embeddings.tokenfence.spent  # doctest: +SKIP
        0.0
    """

    tokenfence_terms: Terms
    tokenfence_metered_below: bool
    tokenfence_below: Metered | tuple[()]

    @property
    def tokenfence(self) -> Budget:
        """The budget that these embeddings' calls count against."""
        return self.tokenfence_terms.budget_now()

    def embed_documents(self, texts: Any, *args: Any, **kwargs: Any) -> list[list[float]]:
        return run(self._documents(SYNC, texts, args, kwargs))

    async def aembed_documents(self, texts: Any, *args: Any, **kwargs: Any) -> list[list[float]]:
        return await arun(self._documents(ASYNC, texts, args, kwargs))

    def embed_query(self, text: str, *args: Any, **kwargs: Any) -> list[float]:
        return run(self._query(SYNC, text, args, kwargs))

    async def aembed_query(self, text: str, *args: Any, **kwargs: Any) -> list[float]:
        return await arun(self._query(ASYNC, text, args, kwargs))

    def _documents(
        self, way: Way, texts: Sequence[str], args: Any, kwargs: Any
    ) -> Flow[list[list[float]]]:
        own = getattr(super(), way.documents)
        vectors: list[list[float]] = []
        for batch in self._batches(texts, kwargs):
            try:
                vectors += yield from self._metered(
                    way, batch, partial(own, batch, *args, **kwargs)
                )
            except BudgetExceeded as refusal:
                if isinstance(refusal, LangChainBudgetExceeded):
                    refusal.embedded = vectors
                raise
        return vectors

    def _query(self, way: Way, text: str, args: Any, kwargs: Any) -> Flow[list[float]]:
        own = getattr(super(), way.query)
        send = partial(own, text, *args, **kwargs)
        vector: list[float] = yield from self._metered(way, [text], send)
        return vector

    def _batches(self, texts: Sequence[str], kwargs: Any) -> Iterator[list[str]]:
        texts = list(texts)
        sizes = [kwargs.get("chunk_size"), *[getattr(self, name, None) for name in BATCH_FIELDS]]
        size = next((size for size in sizes if type(size) is int and size > 0), len(texts) or 1)
        if running.get() is self:
            size = len(texts) or 1
        for start in range(0, len(texts), size):
            yield texts[start : start + size]

    def _metered(self, way: Way, texts: list[str], send: Any) -> Flow[Any]:
        """One request: admitted, made, settled."""
        terms = self.tokenfence_terms
        if (self.tokenfence_metered_below and still_metered(self)) or running.get() is self:
            return (yield send)
        call = Call(
            terms.budget_now(),
            _request(self, texts, exact=terms.exact_input),
            terms.policy,
            terms.book,
            terms.error,
        )
        yield getattr(call, way.admit)
        handover = Handover(call, wire=True)
        tokens = running.set(self), offered.set(handover)
        try:
            answer = yield send
        except BaseException as error:
            if handover.has(call):
                call.fail(error)
            raise
        finally:
            running.reset(tokens[0])
            offered.reset(tokens[1])
        if handover.has(call):
            counted = _counted(texts, call.card) if terms.exact_input else None
            if counted is None:
                call.lose()  # LangChain's embeddings report no usage
            else:
                call.settle(Usage(counted))
        return answer


def embedding_model_name(embeddings: Embeddings) -> str:
    """The name of the model that embeds."""
    for field in NAME_FIELDS:
        name = getattr(embeddings, field, None)
        if isinstance(name, str) and name:
            return name.removeprefix("models/")
    return type(embeddings).__name__


def guarded_embeddings(embeddings: Any, terms: Terms, *, metered_below: bool) -> Any:
    """A copy of embeddings, as an instance of the guarded subclass of their class."""
    cls = guarded_class(type(embeddings), BudgetedEmbeddings)
    return guarded_copy(embeddings, cls, terms, metered_below=metered_below)


def _request(embeddings: Embeddings, texts: list[str], *, exact: bool) -> CallRequest:
    return CallRequest(
        embedding_model_name(embeddings),
        byte_bound(texts),
        (lambda card: _counted(texts, card)) if exact else None,
        max_output_tokens=0,
        ceiling=0,
        whole_window=False,
    )


def _counted(texts: list[str], card: Card | None) -> int | None:
    counts = [None if card is None else count_text(text, card.known_as) for text in texts]
    return None if None in counts else sum(filter(None, counts))
