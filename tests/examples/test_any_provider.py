"""What docs/any-provider.md shows books what Anthropic's own SDK reports."""

from typing import Any

import anthropic
import pytest

from tests.clients.anthropic_server import COST, MODEL, Server
from tests.examples.test_docs import BLOCK, ROOT


@pytest.fixture
def page() -> dict[str, Any]:
    """The names of the page's program."""
    text = (ROOT / "docs" / "any-provider.md").read_text(encoding="utf-8")
    [source] = [match[1] for match in BLOCK.finditer(text)]
    names: dict[str, Any] = {}
    exec(source.replace("claude-sonnet-4-5", MODEL), names)
    return names


PROMPT = "Why is the sky blue? " * 100  # of more bytes than the server reports tokens


def test_the_answer_is_settled_by_what_anthropic_reports(page: dict[str, Any]) -> None:
    server = Server()
    with server.sync_client(max_retries=0) as client:
        assert page["ask"](client, PROMPT) == "hello"
    state = page["budget"].snapshot()
    assert (state.spent.usd, state.uncertain.usd, state.reserved.usd) == (server.billed, 0, 0)
    assert server.billed == COST
    assert server.bodies[0]["max_tokens"] == 500


@pytest.mark.parametrize(("status", "charged"), [(400, False), (500, True)])
def test_an_error_is_charged_if_it_may_have_been_billed(
    page: dict[str, Any], status: int, charged: bool
) -> None:
    server = Server()
    server.turns = [status]
    with server.sync_client(max_retries=0) as client, pytest.raises(anthropic.APIStatusError):
        page["ask"](client, PROMPT)
    state = page["budget"].snapshot()
    assert (state.spent.usd, state.reserved.usd) == (0, 0)
    assert (state.uncertain.usd > 0) is charged
