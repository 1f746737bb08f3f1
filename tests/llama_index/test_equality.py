"""What LlamaIndex and its users see of a guarded LLM is what they would see of the plain one."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import Settings

from tests.llama_index import models
from tests.llama_index.entry_points import (
    ENTRIES,
    MESSAGES,
    OWN_WARNINGS,
    TOOL,
    Entry,
    answers,
)
from tests.llama_index.recorder import Told, recording, shown
from tokenfence_integrations import Budget, guard
from tokenfence_integrations.testing import SimulatedProvider

pytestmark = OWN_WARNINGS

each_entry = pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)


async def _seen(entry: Entry, make_llm: Callable[[], Any]) -> tuple[Any, Told]:
    with recording() as told:
        llm = make_llm()
        llm.callback_manager = Settings.callback_manager
        result = shown(await entry.run(llm))
    return result, told


@each_entry
async def test_results_and_what_is_told_are_equal(
    entry: Entry, make: Callable[..., Any], provider: SimulatedProvider, budget: Budget
) -> None:
    provider.script = answers
    plain = make(models.openai_llm, max_tokens=200)

    bare, bare_told = await _seen(entry, lambda: plain.model_copy())
    asked = [shown(request.body) for request in provider.received]
    provider.clear()
    ours, ours_told = await _seen(entry, lambda: guard(plain, budget=budget))

    assert ours == bare
    for kind, told in bare_told.counted().items():
        assert ours_told.counted()[kind] == told, kind
    assert [shown(_without_usage(request.body)) for request in provider.received] == asked


@pytest.mark.parametrize(
    "look",
    [
        repr,
        lambda m: m.model_dump(),
        lambda m: m.to_payload(),
        lambda m: m.to_dict(),
        lambda m: m.class_name(),
        lambda m: m.metadata,
        lambda m: m.model_copy(update={"temperature": 0.5}).model_dump(),
        lambda m: m._get_model_kwargs(),
        lambda m: m._prepare_chat_with_tools([TOOL], "Why?"),
        lambda m: inspect.signature(type(m)._prepare_chat_with_tools),
        lambda m: inspect.signature(type(m).get_tool_calls_from_response),
        lambda m: type(m).__qualname__,
    ],
)
def test_it_looks_like_the_plain_llm(look: Callable[[Any], Any], llm: Any, budget: Budget) -> None:
    assert look(guard(llm, budget=budget)) == look(llm)


async def test_the_usage_of_a_stream_is_shown_to_those_who_asked(
    make: Callable[..., Any], provider: SimulatedProvider, budget: Budget
) -> None:
    asking = make(models.openai_llm, additional_kwargs={"stream_options": {"include_usage": True}})
    plain = list(asking.stream_chat(MESSAGES))
    streamed = list(guard(asking, budget=budget).stream_chat(MESSAGES))
    unasked = list(guard(make(models.openai_llm), budget=budget).stream_chat(MESSAGES))

    assert shown(streamed) == shown(plain)
    assert streamed[-1].additional_kwargs["prompt_tokens"] > 0
    assert all(not response.additional_kwargs for response in unasked)


async def test_a_stream_is_told_of_when_it_is_made(llm: Any, budget: Budget) -> None:
    """LlamaIndex tells so at the call, and not at the first step."""
    for stream in ("stream_chat", "astream_chat"):
        with recording() as told:
            guarded = guard(llm, budget=budget)
            guarded.callback_manager = Settings.callback_manager
            made = getattr(guarded, stream)(MESSAGES)
            if stream.startswith("a"):
                made = await made
        starts = [(kind, name) for kind, name, _ in told.callbacks.seen]
        assert ("start", "llm") in starts
        assert ("end", "llm") not in starts
        if stream.startswith("a"):
            await made.aclose()
        else:
            made.close()
    assert budget.snapshot().reserved.usd == 0


def _without_usage(body: Any) -> Any:
    """A request's body without the usage that a guarded client asks streams for."""
    return {name: value for name, value in body.items() if name != "stream_options"}
