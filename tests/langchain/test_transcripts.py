"""A conversation with tools, told without them."""

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from tokenfence_integrations.langchain.agents.transcripts import shortened, transcript

TALK: list[BaseMessage] = [
    SystemMessage("Be brief."),
    HumanMessage("When?"),
    AIMessage("I look.", tool_calls=[{"name": "search", "args": {"q": "Ebbe & Flut"}, "id": "1"}]),
    ToolMessage("x" * 10_000, tool_call_id="1"),
    AIMessage("", tool_calls=[{"name": "search", "args": {}, "id": "2"}]),
    ToolMessage([{"type": "text", "text": "at nine"}], tool_call_id="2"),
    ToolMessage("stray", tool_call_id="3", name="other"),
]


def length(messages: list[BaseMessage]) -> int:
    return sum(len(str(message.content)) for message in messages)


def test_calls_and_results_become_text() -> None:
    told = transcript(TALK, "Sum up.")
    assert [message.type for message in told] == ["system", "human", "ai", *["human"] * 4]
    assert told[3].text.startswith('Result of search({"q": "Ebbe & Flut"}):\nxxx')
    assert [message.text for message in told[4:]] == [
        "Result of search({}):\nat nine",
        "Result of other:\nstray",
        "Sum up.",
    ]
    assert not any(getattr(message, "tool_calls", None) for message in told)


def test_what_fits_is_only_joined() -> None:
    joined = shortened(transcript(TALK, "Sum up."), length, 20_000)
    assert joined is not None
    assert [message.type for message in joined] == ["system", "human", "ai", "human"]
    assert joined[-1].text.endswith("Sum up.")


def test_the_longest_is_cut_first_the_request_never() -> None:
    whole = transcript(TALK, "Sum up.")
    cut = shortened(whole, length, 2_000)
    assert cut is not None
    assert length(cut) <= 2_000
    assert "[…]" in cut[-1].text
    assert "at nine" in cut[-1].text
    least = shortened(whole, length, 24)
    assert least is not None
    assert [message.text for message in least] == ["Be brief.", "When?\n\nSum up."]
    assert shortened(whole, length, 10) is None


def test_pictures_are_left_out_rather_than_cut() -> None:
    picture = HumanMessage([{"type": "image", "base64": "A" * 5_000, "mime_type": "image/png"}])
    whole = transcript([HumanMessage("What is it?"), AIMessage("Show me."), picture], "Sum up.")
    least = shortened(whole, length, 100)
    assert least is not None
    assert [message.text for message in least] == ["What is it?", "Show me.", "Sum up."]
