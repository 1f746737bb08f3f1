"""Which requests that no endpoint meters cost nothing, and which are the same but for their ids."""

import re

__all__ = ["is_free", "shape"]

# What is stored, changed, looked up or ended, but never asked of a model, nor kept for money.
# https://platform.openai.com/docs/api-reference
_FREE = re.compile(
    r"""
    files | uploads(/.+)? | batches | moderations | responses/input_tokens
    | chat/completions/[^/]+
    | conversations(/.+)?
    | assistants(/[^/]+)? | threads(/(?!runs$)[^/]+(/messages(/[^/]+)?|/runs/[^/]+)?)?
    | vector_stores/[^/]+(/search)?
    | fine_tuning/jobs/[^/]+/(pause|resume) | fine_tuning/alpha/graders/validate
    | evals(/[^/]+)? | evals/[^/]+/runs/[^/]+
    | realtime/calls/[^/]+/(hangup|refer|reject)
    | skills(/.+)? | webhook_endpoints(/.+)? | organization/.+ | projects/.+
    | .+/cancel
    """,
    re.VERBOSE,
)

# An id has a digit, or a short kind in front: thread_abc, file-abc.
_ID = re.compile(r".*\d.*|[a-z]{2,8}[_-][A-Za-z0-9]+")


def is_free(path: str) -> bool:
    """Whether a POST costs nothing, whatever is posted.

    Args:
        path: Without the slashes around it, and without a query.

    Example:
        >>> is_free("threads/thread_abc/messages"), is_free("threads/thread_abc/runs")
        (True, False)
    """
    return _FREE.fullmatch(path) is not None


def shape(path: str) -> str:
    """A path with its ids left out.

    Example:
        >>> shape("threads/thread_abc/runs")
        'threads/{id}/runs'
    """
    first, *others = path.split("/")
    return "/".join([first, *["{id}" if _ID.fullmatch(part) else part for part in others]])
