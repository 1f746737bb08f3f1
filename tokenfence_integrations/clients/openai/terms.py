"""What a guarded client was guarded with, and what of that depends on the server that it calls."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from tokenfence_integrations.clients.openai.endpoints import Endpoint
from tokenfence_integrations.engine.budget import Budget
from tokenfence_integrations.engine.calls.meter import Call
from tokenfence_integrations.engine.calls.policy import Policy, check_priced
from tokenfence_integrations.engine.calls.request import CallRequest
from tokenfence_integrations.errors import BudgetExceeded, UnmeteredError
from tokenfence_integrations.log import logger
from tokenfence_integrations.pricing.book import PriceBook, Prices, as_book, provider_of_url

if TYPE_CHECKING:
    from tokenfence_integrations.clients.openai.exchange import Exchange

__all__ = ["Terms", "counts_as_openai"]

OPENAI_HOSTS = (".openai.com", ".openai.azure.com", ".cognitiveservices.azure.com")


@dataclass(slots=True)
class Terms:
    """What a guarded client was guarded with; its copies share it.

    Args:
        budget: None: the one in scope at each call.
        policy: How calls are admitted.
        prices: The user's own, by model.
        counts_exactly: Whether the server counts text as OpenAI does; None: if it is OpenAI or
            Azure.
        stream_usage: Whether streams may be asked for their usage.
        strict: Whether what cannot be metered is refused.
        error: The class of refusals.
        base_url: The server.
        azure: Whether it is Azure's.
        background: What was started and has not ended, by its id.
        warned: What was warned of.

    Attributes:
        book: The prices there.
        exact_input: Whether that server is known to count text as OpenAI does.
        cap_key: The key for an output maximum where a chat has none.
        no_fallback: The policy where a fallback cannot answer: a chat model makes no embeddings, or
            pictures.

    Raises:
        ValueError: A fallback cannot work, because the client is pinned to one Azure deployment.
        UnknownModelError: A fallback has no known price.
    """

    budget: Budget | None
    policy: Policy
    prices: Prices
    counts_exactly: bool | None
    stream_usage: bool
    strict: bool
    error: type[BudgetExceeded]
    base_url: str
    azure: bool
    background: dict[str, "Exchange"] = field(default_factory=dict)
    warned: set[str] = field(default_factory=set)
    book: PriceBook = field(init=False)
    exact_input: bool = field(init=False)
    cap_key: str = field(init=False)
    no_fallback: Policy = field(init=False)

    def __post_init__(self) -> None:
        stages, base_url = self.policy.stages, self.base_url
        if self.azure and stages and "/deployments/" in base_url:
            raise ValueError(
                f"fallback {stages[0].model!r} cannot work: this client is pinned to one Azure "
                f"deployment ({base_url}), which answers whatever model is asked for. Make the "
                f"client with azure_endpoint= alone, so that each call names its deployment as the "
                f"model"
            )
        of_openai = self.azure or counts_as_openai(base_url)
        self.book = as_book(self.prices, "azure" if self.azure else provider_of_url(base_url))
        self.exact_input = of_openai if self.counts_exactly is None else self.counts_exactly
        self.cap_key = "max_completion_tokens" if of_openai else "max_tokens"
        self.no_fallback = replace(self.policy, stages=(), replaceable=False)
        check_priced(stages, self.book)

    def at(self, base_url: str) -> Self:
        """The same for a copy of the client that calls this server."""
        return self if base_url == self.base_url else replace(self, base_url=base_url)

    def call(self, budget: Budget, endpoint: Endpoint, request: CallRequest) -> Call:
        """A call to reserve for a request."""
        policy = self.policy
        if endpoint.reply is None:
            policy, request.cappable = self.no_fallback, False
        return Call(budget, request, policy, self.book, self.error)

    def unmetered(self, what: str, kind: str = "") -> None:
        """Refuse something whose cost cannot be seen, or warn of it once.

        Args:
            what: What it is, in words.
            kind: What is warned of once; by default ``what``.

        Raises:
            UnmeteredError: With ``strict=True``.
        """
        if self.strict:
            raise UnmeteredError(
                f"{what} cannot be metered, and this client was guarded with strict=True; nothing "
                f"was sent. Use an unguarded client for it, or strict=False to be warned only."
            )
        kind = kind or what
        if kind not in self.warned:
            self.warned.add(kind)
            logger().warning("%s cannot be metered: its cost is missing from the budget", what)


def counts_as_openai(base_url: str) -> bool:
    """Whether the server at this address is OpenAI's or Azure's, and counts text as OpenAI does."""
    return ("." + (urlsplit(base_url).hostname or "")).endswith(OPENAI_HOSTS)
