"""A call's options, as another model takes them: tools are bound anew, the rest left behind."""

from collections.abc import Mapping
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableBinding

from tokenfence_integrations.langchain.providers import model_name

__all__ = ["FORMS_KEY", "TOOLS_KEY", "adapted_options", "same_family", "without_notes"]

TOOLS_KEY = "tokenfence_tools"
"""The option in which a binding keeps its tools as they were given; never sent."""

FORMS_KEY = "tokenfence_forms"
"""The option in which a chain for structured output keeps how each fallback is asked; never sent.
"""

NOTES = frozenset({TOOLS_KEY, FORMS_KEY})

COMMON = frozenset({"max_tokens", "temperature", "top_p"})
"""Options that every provider's class takes by the same name."""


def same_family(model: BaseChatModel, other: BaseChatModel) -> bool:
    """Whether both are of one provider's class, so that one takes the other's options as they are.

    Guarded classes have their provider's class as their last base, behind `BudgetedChatModel`.
    """
    return type(model).__bases__[-1] is type(other).__bases__[-1]


def without_notes(options: dict[str, Any]) -> dict[str, Any]:
    """Options without what only this library reads; themselves, if there is nothing like that."""
    if NOTES.isdisjoint(options):
        return options
    return {name: value for name, value in options.items() if name not in NOTES}


def adapted_options(
    options: Mapping[str, Any], model: BaseChatModel, target: BaseChatModel
) -> dict[str, Any]:
    """What a call to one guarded model is, as a call to another.

    Args:
        options: The keyword arguments of the call.
        model: Whom it was meant for.
        target: Who answers instead.

    Returns:
        The options for the target: its own model's name, tools in its own form.
    """
    if same_family(model, target):
        return {k: v for k, v in options.items() if k not in ("model", "model_name")}
    adapted = {name: value for name, value in options.items() if name in COMMON}
    forms = options.get(FORMS_KEY) or {}
    form = forms.get(model_name(target, {}))
    if form is not None:
        adapted |= form
    elif TOOLS_KEY in options:
        tools, choices = options[TOOLS_KEY]
        bound = target.bind_tools(tools, **choices)
        if isinstance(bound, RunnableBinding):
            adapted |= without_notes(dict(bound.kwargs))
    return adapted
