"""Scripted answers: texts and calls of tools, in turn or by the request, on both APIs."""

from collections.abc import Callable
from typing import Any

import openai
import pytest

from tests.testing.conftest import count
from tokenfence_integrations.testing import (
    Behavior,
    SimulatedProvider,
    ToolCall,
    in_turn,
    spawn_provider,
)

PARAMETERS = {
    "type": "object",
    "properties": {"query": {"type": "string", "minLength": 2}},
    "required": ["query"],
}
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
NAMES = ("search", "divide")
CHAT_TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": PARAMETERS}} for name in NAMES
]
RESPONSES_TOOLS: list[Any] = [
    {"type": "function", "name": name, "parameters": PARAMETERS} for name in NAMES
]

Said = tuple[str, list[tuple[str, str]], int, str]
"""Text, calls as (name, arguments), reported output tokens, how it ended."""
Ask = Callable[..., Said]


def chat(client: openai.OpenAI, **options: Any) -> Said:
    call = {"model": "gpt-4o", "messages": HELLO, "tools": CHAT_TOOLS, **options}
    return _said(client.chat.completions.create(**call))


def chat_stream(client: openai.OpenAI, **options: Any) -> Said:
    call = {"model": "gpt-4o", "messages": HELLO, "tools": CHAT_TOOLS, **options}
    with client.chat.completions.create(
        **call, stream=True, stream_options={"include_usage": True}
    ) as chunks:
        state: Any = openai.lib.streaming.chat.ChatCompletionStreamState()
        for chunk in chunks:
            state.handle_chunk(chunk)
    return _said(state.current_completion_snapshot)


def _said(reply: Any) -> Said:
    [choice] = reply.choices
    calls = [(c.function.name, c.function.arguments) for c in choice.message.tool_calls or ()]
    used = reply.usage.completion_tokens
    return choice.message.content or "", calls, used, choice.finish_reason


def responses(client: openai.OpenAI, **options: Any) -> Said:
    return _responded(client.responses.create(**_for_responses(options)))


def responses_stream(client: openai.OpenAI, **options: Any) -> Said:
    with client.responses.create(**_for_responses(options), stream=True) as stream:
        events = list(stream)
    made: dict[int, str] = {}
    for event in events:
        if event.type in ("response.function_call_arguments.delta", "response.output_text.delta"):
            made[event.output_index] = made.get(event.output_index, "") + event.delta
    text, calls, used, ending = _responded(events[-1].response)
    # What was streamed is what the last event says.
    whole = [text] if not calls else [arguments for _, arguments in calls]
    assert list(made.values()) == [piece for piece in whole if piece]
    return text, calls, used, ending


def _for_responses(options: dict[str, Any]) -> dict[str, Any]:
    options = {"model": "gpt-4o", "input": "Hello", "tools": RESPONSES_TOOLS, **options}
    if "max_tokens" in options:
        options["max_output_tokens"] = options.pop("max_tokens")
    if isinstance(options.get("tool_choice"), dict):
        options["tool_choice"] = {"type": "function", **options["tool_choice"]["function"]}
    return options


def _responded(reply: Any) -> Said:
    calls = [(i.name, i.arguments) for i in reply.output if i.type == "function_call"]
    ending = "length" if reply.status == "incomplete" else "tool_calls" if calls else "stop"
    return reply.output_text, calls, reply.usage.output_tokens, ending


EACH = pytest.mark.parametrize("ask", [chat, chat_stream, responses, responses_stream])


@EACH
def test_answers_come_in_turn_and_the_last_is_repeated(
    provider: SimulatedProvider, client: openai.OpenAI, ask: Ask
) -> None:
    provider.script = in_turn(
        "First.", ToolCall("divide", {"query": "1/0"}), Behavior(output_tokens=3), "Last."
    )
    arguments = '{"query": "1/0"}'
    expected = [
        ("First.", [], count("First."), "stop"),
        ("", [("divide", arguments)], count("divide") + count(arguments), "tool_calls"),
        ("yes yes yes", [], 3, "stop"),
        ("Last.", [], count("Last."), "stop"),
        ("Last.", [], count("Last."), "stop"),
    ]
    assert [ask(client) for _ in expected] == expected
    provider.idle()
    assert [line.output_tokens for line in provider.bill] == [used for _, _, used, _ in expected]


@EACH
def test_several_calls_side_by_side(
    provider: SimulatedProvider, client: openai.OpenAI, ask: Ask
) -> None:
    provider.behave(
        tool_calls=[ToolCall("search"), ToolCall("divide", "{not json"), ToolCall("search", {})]
    )
    _, calls, used, ending = ask(client)
    assert calls == [("search", '{"query": "xx"}'), ("divide", "{not json"), ("search", "{}")]
    assert used == sum(count(name) + count(arguments) for name, arguments in calls)
    assert ending == "tool_calls"
    provider.idle()
    assert provider.bill[0].output_tokens == used


@EACH
def test_an_agent_loops_on_a_failing_tool(
    provider: SimulatedProvider, client: openai.OpenAI, ask: Ask
) -> None:
    provider.script = in_turn(*[ToolCall("search")] * 50, "I give up.")
    ended = [ask(client)[3] for _ in range(51)]
    assert ended == ["tool_calls"] * 50 + ["stop"]


def test_a_whole_loop_of_chat(provider: SimulatedProvider, client: openai.OpenAI) -> None:
    """The results are sent back, as an agent does: they end no scripted loop, and ids differ."""
    provider.script = lambda request: (
        ToolCall("search", {"query": f"{request.tool_results}"})
        if request.tool_results < 5
        else "I give up."
    )
    messages = [*HELLO]
    while True:
        reply = client.chat.completions.create(
            model="gpt-4o", messages=messages, tools=CHAT_TOOLS
        ).choices[0]
        messages.append(reply.message.to_dict())
        if not reply.message.tool_calls:
            break
        [call] = reply.message.tool_calls
        messages.append({"role": "tool", "tool_call_id": call.id, "content": "error"})
    assert reply.message.content == "I give up."
    made = [call for m in messages for call in m.get("tool_calls", ())]
    assert [c["function"]["arguments"] for c in made] == [f'{{"query": "{i}"}}' for i in range(5)]
    assert len({call["id"] for call in made}) == 5
    inputs = [line.input_tokens for line in provider.bill]
    assert inputs == sorted(set(inputs))  # each turn has more to read


def test_a_whole_loop_of_responses(provider: SimulatedProvider, client: openai.OpenAI) -> None:
    provider.script = lambda request: (
        [ToolCall("search"), ToolCall("divide")] if request.tool_results < 4 else "I give up."
    )
    items: list[Any] = [*HELLO]
    while True:
        reply = client.responses.create(model="gpt-4o", input=items, tools=RESPONSES_TOOLS)
        calls = [item for item in reply.output if item.type == "function_call"]
        if not calls:
            break
        items += [item.to_dict() for item in reply.output]
        items += [
            {"type": "function_call_output", "call_id": call.call_id, "output": "error"}
            for call in calls
        ]
    assert reply.output_text == "I give up."
    assert len({item["call_id"] for item in items if item.get("type") == "function_call"}) == 4
    assert len(provider.bill) == 3


@EACH
def test_the_cap_cuts_calls_wherever_it_falls(
    provider: SimulatedProvider, client: openai.OpenAI, ask: Ask
) -> None:
    provider.behave(
        reasoning_tokens=2, tool_calls=[ToolCall("search"), ToolCall("divide", {"query": "one"})]
    )
    wanted = 2 + sum(
        map(count, ("search", '{"query": "xx"}', "divide", '{"query": "one"}')),
    )
    for cap in range(1, wanted + 2):
        _, calls, used, ending = ask(client, max_tokens=cap)
        assert used == min(cap, wanted)
        assert ending == ("length" if cap < wanted else "tool_calls")
        shown = sum(count(name) + count(arguments) for name, arguments in calls)
        # A name that does not fit is lost, and billed; a cut piece may count for fewer.
        assert shown + 2 <= used or not calls
    provider.idle()
    assert [line.output_tokens for line in provider.bill] == [
        min(cap, wanted) for cap in range(1, wanted + 2)
    ]


@EACH
def test_a_tool_that_the_request_insists_on(
    provider: SimulatedProvider, client: openai.OpenAI, ask: Ask
) -> None:
    divide = {"type": "function", "function": {"name": "divide"}}
    assert ask(client)[1] == []
    assert ask(client, tool_choice="required")[1] == [("search", '{"query": "xx"}')]
    assert ask(client, tool_choice=divide)[1] == [("divide", '{"query": "xx"}')]
    provider.behave(tool_arguments={"query": "tides"})
    assert ask(client, tool_choice=divide)[1] == [("divide", '{"query": "tides"}')]
    provider.behave(tool_call=True)
    assert ask(client, tool_choice="none")[1] == []
    provider.behave(tool_call=False, text="No.")
    assert ask(client, tool_choice="required")[:2] == ("No.", [])
    unknown = {"type": "function", "function": {"name": "unheard_of"}}
    provider.behave(text=None)
    with pytest.raises(openai.BadRequestError, match="no tool 'unheard_of'"):
        ask(client, tool_choice=unknown)


@EACH
def test_an_unknown_tool_is_the_scripts_mistake(
    provider: SimulatedProvider, client: openai.OpenAI, ask: Ask
) -> None:
    provider.script = in_turn([ToolCall("search"), ToolCall("serach")])
    with pytest.raises(openai.BadRequestError, match="no tool 'serach', only"):
        ask(client)
    assert provider.bill == []


def test_n_choices_of_calls_are_all_counted(
    provider: SimulatedProvider, client: openai.OpenAI
) -> None:
    provider.behave(tool_calls=[ToolCall("search"), ToolCall("divide")])
    once = sum(map(count, ("search", "divide", '{"query": "xx"}', '{"query": "xx"}')))
    with client.chat.completions.stream(
        model="gpt-4o", messages=HELLO, tools=CHAT_TOOLS, n=3
    ) as stream:
        final = stream.get_final_completion()
    for choice in final.choices:
        names = [call.function.name for call in choice.message.tool_calls or ()]
        assert names == ["search", "divide"]
    assert provider.bill[0].output_tokens == 3 * once


def test_a_broken_stream_of_calls_is_billed_as_far_as_it_got(
    provider: SimulatedProvider, client: openai.OpenAI
) -> None:
    provider.behave(tool_calls=[ToolCall("search"), ToolCall("divide")], end_early=True)
    whole = sum(map(count, ("search", "divide", '{"query": "xx"}', '{"query": "xx"}')))
    calls = {"model": "gpt-4o", "tools": CHAT_TOOLS, "messages": HELLO, "stream": True}
    with client.chat.completions.create(**calls) as stream:
        assert all(choice.finish_reason is None for chunk in stream for choice in chunk.choices)
    with client.responses.create(**_for_responses({}), stream=True) as events:
        assert [e.type for e in events][-1] == "response.function_call_arguments.delta"
    provider.idle()
    assert [line.output_tokens for line in provider.bill] == [whole // 2] * 2


def test_a_script_sees_who_asks(provider: SimulatedProvider, client: openai.OpenAI) -> None:
    """What it says keeps the rest of the provider's own behavior."""
    provider.behave(cached_tokens=2, tool_call=True)
    provider.script = lambda request: (
        "Text for the planner." if request.body.get("user") == "planner" else None
    )
    plan = client.chat.completions.create(
        model="gpt-4o", messages=HELLO, tools=CHAT_TOOLS, user="planner"
    )
    assert plan.choices[0].message.content == "Text for the planner."
    assert plan.usage.prompt_tokens_details.cached_tokens == 2
    assert chat(client)[1] == [("search", '{"query": "xx"}')]


def test_in_turn_needs_an_answer() -> None:
    with pytest.raises(ValueError, match="at least one answer"):
        in_turn()


def test_calls_reach_a_provider_in_another_process() -> None:
    with (
        spawn_provider(tool_calls=[ToolCall("divide", {"query": "1"})]) as provider,
        openai.OpenAI(base_url=provider.base_url, api_key="unused") as client,
    ):
        assert chat(client)[1] == [("divide", '{"query": "1"}')]
