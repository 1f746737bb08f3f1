"""Making guarded LLMs and embeddings."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.llms import LLM

from tokenfence_integrations.engine.calls.policy import check_priced, parse_fallback
from tokenfence_integrations.llama_index.embeddings import BudgetedEmbedding
from tokenfence_integrations.llama_index.errors import LlamaIndexBudgetExceeded, refusal_class
from tokenfence_integrations.llama_index.llms import WHOLE, BudgetedLLM, FallingBackLLM, llm_names
from tokenfence_integrations.llama_index.openai_clients import (
    HELD,
    calls_clients_alone,
    client_names,
    counts_exactly,
    guard_held_clients,
    has_clients,
    user_guarded,
)
from tokenfence_integrations.llama_index.providers import (
    model_name,
    provider_of,
    with_model_name,
)
from tokenfence_integrations.llama_index.terms import Terms
from tokenfence_integrations.models import guarding
from tokenfence_integrations.models.anthropic_clients import with_metered_attempts
from tokenfence_integrations.models.guarding import ALREADY, named_fallbacks
from tokenfence_integrations.models.subclasses import guarded_class, guarded_copy
from tokenfence_integrations.models.terms import ChainBook
from tokenfence_integrations.pricing.book import PriceBook, as_book

__all__ = ["Guarding", "LLMFallback"]

LLMFallback: TypeAlias = str | LLM | Sequence[str | LLM] | Mapping[float, str | LLM] | None
"""One fallback, a chain, or stages: names of the same provider's models, or LLMs."""


class Guarding(guarding.Guarding):
    """How an LLM, or embeddings, are to be guarded."""

    __slots__ = ()

    def apply(self, thing: Any) -> Any:
        """The guarded form of an LLM or of embeddings.

        Raises:
            TypeError: It is none of these.
            ValueError: A fallback cannot work.
        """
        if isinstance(thing, LLM):
            return self.llm(thing)
        if isinstance(thing, BaseEmbedding):
            return self.embedding(thing)
        raise TypeError(
            f"cannot guard an instance of {type(thing).__module__}.{type(thing).__qualname__}: "
            f"give an LLM or an embedding model; for an engine use budget_for(engine, ...), for an "
            f"agent guard the LLM that it is made with"
        )

    def llm(self, llm: LLM) -> Any:
        """A copy of an LLM that enforces the budget; the original is left unchanged.

        Args:
            llm: Any LLM.

        Returns:
            An instance of its own class, and of `BudgetedLLM`.

        Raises:
            TypeError: It is guarded already.
            ValueError: A fallback cannot work.
            UnknownModelError: A fallback has no known price.
        """
        if isinstance(llm, BudgetedLLM):
            raise TypeError(f"this LLM is {ALREADY}")
        names, others = named_fallbacks(
            self.fallback,
            LLM,
            lambda other: model_name(other, {}),
            lambda name: with_model_name(llm, name),
        )
        terms = self._terms(
            llm,
            policy=replace(self.policy, stages=parse_fallback(names, self.threshold)),
            book=ChainBook(self._book(llm), {name: self._book(m) for name, m in others.items()}),
            others=others.values(),
        )
        check_priced(terms.policy.stages, terms.book)
        terms.targets = {name: self._guarded_llm(other, terms) for name, other in others.items()}
        return self._guarded_llm(llm, terms)

    def embedding(self, embedding: BaseEmbedding) -> Any:
        """A copy of an embedding model that enforces the budget; the original is left unchanged.

        Args:
            embedding: Any embedding model.

        Returns:
            An instance of its own class, and of `BudgetedEmbedding`.

        Raises:
            TypeError: It is guarded already.
            ValueError: A fallback was given: vectors of another model cannot be compared.
        """
        if isinstance(embedding, BudgetedEmbedding):
            raise TypeError(f"this embedding model is {ALREADY}")
        book = ChainBook(as_book(self.prices, provider_of(embedding, "embeddings")), {})
        terms = self._terms(embedding, policy=self.embedding_policy(), book=book)
        cls = guarded_class(type(embedding), BudgetedEmbedding, client_names)
        guarded = guarded_copy(embedding, cls, terms, metered_below=self._metered_below(embedding))
        guard_held_clients(guarded)
        return guarded

    def _terms(self, thing: Any, *, others: Any = (), **terms: Any) -> Terms:
        exact = self.exact_input
        speaks_openai = any(has_clients(type(one)) for one in (thing, *others))
        error = refusal_class() if speaks_openai else LlamaIndexBudgetExceeded
        if exact is None:
            exact = counts_exactly(thing)
        guard_client = partial(self.openai_client, error=error)
        return Terms(
            self.budget, error=error, exact_input=exact, guard_client=guard_client, **terms
        )

    def _book(self, llm: LLM) -> PriceBook:
        return as_book(self.prices, provider_of(llm))

    def _guarded_llm(self, llm: LLM, terms: Terms) -> Any:
        mixin = FallingBackLLM if terms.policy.stages else BudgetedLLM
        cls = guarded_class(type(llm), mixin, lambda c: {**client_names(c), **llm_names(c)})
        guarded = guarded_copy(llm, cls, terms, metered_below=self._metered_below(llm))
        if has_clients(type(llm)):
            terms.client_reserves = (
                guarded.tokenfence_metered_below
                and not terms.targets
                and calls_clients_alone(llm, WHOLE, terms.book.first.provider)
            )
            guard_held_clients(guarded)
            return guarded
        metered = {name: with_metered_attempts(getattr(llm, name, None)) for name in HELD}
        if None in metered.values():
            self.check_retries(llm)
        else:
            guarded.tokenfence_metered_below = True
            guarded.tokenfence_below = tuple(metered.values())
            for name, client in metered.items():
                setattr(guarded, name, client)
        return guarded

    def _metered_below(self, thing: Any) -> bool:
        return has_clients(type(thing)) and not user_guarded(thing)
