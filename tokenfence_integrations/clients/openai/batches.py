"""Batches: many requests in one uploaded file, answered within a day at a discount."""

import json
from collections.abc import Iterator
from typing import Any

from tokenfence_integrations.clients.openai.endpoints import endpoint_of
from tokenfence_integrations.engine.calls.request import DEFAULT_CEILING, CallRequest
from tokenfence_integrations.pricing.book import PriceBook
from tokenfence_integrations.pricing.rates import Card

__all__ = ["batch_request", "starts_batch"]


def starts_batch(options: Any) -> bool:
    """Whether these request options would start a batch."""
    return bool(options.method.lower() == "post" and options.url.strip("/") == "batches")


def batch_request(file: bytes, book: PriceBook) -> CallRequest:
    """All lines of a batch as one call, which is how it is reserved, and settled when it is done.

    Args:
        file: The uploaded file: a JSON object with ``url`` and ``body`` on each line.
        book: Prices and ceilings of the model.

    Returns:
        A call at batch prices, whose output maximum is the sum of the lines'. It cannot be capped:
        the file is uploaded already.

    Raises:
        ValueError: A line is not a request, its endpoint cannot be metered, or the lines ask for
            several models (which the API refuses as well).
        UnknownModelError: The model has no known price.
    """
    lines = list(_requests(file))
    models = {request.model for request in lines}
    if len(models) != 1:
        raise ValueError(f"a batch must ask for one model on all its lines, got {sorted(models)}")
    card = book.card(lines[0].model)
    output = sum(_most_output(request, card) for request in lines)
    return CallRequest(
        lines[0].model,
        lambda card: sum(request.most_input(card) for request in lines),
        None,
        output,
        ceiling=output,
        extra_price=lambda card: sum(r.extra_price(card) for r in lines if r.extra_price),
        batch=True,
        whole_window=False,
    )


def _requests(file: bytes) -> Iterator[CallRequest]:
    for number, line in enumerate(file.splitlines(), 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            url, body = item["url"], item["body"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"line {number} of the batch file is not a request: {error!r}"
            ) from None
        endpoint = endpoint_of(url.removeprefix("/v1"))
        if endpoint is None:
            raise ValueError(f"line {number} of the batch file asks {url!r}, which is not metered")
        yield endpoint.request(body, 0, False)


def _most_output(request: CallRequest, card: Card) -> int:
    most = request.max_output_tokens
    if most is None:
        most = request.ceiling if request.ceiling is not None else card.max_output_tokens
    return (DEFAULT_CEILING if most is None else most) * request.choices
