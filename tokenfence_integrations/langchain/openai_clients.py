"""The OpenAI clients inside LangChain's OpenAI models, guarded as well.

The client sees what the model does not: each of the SDK's retries, the usage of a stream that the
caller did not ask for, and every count that the provider reports. It takes over the call that the
model has reserved, so the call is charged once.
"""

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, NamedTuple

from langchain_core.language_models import BaseChatModel

from tokenfence_integrations.errors import BudgetExceeded

__all__ = [
    "Metered",
    "calls_clients_alone",
    "clients_of",
    "metered",
    "refusal_class",
    "still_metered",
    "with_clients",
]

HELD = ("root_client", "root_async_client", "client", "async_client")
"""Where models hold their clients; the last two are resources of them."""

WAYS = ("_generate", "_agenerate", "_stream", "_astream")


def clients_of(model: object) -> tuple[Any, Any]:
    """The sync and the async OpenAI client of a model; None for what it has not.

    Args:
        model: A chat model (or embeddings) of langchain-openai or of a package built on it.
    """
    if not any(cls.__module__.startswith("langchain_openai.") for cls in type(model).__mro__):
        return None, None
    found = []
    for root, resource in (("root_client", "client"), ("root_async_client", "async_client")):
        client = getattr(model, root, None)
        if client is None:  # embeddings hold only the resource
            client = getattr(getattr(model, resource, None), "_client", None)
        found.append(client)
    return found[0], found[1]


def calls_clients_alone(cls: type) -> bool:
    """Whether chat models of a class call nothing but their OpenAI clients for an answer.

    So do those of langchain-openai; what a class derived from them calls is not known.
    """
    return all(getattr(cls, way).__module__.startswith("langchain_openai.") for way in WAYS)


class Metered(NamedTuple):
    """The guarded clients of a guarded model, as it held them when it was guarded.

    ``look`` finds them in a model's ``__dict__``.
    """

    look: Callable[[Mapping[str, Any]], tuple[Any, ...]]
    held: tuple[Any, ...]
    terms: tuple[Any, ...]


def metered(model: Any) -> Metered | tuple[()]:
    """The guarded clients that a model holds now; nothing if it has none.

    Args:
        model: A guarded chat model, or embeddings.
    """
    terms = tuple([client._terms for client in clients_of(model) if client is not None])
    if not terms:
        return ()
    look = itemgetter(*[name for name in HELD if name in model.__dict__])
    return Metered(look, look(model.__dict__), terms)


def still_metered(model: Any) -> bool:
    """Whether the clients that a guarded model holds are those that it was guarded with.

    The user may have put others in their place. A copy of a client (``with_options``) counts as it.

    Args:
        model: A guarded chat model, or embeddings; ``tokenfence_below`` has what it held then.
    """
    below: Metered | tuple[()] = model.tokenfence_below
    if not below:
        return False
    held = below.look(model.__dict__)
    return held == below.held or _have_terms(held, below.terms)


def _have_terms(held: tuple[Any, ...], terms: tuple[Any, ...]) -> bool:
    return all(_has_terms(each, terms) for each in held)


def _has_terms(held: Any, terms: tuple[Any, ...]) -> bool:
    if held is None:
        return True
    own = getattr(held, "_terms", None)
    if own is None:  # a resource of a client
        own = getattr(getattr(held, "_client", None), "_terms", None)
    return any(own is each for each in terms)


def with_clients(model: BaseChatModel, guard: Callable[[Any], Any]) -> BaseChatModel:
    """A copy of a chat model with other OpenAI clients; itself if it has none.

    Args:
        model: Any chat model.
        guard: Makes the client to use of the one that the model has.
    """
    sync, asynchronous = clients_of(model)
    changes: dict[str, Any] = {}
    if sync is not None:
        client = guard(sync)
        changes |= {"root_client": client, "client": client.chat.completions}
    if asynchronous is not None:
        client = guard(asynchronous)
        changes |= {"root_async_client": client, "async_client": client.chat.completions}
    return model.model_copy(update=changes) if changes else model


def refusal_class() -> type[BudgetExceeded]:
    """Refusals that neither the OpenAI SDK nor LangChain retries."""
    from tokenfence_integrations.langchain.openai_errors import OpenAIModelBudgetExceeded

    return OpenAIModelBudgetExceeded
