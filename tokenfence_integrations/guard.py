"""`guard()` and `async_guard()`: put a budget inside what they are given."""

from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from tokenfence_integrations.engine.budget import Budget, Dollars
from tokenfence_integrations.engine.calls.policy import (
    Fallback,
    OnLimit,
    OnUnknown,
)
from tokenfence_integrations.pricing.book import Prices

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings
    from langchain_core.language_models import BaseChatModel
    from langchain_core.runnables import RunnableBinding
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.llms import LLM
    from openai import AsyncAzureOpenAI, AsyncOpenAI, AzureOpenAI, OpenAI

    from tokenfence_integrations.clients.openai.client import (
        GuardedAsyncAzureOpenAI,
        GuardedAsyncOpenAI,
        GuardedAzureOpenAI,
        GuardedOpenAI,
    )
    from tokenfence_integrations.langchain.guarding import ModelFallback
    from tokenfence_integrations.llama_index.guarding import LLMFallback
    from tokenfence_integrations.models.guarding import MoreTerms

    class _CommonTerms(MoreTerms, total=False):
        budget: Budget | Dollars | None

    class Terms(_CommonTerms, total=False):
        """The keyword arguments of `guard` and `async_guard` for clients."""

        fallback: Fallback

    class ModelTerms(_CommonTerms, total=False):
        """The keyword arguments of `guard` for chat models and embeddings."""

        fallback: ModelFallback

    class LLMTerms(_CommonTerms, total=False):
        """The keyword arguments of `guard` for LlamaIndex's LLMs and embeddings."""

        fallback: LLMFallback


LangChainThing = TypeVar(
    "LangChainThing", bound="BaseChatModel | Embeddings | RunnableBinding[Any, Any]"
)
LlamaIndexThing = TypeVar("LlamaIndexThing", bound="LLM | BaseEmbedding")

__all__ = ["async_guard", "guard"]


@overload
def guard(client: "AzureOpenAI", **terms: "Unpack[Terms]") -> "GuardedAzureOpenAI": ...
@overload
def guard(client: "AsyncAzureOpenAI", **terms: "Unpack[Terms]") -> "GuardedAsyncAzureOpenAI": ...
@overload
def guard(client: "OpenAI", **terms: "Unpack[Terms]") -> "GuardedOpenAI": ...
@overload
def guard(client: "AsyncOpenAI", **terms: "Unpack[Terms]") -> "GuardedAsyncOpenAI": ...
@overload
def guard(client: LangChainThing, **terms: "Unpack[ModelTerms]") -> LangChainThing: ...
@overload
def guard(client: LlamaIndexThing, **terms: "Unpack[LLMTerms]") -> LlamaIndexThing: ...
def guard(
    client: Any,
    *,
    budget: Budget | Dollars | None = None,
    fallback: Any = None,
    on_limit: OnLimit = "stop",
    threshold: float | None = None,
    wait: float = 60.0,
    min_output_tokens: int = 16,
    on_unknown: OnUnknown = "charge",
    prices: Prices = None,
    strict: bool = False,
    stream_usage: bool = True,
    exact_input: bool | None = None,
) -> Any:
    """Return the same client, model or embeddings with a budget that its calls cannot exceed.

    The original is left unchanged; the result is an instance of the same class, shares its
    connections, and has the budget as ``.tokenfence``.

    Args:
        client: An OpenAI client, sync or async, including Azure's and subclasses; or LangChain's
            chat models (including bindings around them and what ``init_chat_model`` returns) and
            embeddings; or LlamaIndex's LLMs and embeddings.
        budget: Dollars (``"$5.00"``, ``5``), or a `Budget`; None: that of the surrounding
            ``budget.scope()`` at each call.
        fallback: A cheaper model that takes over from ``threshold`` on, or when the requested one
            no longer fits; a chain of them; or stages, ``{0.5: "gpt-4o-mini", 0.9:
            "gpt-4.1-nano"}``. It answers calls for text; embeddings, pictures, sound and batches
            keep their model. For a framework's model it may be another model object, of any
            provider.
        on_limit: What happens to a call that does not fit: ``"stop"`` answers with a synthetic
            reply (where the answer is text; otherwise it raises), ``"raise"`` raises
            `BudgetExceeded`, ``"warn"`` logs and lets it through.
        threshold: Share of the budget, 0.0 to 1.0; default: the budget's own, 0.8.
        wait: Seconds that a call waits for calls in flight before it is refused; 0 never waits.
        min_output_tokens: The smallest answer cap that is worth paying for.
        on_unknown: ``"charge"`` a call of unknown outcome what it may have cost, or ``"release"``
            it.
        prices: Your own prices by model name, used before the price list: a `Price`, or a
            `ListPrice` for another name of a listed model. Or a `PriceBook`.
        strict: Refuse what cannot be metered (WebSockets, hosted tools' fees, retries inside SDKs
            other than OpenAI's and Anthropic's) instead of warning.
        stream_usage: Ask streams for their usage, hiding the chunk from callers who did not; set
            False for servers that reject ``stream_options``.
        exact_input: Whether the server counts text as OpenAI does, so that it may be counted
            exactly near the limit; None: only if it is OpenAI's or Azure's.

    Returns:
        The guarded client, model or embeddings.

    Raises:
        TypeError: The object cannot be guarded.
        ValueError: An argument is out of range, or the fallback cannot work.
        UnknownModelError: A fallback has no known price.

    Example:
        >>> import openai
        >>> client = guard(openai.OpenAI(api_key="..."), budget="$5.00", fallback="gpt-4o-mini")
        >>> client.tokenfence.remaining
        5.0
    """
    terms: dict[str, Any] = {
        "on_limit": on_limit,
        "threshold": threshold,
        "wait": wait,
        "min_output_tokens": min_output_tokens,
        "on_unknown": on_unknown,
        "prices": prices,
        "strict": strict,
        "stream_usage": stream_usage,
        "exact_input": exact_input,
    }
    if not {"OpenAI", "AsyncOpenAI"}.isdisjoint(_classes_of("openai", client)):
        from tokenfence_integrations.models.guarding import Guarding

        return Guarding.given(budget, fallback, **terms).client(client)
    if _classes_of("langchain_core", client) or _classes_of("langchain", client):
        from tokenfence_integrations.langchain import guarding as langchain

        return langchain.Guarding.given(budget, fallback, **terms).apply(client)
    if _classes_of("llama_index", client):
        from tokenfence_integrations.llama_index import guarding as llama_index

        return llama_index.Guarding.given(budget, fallback, **terms).apply(client)
    found = f"an instance of {type(client).__module__}.{type(client).__qualname__}"
    if isinstance(client, type):
        found = f"the class {client.__qualname__}: make an instance of it first"
    raise TypeError(
        f"cannot guard {found}; guard() takes an OpenAI client (OpenAI, AsyncOpenAI, AzureOpenAI, "
        f"AsyncAzureOpenAI or a subclass), a chat model or embeddings of LangChain, or an LLM or "
        f"embeddings of LlamaIndex. For anything else, wrap each call in budget.reserve(...)"
    )


@overload
def async_guard(
    client: "AsyncAzureOpenAI", **terms: "Unpack[Terms]"
) -> "GuardedAsyncAzureOpenAI": ...
@overload
def async_guard(client: "AsyncOpenAI", **terms: "Unpack[Terms]") -> "GuardedAsyncOpenAI": ...
def async_guard(client: Any, **terms: "Unpack[Terms]") -> Any:
    """As `guard`, but only for async clients.

    Args:
        client: An async OpenAI client, Azure's and subclasses included.
        **terms: As for `guard`.

    Returns:
        The guarded client.

    Raises:
        TypeError: The client is sync, or cannot be guarded.
        ValueError: As for `guard`.
        UnknownModelError: As for `guard`.

    Example:
        >>> client = async_guard(openai.AsyncOpenAI(), budget="$5.00")  # doctest: +SKIP
        >>> answers = await asyncio.gather(*[ask(client, q) for q in questions])  # doctest: +SKIP
    """
    if "OpenAI" in _classes_of("openai", client):
        raise TypeError(
            f"async_guard() takes an async client, got {type(client).__name__}; use guard()"
        )
    return guard(client, **terms)


def _classes_of(library: str, thing: object) -> set[str]:
    """The names of a library's classes that it is an instance of.

    Told by name, so that the library is imported only when one of its objects is at hand.
    """
    classes = type(thing).__mro__
    return {cls.__name__ for cls in classes if cls.__module__.partition(".")[0] == library}
