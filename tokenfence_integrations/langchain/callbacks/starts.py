"""What LangChain tells when a model starts, as the call that has to be reserved for it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeGuard

from tokenfence_integrations.clients.openai.content import unused_prediction
from tokenfence_integrations.engine.calls.request import CallRequest
from tokenfence_integrations.langchain.providers import CAP_FIELDS, NAME_FIELDS, price_list
from tokenfence_integrations.models.options import with_body
from tokenfence_integrations.pricing.rates import Card, asked_tier

__all__ = ["Start", "read_options", "told_params"]

READ = frozenset(
    {
        "documents",
        "format",
        "functions",
        "guided_json",
        "instructions",
        "mcp_servers",
        "model_kwargs",
        "output_config",
        "output_format",
        "prediction",
        "response_format",
        "response_schema",
        "system",
        "system_instruction",
        "text",
        "tools",
        "web_search_options",
        # input that only the provider knows
        "cached_content",
        "container",
        "conversation",
        "previous_response_id",
        "prompt",
    }
)
"""Parameters that the model reads, or that stand for what it reads.

Not all parameters: a model that does not say otherwise shows every field of its constructor.
"""

TAGS = ("langgraph_node", "lc_agent_name")
"""Metadata that the ledger keeps: who called."""


def told_params(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters of a run as they are sent: what is in an ``extra_body`` is over all others."""
    body = params.get("extra_body")
    return {**params, **body} if isinstance(body, Mapping) else params


def read_options(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a run that count as input."""
    read = {name: params[name] for name in READ & params.keys() if params[name]}
    return {**with_body(read, params.get("extra_body"))}


class Start(NamedTuple):
    """The start of a run of a chat model or a text model.

    Args:
        serialized: How the model was made.
        params: Its parameters, with those of the call over them.
        metadata: The run's metadata: LangChain's, LangGraph's and the user's own.
    """

    serialized: Mapping[str, Any]
    params: Mapping[str, Any]
    metadata: Mapping[str, Any]

    @property
    def model(self) -> str:
        """The name of the model that is asked for; that of its class if it has none."""
        named = [self.metadata.get("ls_model_name"), *map(self.params.get, NAME_FIELDS)]
        for name in named:
            if isinstance(name, str) and name:
                return name.removeprefix("models/")  # as Google's models name themselves
        return str(self.params.get("_type") or (self.serialized.get("id") or ["model"])[-1])

    @property
    def provider(self) -> str:
        """Whose price list counts, as genai-prices names it."""
        told = self.metadata.get("ls_provider")
        if not isinstance(told, str) or not told:  # generate() of text models tells only its type
            told = str(self.params.get("_type") or "openai").partition("-")[0]
        made_with = self.serialized.get("kwargs") or {}
        return price_list(told, made_with.get("openai_api_base"))

    @property
    def output_maximum(self) -> int | None:
        """The output maximum that is sent, per choice; None if none is, or none is told."""
        named = [n for n in map(self.params.get, CAP_FIELDS) if _is_count(n)]
        told = self.metadata.get("ls_max_tokens")
        if _is_count(told) and (told in named or not named):
            return told
        return max(named, default=None)

    @property
    def choices(self) -> int:
        """How many answers are made, wanted or not."""
        wanted = map(self.params.get, ("n", "best_of", "candidate_count"))
        return max([1, *[n for n in wanted if _is_count(n)]])

    def request(
        self, card: Card, input_bound: Callable[[Card], int] | int, expected: Callable[[int], int]
    ) -> CallRequest:
        """What to reserve.

        Args:
            card: The model's prices and limits.
            input_bound: The most input tokens; or a function that tells them for a model.
            expected: Tells for how many output tokens per choice to reserve, of those possible.
        """
        tier = asked_tier(self.params.get("service_tier"))
        request = CallRequest(
            self.model,
            input_bound,
            choices=self.choices,
            extra_price=unused_prediction(self.params.get("prediction"), tier),
            service_tier=tier,
            cappable=False,
            tags={name: self.metadata[name] for name in TAGS if name in self.metadata} or None,
        )
        # Not left open even where nothing is sent: admission would look for a cap.
        request.max_output_tokens = expected(self.output_maximum or request.most_output(card))
        return request


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and value > 0
