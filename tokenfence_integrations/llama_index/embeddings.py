"""Guarded embedding models: copies of a dynamic subclass that meters each batch before it is sent.

What is overridden lies below LlamaIndex's cache of embeddings, where one call is one request.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from llama_index.core.base.embeddings.base import BaseEmbedding

from tokenfence_integrations.engine.budget import Budget
from tokenfence_integrations.engine.meter import Call
from tokenfence_integrations.engine.request import CallRequest
from tokenfence_integrations.errors import BudgetExceeded
from tokenfence_integrations.llama_index.errors import LlamaIndexBudgetExceeded
from tokenfence_integrations.llama_index.terms import Terms
from tokenfence_integrations.models.exchange import Exchange, runs
from tokenfence_integrations.models.flows import Flow, arun, run
from tokenfence_integrations.pricing.rates import Card
from tokenfence_integrations.pricing.tokens import byte_bound, count_text
from tokenfence_integrations.usage import Usage

__all__ = ["BudgetedEmbedding", "counted_texts", "request_for_texts"]

Vector = list[float]

if TYPE_CHECKING:
    _Embedding = BaseEmbedding
else:
    _Embedding = object


class Way(NamedTuple):
    """The names of the methods that are called on a sync or on an async way."""

    texts: str
    text: str
    query: str
    admit: str


SYNC = Way("_get_text_embeddings", "_get_text_embedding", "_get_query_embedding", "admit")
ASYNC = Way("_aget_text_embeddings", "_aget_text_embedding", "_aget_query_embedding", "aadmit")


class Listing:
    """A list of texts that is being embedded, batch by batch.

    Attributes:
        vectors: By text, what is embedded already.
        refusal: Why it goes no further; batches that have not begun are not sent.
    """

    __slots__ = ("_tasks", "refusal", "vectors")

    def __init__(self) -> None:
        self.vectors: dict[str, Vector] = {}
        self.refusal: BudgetExceeded | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    @contextmanager
    def batch(self) -> Iterator[None]:
        """One batch of the list.

        Raises:
            BudgetExceeded: Another batch was refused already.
        """
        if self.refusal is not None:
            raise self.refusal
        task = _current_task()
        if task is not None:
            self._tasks.add(task)
        try:
            yield
        except BudgetExceeded as refusal:
            self.refusal = refusal
            raise

    async def settled(self) -> None:
        """Wait for the batches in flight: LlamaIndex leaves them running when one has failed."""
        others = self._tasks - {_current_task()}
        if others:
            await asyncio.wait(others)


listing: "ContextVar[Listing | None]" = ContextVar("tokenfence_listing", default=None)


class BudgetedEmbedding(_Embedding):
    """What all guarded embedding models are instances of, beside their own class.

    Each request has a reservation of its own. Where a list of texts meets the limit, the
    `BudgetExceeded` has as ``completed`` how many of them are embedded; their vectors are kept, and
    not paid for again when the list is embedded anew, after ``budget.top_up()``.

    Example:
        >>> embed_model = guard(OpenAIEmbedding(), budget="$1")  # doctest: +SKIP
        >>> index = VectorStoreIndex(nodes, embed_model=embed_model)  # doctest: +SKIP
    """

    tokenfence_terms: Terms
    tokenfence_metered_below: bool

    @property
    def tokenfence(self) -> Budget:
        """The budget that this model's calls count against."""
        return self.tokenfence_terms.budget_now()

    # Lists

    def get_text_embedding_batch(self, *args: Any, **kwargs: Any) -> list[Vector]:
        inner = super().get_text_embedding_batch
        with self._listing():
            return inner(*args, **kwargs)

    async def aget_text_embedding_batch(self, *args: Any, **kwargs: Any) -> list[Vector]:
        inner = super().aget_text_embedding_batch
        with self._listing() as begun:
            try:
                return await inner(*args, **kwargs)
            except BudgetExceeded:
                await begun.settled()
                raise

    @contextmanager
    def _listing(self) -> Iterator[Listing]:
        """Keep what is paid for of a list that meets the limit, and say how far it came."""
        kept = self.tokenfence_terms.kept_vectors
        begun = Listing()
        token = listing.set(begun)
        try:
            yield begun
        except BudgetExceeded as refusal:
            kept.update(begun.vectors)
            if isinstance(refusal, LlamaIndexBudgetExceeded):
                refusal.completed = len(begun.vectors)
            raise
        else:
            for text in begun.vectors:
                kept.pop(text, None)
        finally:
            listing.reset(token)

    # Requests

    def _get_text_embeddings(self, texts: Any) -> list[Vector]:
        return run(self._texts(SYNC, texts))

    async def _aget_text_embeddings(self, texts: Any) -> list[Vector]:
        return await arun(self._texts(ASYNC, texts))

    def _get_text_embedding(self, text: Any) -> Vector:
        return run(self._one(SYNC, SYNC.text, text))

    async def _aget_text_embedding(self, text: Any) -> Vector:
        return await arun(self._one(ASYNC, ASYNC.text, text))

    def _get_query_embedding(self, query: Any) -> Vector:
        return run(self._one(SYNC, SYNC.query, query))

    async def _aget_query_embedding(self, query: Any) -> Vector:
        return await arun(self._one(ASYNC, ASYNC.query, query))

    def _own(self, method: str) -> Any:
        """The class's own method."""
        return getattr(super(), method)

    def _one(self, way: Way, method: str, text: str) -> Flow[Vector]:
        vector: Vector = yield from self._metered(way, [text], partial(self._own(method), text))
        return vector

    def _texts(self, way: Way, texts: Sequence[str]) -> Flow[list[Vector]]:
        """One batch of a list; what was paid for before is not sent again."""
        begun = listing.get()
        if begun is None or runs(self):
            send = partial(self._own(way.texts), texts)
            vectors: list[Vector] = yield from self._metered(way, texts, send)
            return vectors
        kept = self.tokenfence_terms.kept_vectors
        known = {text: kept[text] for text in texts if text in kept}
        begun.vectors |= known
        missing = [text for text in texts if text not in known]
        if missing:
            with begun.batch():
                send = partial(self._own(way.texts), missing)
                vectors = yield from self._metered(way, missing, send)
            if not known:
                begun.vectors |= zip(texts, vectors, strict=True)
                return vectors
            known |= zip(missing, vectors, strict=True)
            begun.vectors |= known
        return [known[text] for text in texts]

    def _metered(self, way: Way, texts: Sequence[str], send: Any) -> Flow[Any]:
        """One request: admitted, made, settled."""
        if self.tokenfence_metered_below or runs(self):
            return (yield send)
        terms = self.tokenfence_terms
        request = request_for_texts(self, texts, exact=terms.exact_input)
        call = Call(terms.budget_now(), request, terms.policy, terms.book, terms.error)
        yield getattr(call, way.admit)
        exchange = Exchange(self, {}, call, metered_below=False)
        try:
            with exchange:
                answer = yield send
        except BaseException as error:
            exchange.failed(error)
            raise
        if not exchange.taken:
            counted = counted_texts(texts, call.card) if terms.exact_input else None
            # LlamaIndex's embeddings report no usage.
            exchange.settle(None if counted is None else Usage(counted), None, False)
        return answer


def request_for_texts(
    embedding: BaseEmbedding, texts: Sequence[str], *, exact: bool
) -> CallRequest:
    """What one request for embeddings asks for, in the engine's terms.

    Args:
        embedding: The embedding model, guarded or not.
        texts: What is embedded.
        exact: Whether its server counts text as OpenAI does.
    """
    name = embedding.model_name
    return CallRequest(
        type(embedding).__name__ if name == "unknown" else name,
        byte_bound(texts),
        (lambda card: counted_texts(texts, card)) if exact else None,
        max_output_tokens=0,
        ceiling=0,
        whole_window=False,
    )


def counted_texts(texts: Sequence[str], card: Card | None) -> int | None:
    """The exact number of tokens of texts, as OpenAI counts; None if it cannot be told."""
    counts = [None if card is None else count_text(text, card.model) for text in texts]
    return None if None in counts else sum(filter(None, counts))


def _current_task() -> "asyncio.Task[Any] | None":
    try:
        return asyncio.current_task()
    except RuntimeError:  # in a thread without a loop
        return None
