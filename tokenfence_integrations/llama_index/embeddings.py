"""Guarded embedding models: copies of a dynamic subclass that meters each batch before it is sent.

What is overridden lies below LlamaIndex's cache of embeddings, where one call is one request.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from llama_index.core.base.embeddings.base import BaseEmbedding

from tokenfence_integrations.engine.budget import Budget
from tokenfence_integrations.engine.calls.meter import Call
from tokenfence_integrations.engine.calls.request import CallRequest
from tokenfence_integrations.errors import BudgetExceeded
from tokenfence_integrations.llama_index.errors import LlamaIndexBudgetExceeded
from tokenfence_integrations.llama_index.openai_clients import still_metered
from tokenfence_integrations.llama_index.terms import Terms
from tokenfence_integrations.models.exchange import Exchange, runs
from tokenfence_integrations.models.flows import Flow, arun, run
from tokenfence_integrations.models.subclasses import no_travel
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

    Args:
        embedding: Whose list it is; another one may be called within.

    Attributes:
        vectors: By text, what is embedded already.
        refusal: Why it goes no further; batches that have not begun are not sent.
    """

    __slots__ = ("_around", "_tasks", "embedding", "refusal", "vectors")

    def __init__(self, embedding: BaseEmbedding) -> None:
        self.embedding = embedding
        self.vectors: dict[str, Vector] = {}
        self.refusal: BudgetExceeded | None = None
        self._around = _current_task()
        self._tasks: set[asyncio.Task[Any]] = set()

    @contextmanager
    def batch(self) -> Iterator[None]:
        """One batch of the list.

        Raises:
            BudgetExceeded: Another batch was refused already.
        """
        task = _current_task()
        if task is not None and task is not self._around:
            self._tasks.add(task)
            task.add_done_callback(self._ended)
        if self.refusal is not None:
            raise self.refusal
        try:
            yield
        except BudgetExceeded as refusal:
            self.refusal = refusal
            raise

    async def settled(self) -> None:
        """Wait for the batches in flight: LlamaIndex leaves them running when one has failed."""
        if self._tasks:
            await asyncio.wait([*self._tasks])

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if self.refusal is not None and not task.cancelled():
            task.exception()  # under a progress bar nobody else asks for it, and asyncio complains


listing: "ContextVar[Listing | None]" = ContextVar("tokenfence_listing", default=None)


class BudgetedEmbedding(_Embedding):
    """What all guarded embedding models are instances of, beside their own class.

    Each request has a reservation of its own. Where a list of texts meets the limit, batches that
    have begun are waited for, and no further one is sent. The `BudgetExceeded` has as ``completed``
    how many texts of the list are embedded. Their vectors are kept, and not paid for again when
    they are embedded anew, after ``budget.top_up()``; once that list is done, they are dropped.

    LlamaIndex embeds an index of more nodes than its ``insert_batch_size`` (2,048) as several
    lists. With an ``embeddings_cache`` on the model, those that were done before are kept too.

    Example:
        >>> embed_model = guard(OpenAIEmbedding(), budget="$1")  # doctest: +SKIP
        >>> index = VectorStoreIndex(nodes, embed_model=embed_model)  # doctest: +SKIP
    """

    tokenfence_terms: Terms
    tokenfence_metered_below: bool
    tokenfence_below: tuple[Any, ...]

    @property
    def tokenfence(self) -> Budget:
        """The budget that this model's calls count against."""
        return self.tokenfence_terms.budget_now()

    def __reduce__(self) -> NoReturn:
        no_travel(self)

    # Lists

    def get_text_embedding_batch(self, texts: Any, *args: Any, **kwargs: Any) -> list[Vector]:
        inner = super().get_text_embedding_batch
        with self._listing(texts):
            return inner(texts, *args, **kwargs)

    async def aget_text_embedding_batch(
        self, texts: Any, *args: Any, **kwargs: Any
    ) -> list[Vector]:
        inner = super().aget_text_embedding_batch
        with self._listing(texts) as begun:
            try:
                return await inner(texts, *args, **kwargs)
            except BudgetExceeded:
                await begun.settled()
                raise

    @contextmanager
    def _listing(self, texts: Sequence[str]) -> Iterator[Listing]:
        """Keep what is paid for of a list that meets the limit, and say how far it came."""
        kept, model = self.tokenfence_terms.kept_vectors, self.model_name
        begun = Listing(self)
        token = listing.set(begun)
        try:
            yield begun
        except BudgetExceeded as refusal:
            for text, vector in begun.vectors.items():
                kept[model, text] = vector
            if isinstance(refusal, LlamaIndexBudgetExceeded):
                refusal.completed = sum(text in begun.vectors for text in texts)
            raise
        else:
            for text in begun.vectors if kept else ():
                kept.pop((model, text), None)
        finally:
            listing.reset(token)

    def _own_listing(self) -> Listing | None:
        begun = listing.get()
        return begun if begun is not None and begun.embedding is self else None

    def _get_text_embeddings_cached(self, texts: Any) -> list[Vector]:
        return self._noted(texts, super()._get_text_embeddings_cached(texts))

    async def _aget_text_embeddings_cached(self, texts: Any) -> list[Vector]:
        return self._noted(texts, await super()._aget_text_embeddings_cached(texts))

    def _noted(self, texts: Sequence[str], vectors: list[Vector]) -> list[Vector]:
        """What LlamaIndex's cache had counts as embedded too."""
        begun = self._own_listing()
        if begun is not None:
            begun.vectors |= zip(texts, vectors, strict=True)
        return vectors

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
        begun = None if runs(self) else self._own_listing()
        known: dict[str, Vector] = {}
        if begun is not None:
            kept, model = self.tokenfence_terms.kept_vectors, self.model_name
            for text in texts if kept else ():
                vector = kept.get((model, text))
                if vector is not None:
                    known[text] = begun.vectors[text] = vector
        missing = [text for text in texts if text not in known] if known else texts
        if not missing:
            return [known[text] for text in texts]
        with nullcontext() if begun is None else begun.batch():
            send = partial(self._own(way.texts), missing)
            vectors: list[Vector] = yield from self._metered(way, missing, send)
        if begun is not None:
            begun.vectors |= zip(missing, vectors, strict=True)
        if not known:
            return vectors
        known |= zip(missing, vectors, strict=True)
        return [known[text] for text in texts]

    def _metered(self, way: Way, texts: Sequence[str], send: Any) -> Flow[Any]:
        """One request: admitted, made, settled."""
        if (self.tokenfence_metered_below and still_metered(self)) or runs(self):
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
    counts = [None if card is None else count_text(text, card.known_as) for text in texts]
    return None if None in counts else sum(filter(None, counts))


def _current_task() -> "asyncio.Task[Any] | None":
    try:
        return asyncio.current_task()
    except RuntimeError:  # in a thread without a loop
        return None
