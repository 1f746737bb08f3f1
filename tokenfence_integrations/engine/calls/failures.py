"""What a failed call may have cost, told from the exception or the HTTP status.

Classes are compared by name over their ancestors, because the same error comes from different
libraries (httpx and httpx2, requests, aiohttp, the standard library), none of which is imported.
"""

from typing import Literal, TypeAlias

__all__ = ["CostOfFailure", "cost_of_exception", "cost_of_status"]

CostOfFailure: TypeAlias = Literal["free", "unknown"]

# Failures before the request could be sent: no connection, or none to be had.
UNSENT = frozenset(
    {
        "ConnectError",
        "ConnectTimeout",
        "PoolTimeout",
        "UnsupportedProtocol",
        "ProxyError",
        "LocalProtocolError",
        "InvalidURL",
        "ConnectionRefusedError",
        "gaierror",
        "NewConnectionError",
        "ClientConnectorError",
    }
)

# Answered before any work was done. 408 and 5xx may hide a finished generation.
REFUSED_STATUSES = frozenset(range(400, 500)) - {408, 499}


def cost_of_status(status: int) -> CostOfFailure:
    """Whether an answer with this HTTP error status is surely free.

    Args:
        status: 400 to 599.

    Returns:
        ``"free"`` for refusals (4xx except 408 and 499), ``"unknown"`` for everything else.
    """
    return "free" if status in REFUSED_STATUSES else "unknown"


def cost_of_exception(error: BaseException) -> CostOfFailure:
    """Whether a call that raised this is surely free.

    Args:
        error: What the call raised; the response that it carries, its class, and its causes are
            looked at. A status without a response says nothing: a web framework's own errors have
            one, and may be raised after a call was paid for.

    Returns:
        ``"free"`` if the request was surely not sent, or surely refused; else ``"unknown"``.

    Example:
        >>> cost_of_exception(ConnectionRefusedError())
        'free'
        >>> cost_of_exception(TimeoutError())
        'unknown'
    """
    causes = [error]
    for seen in causes:
        status = _answered_status(seen)
        if status is not None:
            return cost_of_status(status)
        if not UNSENT.isdisjoint(cls.__name__ for cls in type(seen).__mro__):
            return "free"
        cause = seen.__cause__
        if cause is not None and cause not in causes:
            causes.append(cause)
    return "unknown"


def _answered_status(error: BaseException) -> int | None:
    """The status of the response that an error carries (httpx, requests, the providers' SDKs)."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is None and type(error).__name__ == "ClientResponseError":  # aiohttp
        status = getattr(error, "status", None)
    return status if isinstance(status, int) and 400 <= status < 600 else None
