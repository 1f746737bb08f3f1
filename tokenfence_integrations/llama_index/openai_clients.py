"""The OpenAI clients inside LlamaIndex's OpenAI classes, guarded as well.

The client sees what the LLM does not: each attempt of the SDK and of LlamaIndex's own retries, the
usage of a stream that the caller did not ask for, and every count that the provider reports. It
takes over the call that the LLM has reserved, so the call is charged once.
"""

from collections.abc import Iterable
from functools import wraps
from typing import Any, NamedTuple

from pydantic import Field

from tokenfence_integrations.llama_index.providers import is_of
from tokenfence_integrations.models.terms import is_guarded
from tokenfence_integrations.pricing.book import provider_of_url

__all__ = [
    "HELD",
    "calls_clients_alone",
    "client_names",
    "counts_exactly",
    "guard_held_clients",
    "has_clients",
    "makes_clients",
    "reserves_alone",
    "still_metered",
    "user_guarded",
]

HELD = ("_client", "_aclient")
"""Where LlamaIndex's classes hold their clients, once they are made."""

PACKAGES = (
    "llama_index.llms.openai",
    "llama_index.embeddings.openai",
    "llama_index.embeddings.azure_openai",
)


def has_clients(cls: type) -> bool:
    """Whether a class of LLMs or embeddings calls OpenAI's clients."""
    return any(is_of(cls, package) for package in PACKAGES)


def calls_clients_alone(llm: Any, methods: Iterable[str], provider: str) -> bool:
    """Whether an LLM's methods call nothing but its OpenAI clients, which price as it does.

    So do those of LlamaIndex's own classes; what a class derived from them calls is not known.

    Args:
        llm: The LLM.
        methods: Their names.
        provider: Whose price list counts for it. Azure's are asked for a deployment, whose name
            need not be that of a model.
    """
    cls = type(llm)
    if provider == "azure" or not all(
        getattr(cls, name).__module__.startswith("llama_index.llms.openai.") for name in methods
    ):
        return False
    held = [getattr(llm, name, None) for name in HELD]
    urls = [llm.api_base, *[client.base_url for client in held if client is not None]]
    return all(provider_of_url(str(url)) == provider for url in urls)


def makes_clients(cls: type) -> bool:
    """Whether a class makes OpenAI's clients when they are needed, in ``_get_client()``."""
    return hasattr(cls, "_get_client") and has_clients(cls)


def counts_exactly(thing: Any) -> bool:
    """Whether the server of an LLM or of embeddings is OpenAI's, and counts text as it does."""
    if not has_clients(type(thing)):
        return False
    from tokenfence_integrations.clients.openai.terms import counts_as_openai

    return counts_as_openai(str(getattr(thing, "api_base", None) or ""))


def user_guarded(thing: Any) -> bool:
    """Whether the user has guarded a client of it, maybe on another budget."""
    return any(is_guarded(getattr(thing, name, None)) for name in HELD)


class Known(NamedTuple):
    """What is known of a client that is, or was, held under a name.

    Args:
        held: The client.
        guarded: The one that is called in its place.
        alike: Whether that one meters a call as the LLM itself would: on its budget, at its prices.
    """

    held: Any
    guarded: Any = None
    alike: bool = False


NOT_MADE = Known(object())  # which nobody holds


def reserves_alone(llm: Any, name: str) -> bool:
    """Whether the client of a guarded LLM still meters its calls as the LLM itself would.

    The user may have put another in its place, see `still_metered`, or one that prices otherwise.

    Args:
        llm: An LLM of which ``client_reserves`` was told when it was guarded.
        name: Where the client is held.
    """
    known: Known = llm.tokenfence_clients[name]
    if llm.__pydantic_private__.get(name) is known.held:
        return known.alike
    if not makes_clients(type(llm)):
        return still_metered(llm, (name,))
    held = _held(llm, name)
    return held is None or not llm.reuse_client or _known(llm, name, held).alike


def still_metered(thing: Any, names: tuple[str, ...] = HELD) -> bool:
    """Whether the clients of a guarded LLM, or embedding model, still meter its calls.

    The user may have put others in their place. Where they are made, or guarded, when they are
    needed, others are guarded as well, unless the user has guarded them, maybe on another budget.

    Args:
        thing: The LLM, or the embedding model.
        names: Which of its clients.
    """
    makes = makes_clients(type(thing))
    if makes and not thing.reuse_client:
        return True  # each call makes one
    for name in names:
        held = _held(thing, name)
        if held is None:
            continue
        if makes:
            metered = _known(thing, name, held).guarded is not held
        else:
            terms = getattr(held, "_terms", None)
            metered = any(each is held or each is terms for each in thing.tokenfence_below)
        if not metered:
            return False
    return makes or bool(thing.tokenfence_below)


def client_names(cls: Any) -> dict[str, Any]:
    """What the guarded subclass of a class defines, so that the clients it makes are guarded.

    Args:
        cls: The class of an LLM, or of an embedding model.
    """
    names: dict[str, Any] = {
        "__annotations__": {"tokenfence_clients": Any},
        "tokenfence_clients": Field(default=None, exclude=True, repr=False),
    }
    if makes_clients(cls):
        names["_get_client"] = _get_client(cls, "_get_client", "_client")
        names["_get_aclient"] = _get_client(cls, "_get_aclient", "_aclient")
    return names


def guard_held_clients(guarded: Any) -> None:
    """Guard the clients that a guarded copy holds, or will make.

    Args:
        guarded: The copy, changed in place. The copies that are made of it share what is known of
            its clients, and so their connections.
    """
    guarded.tokenfence_clients = dict.fromkeys(HELD, NOT_MADE)
    if makes_clients(type(guarded)):
        return
    below = []
    for name in HELD:
        client = getattr(guarded, name, None)
        if client is not None:
            client = guarded.tokenfence_terms.guard_client(client)
            setattr(guarded, name, client)
            guarded.tokenfence_clients[name] = Known(client, client, alike=True)
            below.append(client._terms)
    guarded.tokenfence_below = tuple(below)


def _get_client(cls: Any, method: str, name: str) -> Any:
    """The class's own method that makes a client, which returns the guarded form of it."""

    @wraps(getattr(cls, method))
    def get_client(self: Any) -> Any:
        known = self.tokenfence_clients[name]
        if self.__pydantic_private__.get(name) is known.held and self.reuse_client:
            return known.guarded
        return _made(self, name, getattr(cls, method))

    return get_client


def _made(thing: Any, name: str, make: Any) -> Any:
    """The guarded form of what the class's own method returns, or of what a copy has made."""
    if not thing.reuse_client:
        return thing.tokenfence_terms.guard_client(make(thing))
    known = thing.tokenfence_clients[name]
    if known.guarded is not None and getattr(thing, name) is None:
        setattr(thing, name, known.held)
        return known.guarded
    return _known(thing, name, make(thing)).guarded


def _known(thing: Any, name: str, held: Any) -> Known:
    """What is known of a client that is held: its guarded form is made once."""
    known: Known = thing.tokenfence_clients[name]
    if known.held is not held:
        terms = thing.tokenfence_terms
        guarded = terms.guard_client(held)
        alike = guarded is not held and guarded._terms.book.provider == terms.book.first.provider
        known = thing.tokenfence_clients[name] = Known(held, guarded, alike)
    return known


def _held(thing: Any, name: str) -> Any:
    # Every call asks, and pydantic takes microseconds for a private attribute.
    private = thing.__pydantic_private__ or {}
    return private[name] if name in private else getattr(thing, name, None)
