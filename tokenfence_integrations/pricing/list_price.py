"""The listed price of a model that is sent under another name."""

from dataclasses import dataclass

__all__ = ["ListPrice"]


@dataclass(frozen=True)
class ListPrice:
    """What the price list says about a model, for a name that is not on it.

    For an Azure deployment, a proxy's alias, or a server's own name for a model. Everything known
    about the model applies: cached input, batches, service tiers, longest answer, vocabulary.

    Args:
        model: The model's name in the price list.
        provider: Whose model it is, as genai-prices names it: ``"openai"``, ``"anthropic"``,
            ``"google"``... None: that of the server that is called.

    Raises:
        ValueError: The name is empty.

    Example:
        >>> book = PriceBook({"chat-prod": ListPrice("gpt-4o")})
        >>> book.card("chat-prod").max_output_tokens
        16384
    """

    model: str
    provider: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model.strip():
            raise ValueError(
                f"ListPrice needs the name of a model in the price list, such as 'gpt-4o', got "
                f"{self.model!r}"
            )
