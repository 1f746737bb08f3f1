"""The OpenAI clients inside LlamaIndex's OpenAI classes, guarded as well.

The client sees what the LLM does not: each attempt of the SDK and of LlamaIndex's own retries, the
usage of a stream that the caller did not ask for, and every count that the provider reports. It
takes over the call that the LLM has reserved, so the call is charged once.
"""

from collections.abc import Iterable
from typing import Any

from pydantic import Field

from tokenfence_integrations.llama_index.providers import is_of
from tokenfence_integrations.pricing.book import provider_of_url

__all__ = [
    "HELD",
    "calls_clients_alone",
    "client_names",
    "counts_exactly",
    "guard_held_clients",
    "has_clients",
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


def counts_exactly(thing: Any) -> bool:
    """Whether the server of an LLM or of embeddings is OpenAI's, and counts text as it does."""
    if not has_clients(type(thing)):
        return False
    from tokenfence_integrations.clients.openai.terms import counts_as_openai

    return counts_as_openai(str(getattr(thing, "api_base", None) or ""))


def user_guarded(thing: Any) -> bool:
    """Whether the user has guarded a client of it, maybe on another budget."""
    return any(hasattr(getattr(thing, name, None), "tokenfence") for name in HELD)


def still_metered(thing: Any, names: tuple[str, ...] = HELD, *, priced_alike: bool = False) -> bool:
    """Whether the clients of a guarded LLM, or embedding model, still meter its calls.

    The user may have put others in their place. Where they are made, or guarded, when they are
    needed, others are guarded as well, unless the user has guarded them, maybe on another budget.

    Args:
        thing: The LLM, or the embedding model.
        names: Which of its clients.
        priced_alike: Whether they have to price as the LLM does, too. Where they cannot be others
            than they were, that was looked at when it was guarded.
    """
    # Every call asks, and pydantic takes microseconds for a private attribute.
    private = thing.__pydantic_private__ or {}
    shared = thing.__dict__.get("tokenfence_clients")
    if shared is not None and not thing.reuse_client:
        return True  # each call makes one
    for name in names:
        held = private[name] if name in private else getattr(thing, name, None)
        if held is None:
            continue
        if shared is None:
            below, terms = thing.tokenfence_below, getattr(held, "_terms", None)
            if not any(each is held or each is terms for each in below):
                return False
            continue
        if name not in shared or shared[name][0] is not held:
            shared[name] = held, thing.tokenfence_terms.guard_client(held)
        guarded = shared[name][1]
        if guarded is held:
            return False
        own = thing.tokenfence_terms.book.first
        if priced_alike and guarded._terms.book.provider != own.provider:
            return False
    return shared is not None or bool(thing.tokenfence_below)


def client_names(cls: Any) -> dict[str, Any]:
    """What the guarded subclass of a class defines, so that the clients it makes are guarded.

    Args:
        cls: A class that makes its clients when they are needed, in ``_get_client()``.
    """
    if not has_clients(cls) or not hasattr(cls, "_get_client"):
        return {}

    def _get_client(self: Any) -> Any:
        return _guarded(self, "_client", cls._get_client)

    def _get_aclient(self: Any) -> Any:
        return _guarded(self, "_aclient", cls._get_aclient)

    return {
        "_get_client": _get_client,
        "_get_aclient": _get_aclient,
        "__annotations__": {"tokenfence_clients": Any},
        "tokenfence_clients": Field(default=None, exclude=True, repr=False),
    }


def guard_held_clients(guarded: Any) -> None:
    """Guard the clients that a guarded copy holds, or will make.

    Args:
        guarded: The copy, changed in place.
    """
    if "tokenfence_clients" in type(guarded).model_fields:
        guarded.tokenfence_clients = {}
        return
    below = []
    for name in HELD:
        client = getattr(guarded, name, None)
        if client is not None:
            client = guarded.tokenfence_terms.guard_client(client)
            setattr(guarded, name, client)
            below.append(client._terms)
    guarded.tokenfence_below = tuple(below)


def _guarded(thing: Any, name: str, make: Any) -> Any:
    """The guarded form of what the class's own method returns.

    The copies that are made for one call share the clients, and so their connections.
    """
    shared: dict[str, tuple[Any, Any]] = thing.tokenfence_clients
    known = shared.get(name)
    if known is not None and thing.reuse_client:
        held = getattr(thing, name)
        if held is None:
            setattr(thing, name, known[0])
        if held is None or held is known[0]:
            return known[1]
    plain = make(thing)
    guarded = thing.tokenfence_terms.guard_client(plain)
    if thing.reuse_client:
        shared[name] = plain, guarded
    return guarded
