"""Guarded chat models pass what plain ones pass: all of LangChain's own suite for chat models."""

from typing import ClassVar

import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from tests.conformance.conftest import Outcomes
from tests.conformance.langchain_models import (
    AnthropicUnit,
    Guarded,
    OpenAIIntegration,
    OpenAIUnit,
)

# In one process and in this order: the last test looks back on the others.
pytestmark = pytest.mark.xdist_group("langchain_suite")


class TestPlainOpenAIUnit(OpenAIUnit):
    pass


class TestGuardedOpenAIUnit(Guarded, OpenAIUnit):
    pass


class TestPlainAnthropicUnit(AnthropicUnit):
    pass


class TestGuardedAnthropicUnit(Guarded, AnthropicUnit):
    pass


class TestPlainOpenAI(OpenAIIntegration):
    pass


class TestGuardedOpenAI(Guarded, OpenAIIntegration):
    pass


class TestPlainOpenAIResponses(OpenAIIntegration):
    options: ClassVar[dict[str, bool]] = {"use_responses_api": True}


class TestGuardedOpenAIResponses(Guarded, OpenAIIntegration):
    options: ClassVar[dict[str, bool]] = {"use_responses_api": True}


@pytest.mark.parametrize(
    ("models", "suite"),
    [
        ("OpenAIUnit", ChatModelUnitTests),
        ("AnthropicUnit", ChatModelUnitTests),
        ("OpenAI", ChatModelIntegrationTests),
        ("OpenAIResponses", ChatModelIntegrationTests),
    ],
)
def test_what_plain_models_pass_guarded_ones_pass_and_nothing_is_left_out(
    outcomes: Outcomes, models: str, suite: type
) -> None:
    plain, guarded = (outcomes.get(f"Test{kind}{models}", {}) for kind in ("Plain", "Guarded"))
    run = {name.partition("[")[0] for name in plain}
    assert run == {name for name in dir(suite) if name.startswith("test_")}, "run the whole file"
    assert guarded == plain
    assert set(plain.values()) == {"passed"}
