"""What has to be known of an LLM's class: whose prices, which name, which cap."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from llama_index.core.llms import LLM

from tokenfence_integrations.models.options import largest, lowered, with_body
from tokenfence_integrations.pricing.book import provider_of_url
from tokenfence_integrations.pricing.rates import asked_tier

__all__ = [
    "CAP_FIELDS",
    "can_cap",
    "cap_field",
    "choices_of",
    "copied",
    "is_of",
    "may_have",
    "member",
    "model_name",
    "output_maximum",
    "provider_of",
    "service_tier_of",
    "with_model_name",
    "with_output_maximum",
]

PRICE_LISTS = {
    "azure_openai": "azure",
    "bedrock": "aws",
    "bedrock_converse": "aws",
    "fireworks": "fireworks",
    "gemini": "google",
    "google_genai": "google",
    "mistralai": "mistral",
    "vertex": "google",
    "xai": "x-ai",
}
"""LlamaIndex's names of its packages where genai-prices names the provider otherwise."""

OF_OPENAI = ("openai", "openai_like")
"""Packages whose classes speak to whatever address they are given."""

NAME_FIELDS = ("model", "model_name", "model_id", "deployment_name", "engine")
CAP_FIELDS = (
    "max_tokens",
    "max_output_tokens",
    "max_completion_tokens",
    "max_new_tokens",
    "num_predict",
)


def package_of(cls: type, kind: str) -> str | None:
    """The integration that a class comes from: ``openai`` of ``llama_index.llms.openai``.

    Args:
        cls: A class of LLMs or embeddings.
        kind: ``"llms"`` or ``"embeddings"``.
    """
    prefix = f"llama_index.{kind}."
    for base in cls.__mro__:
        if base.__module__.startswith(prefix):
            return base.__module__.removeprefix(prefix).partition(".")[0]
    return None


@cache
def is_of(cls: type, package: str) -> bool:
    """Whether a class is made by a package such as ``llama_index.llms.openai``, or built on one."""
    prefix = f"{package}."
    return any(f"{base.__module__}.".startswith(prefix) for base in cls.__mro__)


def provider_of(thing: Any, kind: str = "llms") -> str:
    """Whose price list counts for an LLM or for embeddings, as genai-prices names it.

    Args:
        thing: The LLM or the embeddings.
        kind: ``"llms"`` or ``"embeddings"``.

    Example:
        >>> from llama_index.llms.openai import OpenAI
        >>> provider_of(OpenAI(model="gpt-4o"))
        'openai'
    """
    package = package_of(type(thing), kind)
    if package is None:
        return "openai"
    url = getattr(thing, "api_base", None)
    if package in OF_OPENAI and url:
        return provider_of_url(str(url))
    return PRICE_LISTS.get(package, package.removesuffix("_like"))


@cache
def may_have(cls: Any, name: str) -> bool:
    """Whether LLMs of a class can have something under a name."""
    return (
        name in cls.model_fields
        or name in cls.__private_attributes__
        or hasattr(cls, name)
        or cls.model_config.get("extra") == "allow"
    )


def member(llm: LLM, name: str) -> Any:
    """What an LLM has under a name, a field of its own or a private one; None if it has none.

    Not ``getattr``: with a default it costs microseconds on a pydantic model that lacks the field,
    and this runs for many names in every call.
    """
    return getattr(llm, name, None) if may_have(type(llm), name) else None


def model_name(llm: LLM, options: Mapping[str, Any]) -> str:
    """The name of the model that a call asks for, one given for this call included."""
    asked = options.get("model")
    if isinstance(asked, str):
        return asked
    for field in NAME_FIELDS:
        name = getattr(llm, field, None)
        if isinstance(name, str) and name:
            return name.removeprefix("models/")  # as Google's models name themselves
    told = llm.metadata.model_name
    return type(llm).__name__ if told == "unknown" else told


def with_model_name(llm: LLM, name: str) -> LLM:
    """A copy of an LLM that asks for another model of the same provider.

    Raises:
        ValueError: The class has no field for a model's name.
    """
    fields = type(llm).model_fields
    field = next((field for field in NAME_FIELDS if field in fields), None)
    if field is None:
        raise ValueError(
            f"fallback {name!r} cannot work: {type(llm).__name__} has no field for the name of a "
            f"model. Give an LLM object as the fallback"
        )
    return llm.model_copy(update={field: name})


def choices_of(llm: LLM, sent: Mapping[str, Any]) -> int:
    """How many answers a call asks for that sends this, as `options_of` tells."""
    asked = sent.get("n") or member(llm, "n")
    return asked if type(asked) is int and asked > 0 else 1


def service_tier_of(llm: LLM, sent: Mapping[str, Any]) -> str | None:
    """The service tier of a call that sends this, as `options_of` tells; None for the usual one."""
    return asked_tier(sent.get("service_tier") or member(llm, "service_tier"))


def output_maximum(llm: LLM, options: Mapping[str, Any]) -> int | None:
    """The output maximum that a call would be sent with, per choice; None if it has none.

    LlamaIndex's OpenAI sends its own ``max_tokens`` whatever the call says; other classes let the
    call decide. What stands in ``additional_kwargs``, or in an ``extra_body``, wins over both.
    """
    extra = with_body(_extra(llm), options.get("extra_body"))
    standing = largest(extra, CAP_FIELDS) if extra else None
    if standing is not None:
        return standing or None
    field = cap_field(type(llm))
    own: Any = None if field is None else getattr(llm, field)
    if options and (own is None or not is_of(type(llm), "llama_index.llms.openai")):
        asked = largest(options, CAP_FIELDS)
        if asked is not None:
            return asked or None
    return own if type(own) is int and own > 0 else None


def can_cap(llm: LLM) -> bool:
    """Whether an output maximum can be set on this class of LLMs."""
    return cap_field(type(llm)) is not None


def with_output_maximum(llm: LLM, options: dict[str, Any], most: int) -> tuple[LLM, dict[str, Any]]:
    """An LLM and options that send this output maximum, wherever one stands already.

    Args:
        llm: The LLM.
        options: The keyword arguments of the call.
        most: Tokens per choice.
    """
    changed = lowered(options, CAP_FIELDS, most)
    extra = _extra(llm)
    again = lowered(extra, CAP_FIELDS, most)
    field = cap_field(type(llm))
    update: dict[str, Any] = {} if field is None else {field: most}
    if again:
        update["additional_kwargs"] = {**extra, **again}
    return copied(llm, update), {**options, **changed}


def copied(llm: Any, update: Mapping[str, Any]) -> Any:
    """A copy for one call: what it notes in private attributes, the LLM itself knows afterwards.

    OpenAIResponses keeps the id of its last answer there, others the client that they have made.
    """
    copy = llm.model_copy(update=update)
    object.__setattr__(copy, "__pydantic_private__", llm.__pydantic_private__)
    return copy


def _extra(llm: LLM) -> Mapping[str, Any]:
    extra = getattr(llm, "additional_kwargs", None)
    return extra if isinstance(extra, dict) else {}


@cache
def cap_field(cls: type) -> str | None:
    """The field in which a class of LLMs keeps its output maximum."""
    fields: Mapping[str, Any] = getattr(cls, "model_fields", {})
    return next((field for field in CAP_FIELDS if field in fields), None)
