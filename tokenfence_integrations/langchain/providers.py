"""What has to be known of a provider's chat model class: whose prices, which name, which cap."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from langchain_core.language_models import BaseChatModel

from tokenfence_integrations.models.options import largest, lowered, with_body
from tokenfence_integrations.pricing.book import provider_of_url

__all__ = [
    "can_cap",
    "choices_of",
    "model_name",
    "name_field",
    "output_maximum",
    "price_list",
    "provider_of",
    "provider_of_class",
    "sent_options",
    "with_model_name",
    "with_output_maximum",
]

PRICE_LISTS = {
    "amazon_bedrock": "aws",
    "azure": "azure",
    "azure_openai": "azure",
    "fireworks": "fireworks",
    "google_genai": "google",
    "google_vertexai": "google",
    "mistralai": "mistral",
    "xai": "x-ai",
}
"""LangChain's names of providers (``ls_provider``) where genai-prices has another one."""

NAME_FIELDS = ("model_name", "model", "model_id", "deployment_name")
CAP_FIELDS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "num_predict")
CAPS = frozenset(CAP_FIELDS)

STANDING = ("cached_content", "mcp_servers")
"""Fields of models that are sent with each call, and stand for input."""


def provider_of(model: BaseChatModel) -> str:
    """Whose price list counts for a model, as genai-prices names it."""
    told = model._get_ls_params().get("ls_provider") or "openai"
    return price_list(told, getattr(model, "openai_api_base", None))


def price_list(told: str, base_url: object) -> str:
    """Whose price list counts for a provider, as genai-prices names it.

    Args:
        told: LangChain's name of it.
        base_url: Where an OpenAI client was told to go; empty or None: to OpenAI.

    Example:
        >>> price_list("google_genai", None), price_list("openai", "https://api.groq.com/openai/v1")
        ('google', 'groq')
    """
    if told == "openai" and base_url:
        return provider_of_url(str(base_url))
    return PRICE_LISTS.get(told, told)


def provider_of_class(cls: type) -> str:
    """Whose price list counts for a class, by the package that it comes from.

    Example:
        >>> from langchain_openai import OpenAIEmbeddings
        >>> provider_of_class(OpenAIEmbeddings)
        'openai'
    """
    for base in cls.__mro__:
        package = base.__module__.partition(".")[0]
        if package.startswith("langchain_") and package not in (
            "langchain_core",
            "langchain_tests",
        ):
            told = package.removeprefix("langchain_")
            azure = told == "openai" and base.__name__.startswith("Azure")
            return "azure" if azure else PRICE_LISTS.get(told, told)
    return "openai"


def model_name(model: BaseChatModel, options: Mapping[str, Any]) -> str:
    """The name of the model that a call asks for, one bound to the call included."""
    asked = options.get("model") or options.get("model_name")
    if isinstance(asked, str):
        return asked
    for field in NAME_FIELDS:
        name = getattr(model, field, None)
        if isinstance(name, str) and name:
            return name.removeprefix("models/")  # as Google's models name themselves
    return model._llm_type


def name_field(model: BaseChatModel) -> str | None:
    """The field that holds the model's name; None if there is none to change."""
    fields = type(model).model_fields
    return next((field for field in NAME_FIELDS if field in fields), None)


def with_model_name(model: BaseChatModel, name: str) -> BaseChatModel:
    """A copy of a chat model that asks for another model of the same provider.

    Raises:
        ValueError: The class has no field for a model's name.
    """
    field = name_field(model)
    if field is None:
        raise ValueError(
            f"fallback {name!r} cannot work: {type(model).__name__} has no field for the name of "
            f"a model. Give a chat model object as the fallback"
        )
    copied = model.model_copy(update={field: name})
    copied.__dict__.pop("_serialized", None)  # cached, under the old name
    copied.profile = copied._resolve_model_profile()
    return copied


def sent_options(model: BaseChatModel, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """All that a call sends beside its messages: its own options, and the model's standing ones.

    Args:
        model: The model.
        options: The call's keyword arguments.
    """
    told = {name: getattr(model, name, None) for name in _standing(type(model))}
    extra = told.pop("model_kwargs", None) or {}
    body = told.pop("extra_body", None)
    standing = {name: value for name, value in told.items() if value}
    if extra or standing:
        options = {**standing, **extra, **options}
    return with_body(options, body)


@cache
def _standing(cls: type[BaseChatModel]) -> tuple[str, ...]:
    fields = cls.model_fields
    return tuple(name for name in (*STANDING, "model_kwargs", "extra_body") if name in fields)


def choices_of(model: BaseChatModel, options: Mapping[str, Any]) -> int:
    """How many answers a call asks for that sends this, as `sent_options` tells."""
    asked = options.get("n") or getattr(model, "n", None)
    return asked if type(asked) is int and asked > 0 else 1


def output_maximum(model: BaseChatModel, options: Mapping[str, Any]) -> int | None:
    """The output maximum of a call that sends this, per choice; None if it has none.

    Args:
        model: The model.
        options: As `sent_options` tells.
    """
    if not CAPS.isdisjoint(options):
        asked = largest(options, CAP_FIELDS)
        if asked is not None:
            return asked or None
    field = _cap_field(type(model))
    own = None if field is None else getattr(model, field)
    return own if type(own) is int and own > 0 else None


def can_cap(model: BaseChatModel) -> bool:
    """Whether an output maximum can be set on this class of models."""
    return _cap_field(type(model)) is not None


def with_output_maximum(
    model: BaseChatModel, options: dict[str, Any], most: int
) -> tuple[BaseChatModel, dict[str, Any]]:
    """A model and options that send this output maximum.

    On the model's own field, since not every class heeds an option; and wherever one stands already
    that would win.
    """
    changed = lowered(options, CAP_FIELDS, most)
    update = lowered({"extra_body": getattr(model, "extra_body", None)}, CAP_FIELDS, most)
    extra = getattr(model, "model_kwargs", None) or {}
    again = lowered(extra, CAP_FIELDS, most)
    if again:
        update["model_kwargs"] = {**extra, **again}
    field = _cap_field(type(model))
    if field is not None and CAPS.isdisjoint(changed):
        update[field] = most
    return model.model_copy(update=update) if update else model, {**options, **changed}


@cache
def _cap_field(cls: type[BaseChatModel]) -> str | None:
    fields = cls.model_fields
    return next((field for field in CAP_FIELDS if field in fields), None)
