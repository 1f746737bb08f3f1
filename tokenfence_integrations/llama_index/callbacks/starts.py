"""What LlamaIndex tells when an LLM or an embedding starts, as the call to be reserved for it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from llama_index.core.callbacks import EventPayload
from llama_index.core.llms import LLM, ChatMessage
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index_instrumentation.dispatcher import active_instrument_tags

from tokenfence_integrations.clients.openai.content import unused_prediction
from tokenfence_integrations.engine.budget import Budget
from tokenfence_integrations.engine.calls.meter import Call
from tokenfence_integrations.engine.calls.request import CallRequest
from tokenfence_integrations.llama_index.callbacks.frames import Teller
from tokenfence_integrations.llama_index.errors import LlamaIndexBudgetExceeded
from tokenfence_integrations.llama_index.llms import BudgetedLLM
from tokenfence_integrations.llama_index.prompts import exact_count, options_of, prompt_bound
from tokenfence_integrations.llama_index.providers import (
    CAP_FIELDS,
    choices_of,
    model_name,
    output_maximum,
    provider_of,
    service_tier_of,
)
from tokenfence_integrations.llama_index.tools import without_notes
from tokenfence_integrations.models.callbacks import Handling
from tokenfence_integrations.pricing.rates import Card, asked_tier
from tokenfence_integrations.pricing.tokens import byte_bound

__all__ = ["EmbeddingStart", "LLMStart", "budget_below"]

UNTOLD = 1
"""Tokens that are reserved for an embedding whose texts are not known before it is made."""


class LLMStart(NamedTuple):
    """The start of an LLM's call.

    Args:
        payload: What the event tells.
        teller: Who tells of it.
    """

    payload: Mapping[Any, Any]
    teller: Teller

    @property
    def content(self) -> str | Sequence[ChatMessage]:
        """The prompt or the messages."""
        messages: Sequence[ChatMessage] | None = self.payload.get(EventPayload.MESSAGES)
        return messages if messages is not None else str(self.payload.get(EventPayload.PROMPT, ""))

    @property
    def options(self) -> Mapping[str, Any]:
        """The call's keyword arguments."""
        return without_notes(self.payload.get(EventPayload.ADDITIONAL_KWARGS) or {})

    def call(self, budget: Budget, handling: Handling, *, exact_input: bool) -> Call:
        """The call to reserve.

        Args:
            budget: What it counts against.
            handling: Prices, and how it is admitted.
            exact_input: Whether its server counts text as OpenAI does.

        Raises:
            UnknownModelError: The model has no known price.
        """
        llm, options = self.teller.thing, self.options
        if isinstance(llm, LLM):
            told = _Told.of_llm(llm, options)
        else:
            told = _Told.of_payload(self.payload.get(EventPayload.SERIALIZED) or {}, options)
        book = handling.book(told.provider)
        card = book.card(told.model)
        bound: int | Callable[[Card], int] = prompt_bound(self.content, told.sent)
        count = exact_count(self.content, told.sent) if exact_input else None
        if count is not None:
            # At once, not only near the limit: on an event loop a call cannot wait until those
            # before it have settled for less than their bytes.
            bound = count(card) or bound
        request = CallRequest(
            told.model,
            bound,
            choices=told.choices,
            extra_price=unused_prediction(told.sent.get("prediction"), told.tier),
            service_tier=told.tier,
            cappable=False,
            tags=_tags(),
        )
        # Not left open even where nothing is sent: admission would look for a cap.
        request.max_output_tokens = handling.expected(told.maximum or request.most_output(card))
        return Call(budget, request, handling.policy_now, book, LlamaIndexBudgetExceeded)


class _Told(NamedTuple):
    model: str
    provider: str
    sent: Mapping[str, Any]
    maximum: int | None
    choices: int
    tier: str | None

    @classmethod
    def of_llm(cls, llm: LLM, options: Mapping[str, Any]) -> "_Told":
        if isinstance(llm, StructuredLLM):  # it has another one answer in a form
            inner = cls.of_llm(llm.llm, options)
            return inner._replace(sent={**inner.sent, "response_format": llm.output_cls})
        sent = options_of(llm, options)
        return cls(
            model_name(llm, sent),
            provider_of(llm),
            sent,
            output_maximum(llm, options),
            choices_of(llm, sent),
            service_tier_of(llm, sent),
        )

    @classmethod
    def of_payload(cls, serialized: Mapping[str, Any], options: Mapping[str, Any]) -> "_Told":
        model = options.get("model") or _name(serialized)
        told = [serialized.get("num_output"), *map(options.get, CAP_FIELDS)]
        most = [count for count in told if type(count) is int and count > 0]  # -1: unset
        choices, tier = options.get("n"), options.get("service_tier")
        return cls(
            str(model),
            "openai",
            options,
            max(most, default=None),
            choices if type(choices) is int and choices > 0 else 1,
            asked_tier(tier),
        )


class EmbeddingStart(NamedTuple):
    """The start of an embedding.

    Args:
        payload: What the event tells: no texts.
        teller: Who tells of it, and of which texts.
    """

    payload: Mapping[Any, Any]
    teller: Teller

    def call(self, budget: Budget, handling: Handling) -> Call:
        """The call to reserve; as for `LLMStart`."""
        name = _name(self.payload.get(EventPayload.SERIALIZED) or {})
        embedding, texts = self.teller.thing, self.teller.texts
        provider = "openai" if embedding is None else provider_of(embedding, "embeddings")
        request = CallRequest(
            name,
            UNTOLD if texts is None else byte_bound(texts),
            max_output_tokens=0,
            ceiling=0,
            whole_window=False,
            cappable=False,
            tags=_tags(),
        )
        policy, book = handling.policy_now, handling.book(provider)
        return Call(budget, request, policy, book, LlamaIndexBudgetExceeded)


def budget_below(teller: Teller) -> Budget | None:
    """The budget of the client that an LLM, or an embedding model, calls, if that is guarded.

    Args:
        teller: Who tells of a call.

    Returns:
        None if it has none, or it cannot be seen.
    """
    thing = teller.thing
    while isinstance(thing, StructuredLLM):
        thing = thing.llm
    if isinstance(thing, BudgetedLLM) and thing.tokenfence_terms.client_reserves:
        return thing.tokenfence
    client = getattr(thing, "_aclient" if teller.method.startswith("a") else "_client", None)
    budget = getattr(client, "tokenfence", None)
    return budget if isinstance(budget, Budget) else None


def _name(serialized: Mapping[str, Any]) -> str:
    name = serialized.get("model_name")
    return str(name if name and name != "unknown" else serialized.get("class_name", "model"))


def _tags() -> Mapping[str, Any] | None:
    """The tags that the user's ``instrument_tags()`` has given to this context."""
    return dict(active_instrument_tags.get()) or None
