"""Making guarded models: of a chat model, of a binding around one, of a configurable one."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableBinding
from pydantic import Field

from tokenfence_integrations.engine.budget import Budget
from tokenfence_integrations.engine.policy import OnLimit, Policy, parse_fallback
from tokenfence_integrations.errors import UnmeteredError
from tokenfence_integrations.langchain.anthropic_clients import with_metered_attempts
from tokenfence_integrations.langchain.chat_models import BudgetedChatModel
from tokenfence_integrations.langchain.embeddings import BudgetedEmbeddings, guarded_embeddings
from tokenfence_integrations.langchain.errors import LangChainBudgetExceeded
from tokenfence_integrations.langchain.openai_clients import (
    clients_of,
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
from tokenfence_integrations.langchain.terms import ChainBook, Terms
from tokenfence_integrations.langchain.tools import TOOLS_KEY, same_family
from tokenfence_integrations.log import logger
from tokenfence_integrations.pricing.book import PriceBook
from tokenfence_integrations.pricing.rates import Price

__all__ = ["Guarding", "ModelFallback"]

ModelFallback: TypeAlias = (
    str | BaseChatModel | Sequence[str | BaseChatModel] | Mapping[float, str | BaseChatModel] | None
)
"""One fallback, a chain, or stages: names of the same provider's models, or chat models."""


@dataclass(frozen=True, slots=True)
class Guarding:
    """How a chat model is to be guarded.

    Args:
        budget: What its calls count against; None: the budget in scope.
        policy: How they are admitted; its stages are found in ``fallback``.
        fallback: Cheaper models.
        threshold: The settled share from which the first fallback takes over.
        prices: Prices of your own, by model.
        exact_input: Whether the server counts text as OpenAI does; None: if it is OpenAI or Azure.
        strict: Whether what cannot be metered is refused, rather than warned of.
        stream_usage: Whether an OpenAI client may ask streams for their usage.
    """

    budget: Budget | None
    policy: Policy
    fallback: ModelFallback = None
    threshold: float = 0.8
    prices: Mapping[str, Price] | None = None
    exact_input: bool | None = None
    strict: bool = False
    stream_usage: bool = True

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
            f"cannot guard a {type(thing).__module__}.{type(thing).__qualname__}: give a chat "
            f"model (or a binding around one, or what init_chat_model returned) or embeddings; "
            f"of a chain guard the models in it"
        )

    def chat_model(self, model: BaseChatModel) -> Any:
        """A copy of a chat model that enforces the budget; the model itself stays as it is.

        Args:
            model: Any chat model.

        Returns:
            An instance of its own class, and of `BudgetedChatModel`.

        Raises:
            TypeError: It is guarded already.
            ValueError: A fallback cannot work.
        """
        if isinstance(model, BudgetedChatModel):
            raise TypeError(
                "this model is guarded already; to share or divide its budget, guard the plain "
                "model with budget=guarded.tokenfence, or with a child of it"
            )
        names, others = self._fallbacks(model)
        terms = Terms(
            self.budget,
            replace(self.policy, stages=parse_fallback(names, self.threshold)),
            ChainBook(self._book(model), {name: self._book(m) for name, m in others.items()}),
            error=_refusals(model, *others.values()),
            exact_input=bool(self.exact_input),
        )
        terms.targets = {name: self._guarded(other, terms) for name, other in others.items()}
        return self._guarded(model, terms)

    def embeddings(self, embeddings: Embeddings) -> Any:
        """A copy of embeddings that enforces the budget; they stay as they are.

        Args:
            embeddings: Any embeddings.

        Returns:
            An instance of their own class, and of `BudgetedEmbeddings`.

        Raises:
            TypeError: They are guarded already.
            ValueError: A fallback was given: vectors of another model cannot be compared.
        """
        if isinstance(embeddings, BudgetedEmbeddings):
            raise TypeError(
                "these embeddings are guarded already; to share or divide their budget, guard the "
                "plain ones with budget=guarded.tokenfence, or with a child of it"
            )
        if self.fallback is not None:
            raise ValueError(
                "embeddings cannot have a fallback: the vectors of another model are not "
                "comparable with those that are stored"
            )
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
            # There is no vector that says no.
            replace(self.policy, on_limit="warn" if self.policy.on_limit == "warn" else "raise"),
            ChainBook(PriceBook(self.prices, provider_of_class(type(embeddings))), {}),
            error=_refusals(embeddings),
            exact_input=bool(self.exact_input),
        )
        return guarded_embeddings(embeddings, terms, metered_below=bool(changes))

    def _fallbacks(self, model: BaseChatModel) -> tuple[Any, dict[str, BaseChatModel]]:
        """The fallbacks by name, as the engine takes them, and the model for each name."""
        others: dict[str, BaseChatModel] = {}

        def named(given: object) -> str:
            if isinstance(given, BudgetedChatModel):
                raise TypeError(
                    "a fallback shares the budget of the model that it stands in for: give the "
                    "plain model, not a guarded one"
                )
            if isinstance(given, BaseChatModel):
                name, other = model_name(given, {}), given
            elif isinstance(given, str) and given.strip():
                _check_deployment(model, given)
                name, other = given, with_model_name(model, given)
            else:
                raise ValueError(
                    f"fallback must be a model's name or a chat model, got {given!r}; give one, a "
                    f"list of them, or stages such as {{0.5: 'gpt-4o-mini', 0.9: other_model}}"
                )
            if name in others:
                raise ValueError(f"fallback {name!r} is named twice: each needs its own name")
            others[name] = other
            return name

        given = self.fallback
        if given is None:
            return None, others
        if isinstance(given, Mapping):
            return {share: named(one) for share, one in given.items()}, others
        if isinstance(given, Sequence) and not isinstance(given, str):
            return [named(one) for one in given], others
        return named(given), others

    def _book(self, model: BaseChatModel) -> PriceBook:
        return PriceBook(self.prices, provider_of(model))

    def _guarded(self, model: BaseChatModel, terms: Terms) -> Any:
        plain = [client for client in clients_of(model) if client is not None]
        model = with_clients(model, self._client)
        if plain and self.exact_input is None:
            guarded = next(client for client in clients_of(model) if client is not None)
            terms.exact_input = guarded._terms.exact_input
        copied: Any = model.model_copy()
        object.__setattr__(copied, "__class__", _guarded_class(type(model)))
        copied.tokenfence_terms = terms
        if not plain and not with_metered_attempts(copied):
            self._check_retries(model)
        asks_not = getattr(copied, "stream_usage", True) in (None, False)
        if asks_not and self.stream_usage and not plain:
            copied.stream_usage = True  # else a stream tells nobody what it cost
        # A client that the user has guarded may count against any other budget.
        copied.tokenfence_metered_below = bool(plain) and not any(
            hasattr(client, "tokenfence") for client in plain
        )
        return copied

    def _check_retries(self, model: BaseChatModel) -> None:
        """Refuse, or warn of, retries that nothing here can see; each of them may be billed.

        Raises:
            UnmeteredError: With ``strict=True``.
        """
        retries = getattr(model, "max_retries", None)
        if not isinstance(retries, int) or retries < 1:
            return
        told = (
            f"{type(model).__name__} retries by itself (max_retries={retries}), and each attempt "
            f"may be billed, but only one is reserved for: set max_retries=0, and use "
            f"guard(model).with_retry() instead"
        )
        if self.strict:
            raise UnmeteredError(f"{told}; nothing was sent")
        logger().warning("%s", told)

    def _client(self, client: Any) -> Any:
        """The guarded form of an OpenAI client, which leaves fallbacks and replies to the model."""
        from tokenfence_integrations.clients.openai.client import guard_client, is_guarded

        if is_guarded(client):  # by the user
            return client
        on_limit: OnLimit = "warn" if self.policy.on_limit == "warn" else "raise"
        return guard_client(
            client,
            budget=self.budget,
            policy=replace(self.policy, on_limit=on_limit),
            prices=self.prices,
            strict=self.strict,
            stream_usage=self.stream_usage,
            exact_input=self.exact_input,
            error=refusal_class(),
        )


def _refusals(*models: object) -> Any:
    """The class of refusals that no library on the way to these models retries."""
    speaks_openai = any(client is not None for model in models for client in clients_of(model))
    return refusal_class() if speaks_openai else LangChainBudgetExceeded


def _check_deployment(model: BaseChatModel, name: str) -> None:
    for client in clients_of(model):
        url = str(getattr(client, "base_url", ""))
        if hasattr(client, "_azure_deployment") and "/deployments/" in url:
            raise ValueError(
                f"fallback {name!r} cannot work: this model is pinned to one Azure deployment "
                f"({url}), which answers whatever model is asked for. Give an AzureChatOpenAI of "
                f"the cheaper deployment as the fallback"
            )


_CLASSES: dict[type, Any] = {}


def _guarded_class(cls: Any) -> Any:
    """The guarded subclass of a chat model's class; made once, and named as the class itself."""
    guarded = _CLASSES.get(cls)
    if guarded is not None:
        return guarded
    names: dict[str, Any] = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__annotations__": {
            "tokenfence_terms": Any,
            "tokenfence_metered_below": bool,
            # Else pydantic takes them for private attributes, which a copy does not have.
            "_stream_chat_model_events": ClassVar[Any],
            "_astream_chat_model_events": ClassVar[Any],
        },
        # A provider's own source of protocol events would go past `_stream`: without one, LangChain
        # makes the events of the stream.
        "_stream_chat_model_events": None,
        "_astream_chat_model_events": None,
        "tokenfence_terms": Field(default=None, exclude=True, repr=False),
        "tokenfence_metered_below": Field(default=False, exclude=True, repr=False),
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
    guarded = _CLASSES[cls] = type(cls)(cls.__name__, (BudgetedChatModel, cls), names)
    return guarded


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
