"""A call's options, as another LLM takes them: tools are prepared anew, the rest left behind."""

from collections.abc import Mapping
from typing import Any

from tokenfence_integrations.llama_index.providers import CAP_FIELDS, cap_field

__all__ = ["TOOLS_KEY", "adapted_options", "same_family", "without_notes"]

TOOLS_KEY = "tokenfence_tools"
"""The option in which a call keeps its tools as they were given; never sent."""

COMMON = frozenset({"formatted", "temperature", "top_p"})
"""Options that every provider's class takes by the same name."""


def same_family(llm: object, other: object) -> bool:
    """Whether both are of one provider's class, so that one takes the other's options as they are.

    Guarded classes have their provider's class as their last base, behind `BudgetedLLM`.
    """
    return type(llm).__bases__[-1] is type(other).__bases__[-1]


def without_notes(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without what only this library reads."""
    if TOOLS_KEY not in options:
        return dict(options)
    return {name: value for name, value in options.items() if name != TOOLS_KEY}


def adapted_options(options: Mapping[str, Any], llm: Any, target: Any) -> dict[str, Any]:
    """What a call to one guarded LLM is, as a call to another.

    Args:
        options: The keyword arguments of the call.
        llm: Whom it was meant for.
        target: Who answers instead.

    Returns:
        The options for the target: its own model's name, tools in its own form.
    """
    if same_family(llm, target):
        return {name: value for name, value in options.items() if name != "model"}
    adapted = {name: value for name, value in options.items() if name in COMMON}
    most = [options[name] for name in CAP_FIELDS if type(options.get(name)) is int]
    cls: type = type(target)
    field = cap_field(cls)
    if most and field is not None:
        adapted[field] = max(most)
    noted = options.get(TOOLS_KEY)
    if noted is not None:
        tools, choices = noted
        prepared = target._prepare_chat_with_tools_compat(tools, chat_history=[], **choices)
        prepared.pop("messages", None)
        adapted |= prepared
    return adapted
