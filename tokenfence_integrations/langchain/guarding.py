"""Making guarded models: of a chat model, of a binding around one, of a configurable one."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeAlias

from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableBinding

from tokenfence_integrations.engine.calls.policy import check_priced, parse_fallback
from tokenfence_integrations.langchain.anthropic_clients import meter_attempts
from tokenfence_integrations.langchain.chat_models import BudgetedChatModel, FallingBackChatModel
from tokenfence_integrations.langchain.embeddings import BudgetedEmbeddings, guarded_embeddings
from tokenfence_integrations.langchain.errors import LangChainBudgetExceeded
from tokenfence_integrations.langchain.openai_clients import (
    calls_clients_alone,
    clients_of,
    metered,
    refusal_class,
    with_clients,
)
from tokenfence_integrations.langchain.providers import (
    model_name,
    provider_of,
    provider_of_class,
    with_model_name,
)
from tokenfence_integrations.langchain.structured import with_other_forms
from tokenfence_integrations.langchain.terms import Terms
from tokenfence_integrations.langchain.tools import TOOLS_KEY, same_family
from tokenfence_integrations.models import guarding
from tokenfence_integrations.models.guarding import ALREADY, named_fallbacks
from tokenfence_integrations.models.subclasses import guarded_class, guarded_copy
from tokenfence_integrations.models.terms import ChainBook, is_guarded
from tokenfence_integrations.pricing.book import PriceBook, as_book

__all__ = ["Guarding", "ModelFallback"]

ModelFallback: TypeAlias = (
    str | BaseChatModel | Sequence[str | BaseChatModel] | Mapping[float, str | BaseChatModel] | None
)
"""One fallback, a chain, or stages: names of the same provider's models, or chat models."""


class Guarding(guarding.Guarding):
    """How a chat model, or embeddings, are to be guarded."""

    __slots__ = ()

    def apply(self, thing: Any) -> Any:
        """The guarded form of a chat model, of a binding around one, or of a configurable one.

        Raises:
            TypeError: It is none of these.
            ValueError: A fallback cannot work.
        """
        if isinstance(thing, BaseChatModel):
            return self.chat_model(thing)
        if isinstance(thing, Embeddings):
            return self.embeddings(thing)
        if isinstance(thing, RunnableBinding):
            return thing.model_copy(update={"bound": self.apply(thing.bound)})
        if type(thing).__name__ == "_ConfigurableModel":
            from tokenfence_integrations.langchain.configurable import guarded_configurable

            return guarded_configurable(thing, self)
        raise TypeError(
            f"cannot guard an instance of {type(thing).__module__}.{type(thing).__qualname__}: "
            f"give a chat model (or a binding around one, or what init_chat_model returned) or "
            f"embeddings; in a chain or an agent, guard the models that it is made with"
        )

    def chat_model(self, model: BaseChatModel) -> Any:
        """A copy of a chat model that enforces the budget; the original is left unchanged.

        Args:
            model: Any chat model.

        Returns:
            An instance of its own class, and of `BudgetedChatModel`.

        Raises:
            TypeError: It is guarded already.
            ValueError: A fallback cannot work.
            UnknownModelError: A fallback has no known price.
        """
        if isinstance(model, BudgetedChatModel):
            raise TypeError(f"this model is {ALREADY}")
        names, others = named_fallbacks(
            self.fallback,
            BaseChatModel,
            lambda other: model_name(other, {}),
            lambda name: _named(model, name),
        )
        terms = Terms(
            self.budget,
            replace(self.policy, stages=parse_fallback(names, self.threshold)),
            ChainBook(self._book(model), {name: self._book(m) for name, m in others.items()}),
            error=_refusals(model, *others.values()),
            exact_input=bool(self.exact_input),
        )
        check_priced(terms.policy.stages, terms.book)
        terms.targets = {name: self._guarded(other, terms) for name, other in others.items()}
        return self._guarded(model, terms)

    def embeddings(self, embeddings: Embeddings) -> Any:
        """A copy of embeddings that enforces the budget; the original is left unchanged.

        Args:
            embeddings: Any embeddings.

        Returns:
            An instance of their own class, and of `BudgetedEmbeddings`.

        Raises:
            TypeError: They are guarded already.
            ValueError: A fallback was given: vectors of another model cannot be compared.
        """
        if isinstance(embeddings, BudgetedEmbeddings):
            raise TypeError(f"these embeddings are {ALREADY}")
        policy = self.embedding_policy()
        sync, asynchronous = clients_of(embeddings)
        changes: dict[str, Any] = {}
        if sync is not None:
            changes["client"] = self._client(sync).embeddings
        if asynchronous is not None:
            changes["async_client"] = self._client(asynchronous).embeddings
        if changes:
            embeddings = embeddings.model_copy(update=changes)  # type: ignore[attr-defined]
        terms = Terms(
            self.budget,
            policy,
            ChainBook(as_book(self.prices, provider_of_class(type(embeddings))), {}),
            error=_refusals(embeddings),
            exact_input=bool(self.exact_input),
        )
        copied = guarded_embeddings(embeddings, terms, metered_below=bool(changes))
        copied.tokenfence_below = metered(copied)
        return copied

    def _book(self, model: BaseChatModel) -> PriceBook:
        return as_book(self.prices, provider_of(model))

    def _guarded(self, model: BaseChatModel, terms: Terms) -> Any:
        plain = [client for client in clients_of(model) if client is not None]
        model = with_clients(model, self._client)
        guarded = [client._terms for client in clients_of(model) if client is not None]
        if guarded and self.exact_input is None:
            terms.exact_input = guarded[0].exact_input
        # A client that the user has guarded may count against any other budget.
        metered_below = bool(plain) and not any(map(is_guarded, plain))
        # Azure's are asked for a deployment, whose name need not be that of a model.
        provider = terms.book.first.provider
        terms.client_reserves = (
            metered_below
            and not terms.targets
            and provider != "azure"
            and all(below.book.provider == provider for below in guarded)
            and calls_clients_alone(type(model))
        )
        mixin = FallingBackChatModel if terms.policy.stages else BudgetedChatModel
        cls = guarded_class(type(model), mixin, _names)
        copied = guarded_copy(model, cls, terms, metered_below=metered_below)
        copied.tokenfence_below = metered(copied)
        if not plain and not meter_attempts(copied):
            self.check_retries(model)
        asks_not = getattr(copied, "stream_usage", True) in (None, False)
        if asks_not and self.stream_usage and not plain:
            copied.stream_usage = True  # else a stream does not report what it cost
        return copied

    def _client(self, client: Any) -> Any:
        return self.openai_client(client, refusal_class())


def _refusals(*models: object) -> Any:
    """The class of refusals that no library on the way to these models retries."""
    speaks_openai = any(client is not None for model in models for client in clients_of(model))
    return refusal_class() if speaks_openai else LangChainBudgetExceeded


def _named(model: BaseChatModel, name: str) -> BaseChatModel:
    """The fallback of another name: the same model, asking for that one."""
    for client in clients_of(model):
        url = str(getattr(client, "base_url", ""))
        if hasattr(client, "_azure_deployment") and "/deployments/" in url:
            raise ValueError(
                f"fallback {name!r} cannot work: this model is pinned to one Azure deployment "
                f"({url}), which answers whatever model is asked for. Give an AzureChatOpenAI of "
                f"the cheaper deployment as the fallback"
            )
    return with_model_name(model, name)


def _names(cls: Any) -> dict[str, Any]:
    """What the guarded subclass of a chat model's class defines beside the overridden methods."""
    names: dict[str, Any] = {
        "__annotations__": {
            # Else pydantic takes them for private attributes, which a copy does not have.
            "_stream_chat_model_events": ClassVar[Any],
            "_astream_chat_model_events": ClassVar[Any],
        },
        # A provider's own source of protocol events would go past `_stream`: without one, LangChain
        # makes the events of the stream.
        "_stream_chat_model_events": None,
        "_astream_chat_model_events": None,
        "lc_id": classmethod(lambda _: cls.lc_id()),
    }
    for method in ("_stream", "_astream"):
        # LangChain tells by these whether a model streams at all.
        if getattr(cls, method) is getattr(BaseChatModel, method):
            names[method] = getattr(BaseChatModel, method)
    if cls.bind_tools is not BaseChatModel.bind_tools:
        names["bind_tools"] = _bind_tools(cls)
    if cls.with_structured_output is not BaseChatModel.with_structured_output or (
        "bind_tools" in names
    ):
        names["with_structured_output"] = _with_structured_output(cls)
    return names


def _bind_tools(cls: Any) -> Any:
    """The class's own `bind_tools`, which also keeps the tools as given for other providers."""

    @functools.wraps(cls.bind_tools)
    def bind_tools(self: Any, tools: Any, **kwargs: Any) -> Any:
        bound = cls.bind_tools(self, tools, **kwargs)
        if isinstance(bound, RunnableBinding) and self.tokenfence_terms.foreign(self):
            return bound.bind(**{TOOLS_KEY: (tools, kwargs)})
        return bound

    return bind_tools


def _with_structured_output(cls: Any) -> Any:
    """The class's own `with_structured_output`, of a model that raises where it is refused."""

    @functools.wraps(cls.with_structured_output)
    def with_structured_output(self: Any, schema: Any = None, **kwargs: Any) -> Any:
        terms = self.tokenfence_terms
        raising = self.model_copy(update={"tokenfence_terms": terms.raising()})
        chain = cls.with_structured_output(raising, schema, **kwargs)
        others = {
            name: target.with_structured_output(schema, **kwargs)
            for name, target in terms.targets.items()
            if not same_family(self, target)
        }
        return with_other_forms(chain, others) if others else chain

    return with_structured_output
