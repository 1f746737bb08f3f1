"""Guarded OpenAI clients: clones of a dynamic subclass that overrides the one way out, `request`.

A clone shares the HTTP client, the credentials and every attribute of the client it was made of,
and is an instance of its class, so that every method works and every framework accepts it. The SDK
calls the overridden methods in this order: `request`; and for each attempt `_prepare_options` and
`_send_request`. All that they do with a call is in `exchange`.
"""

import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import openai
from openai import AsyncAzureOpenAI, AsyncOpenAI, AzureOpenAI, OpenAI

from tokenfence_integrations.clients.openai.batches import batch_request, starts_batch
from tokenfence_integrations.clients.openai.content import each_of
from tokenfence_integrations.clients.openai.endpoints import (
    BATCHES,
    ENDPOINTS,
    Endpoint,
    endpoint_of,
)
from tokenfence_integrations.clients.openai.exchange import RAW, Exchange, current
from tokenfence_integrations.clients.openai.looks import Look
from tokenfence_integrations.clients.openai.paths import is_free, shape
from tokenfence_integrations.clients.openai.replies import refusal_text, reply_events, reply_json
from tokenfence_integrations.clients.openai.terms import Terms
from tokenfence_integrations.clients.openai.uploads import uploaded_bytes
from tokenfence_integrations.engine.budget import Budget
from tokenfence_integrations.engine.calls.handover import offered
from tokenfence_integrations.engine.calls.policy import Policy
from tokenfence_integrations.engine.scope import budget_here
from tokenfence_integrations.errors import BudgetExceeded
from tokenfence_integrations.pricing.book import Prices

__all__ = ["OpenAIBudgetExceeded", "guard_client", "is_guarded"]

# Keys of a body that may stand for fees beside the tokens.
FEES = frozenset({"tools", "web_search_options", "output_format"})

SEARCHES = "-search-"
"""In the names of models that search the web whenever they are asked: gpt-4o-search-preview."""


class OpenAIBudgetExceeded(BudgetExceeded, openai.OpenAIError):
    """A `BudgetExceeded` that the OpenAI SDK passes on as it is: it retries no OpenAIError."""


if TYPE_CHECKING:

    class _Client:
        """The methods of the SDK's clients that are overridden or used here."""

        base_url: Any
        files: Any

        def request(self, *args: Any, **kwargs: Any) -> Any: ...
        def copy(self, *args: Any, **kwargs: Any) -> Any: ...
        def _prepare_options(self, options: Any) -> Any: ...
        def _send_request(self, request: Any, **kwargs: Any) -> Any: ...
        def _process_response(self, *, options: Any, response: Any, **kwargs: Any) -> Any: ...
        def _build_request(self, options: Any, **kwargs: Any) -> Any: ...
        def _maybe_override_cast_to(self, cast_to: Any, options: Any) -> Any: ...
        @property
        def realtime(self) -> Any: ...
        @property
        def responses(self) -> Any: ...
        @property
        def beta(self) -> Any: ...
else:
    _Client = object


class _Guarded(_Client):
    """What guarded clients have in common, sync and async."""

    _terms: Terms

    @property
    def tokenfence(self) -> Budget:
        """The budget that this client's calls count against."""
        return budget_here(self._terms.budget)

    def copy(self, *args: Any, **kwargs: Any) -> Any:
        """As the client's own `copy`; the copy is guarded too and shares the budget."""
        copied = super().copy(*args, **kwargs)
        copied._terms = self._terms.at(str(copied.base_url))
        return copied

    with_options = copy

    # WebSockets are opened past every method that is overridden here.

    @cached_property
    def realtime(self) -> Any:
        return self._watch_sockets(super().realtime)

    @cached_property
    def responses(self) -> Any:
        return self._watch_sockets(super().responses)

    @cached_property
    def beta(self) -> Any:
        beta = super().beta
        self._watch_sockets(beta.realtime)
        self._watch_sockets(beta.responses)
        return beta

    def _batch_exchange(self, options: Any, file: bytes) -> Exchange:
        terms = self._terms
        request = batch_request(file, terms.book)
        call = terms.call(budget_here(terms.budget), BATCHES, request)
        raw = _raw(options.headers)
        return Exchange(terms, BATCHES, call, options.json_data, False, raw)

    def _exchange(self, options: Any, stream: bool) -> Exchange | None:
        """The exchange for a request; None if it costs nothing, or cannot be metered."""
        asked = options.__dict__  # looked up by name, a field of a pydantic model takes far longer
        if asked["method"] != "post" and asked["method"].lower() != "post":
            return None
        endpoint = ENDPOINTS.get(asked["url"]) or endpoint_of(asked["url"])
        if endpoint is None:
            self._check_metered(asked["url"])
            return None
        body = asked["json_data"]
        if not isinstance(body, dict):
            body = {}
        if asked["extra_json"]:
            body = {**body, **asked["extra_json"]}
        if not FEES.isdisjoint(body) or SEARCHES in str(body.get("model")):
            self._check_fees(endpoint, body)
        terms = self._terms
        budget = budget_here(terms.budget)
        headers = asked["headers"]
        raw = _raw(headers) if isinstance(headers, dict) else ""
        handover = offered.get()
        if handover is not None and (call := handover.take(budget)) is not None:
            return Exchange(terms, endpoint, call, body, stream, raw, True)
        uploaded = uploaded_bytes(asked["files"]) if asked["files"] else 0
        request = endpoint.request(body, uploaded, terms.exact_input)
        call = terms.call(budget, endpoint, request)
        return Exchange(terms, endpoint, call, body, stream, raw)

    def _check_metered(self, path: str) -> None:
        plain = path.split("?", 1)[0].strip("/")
        if not is_free(plain):
            self._terms.unmetered(f"POST /{plain}", shape(plain))

    def _check_fees(self, endpoint: Endpoint, body: Mapping[str, Any]) -> None:
        if body.get("web_search_options") is not None or SEARCHES in str(body.get("model")):
            self._terms.unmetered("the fee of web search")
        if body.get("output_format") == "svg":  # told apart from the picture's, as svg_usage
            self._terms.unmetered("the model that writes an SVG")
        hosted = body.get("tools") if endpoint.name == "responses" else None
        for tool in each_of(hosted):
            kind = tool.get("type") if isinstance(tool, dict) else None
            if kind not in (None, "function", "custom"):
                self._terms.unmetered(f"the fee of the hosted tool {kind!r}")

    def _check_socket(self, options: Any) -> None:
        # openai 3 prepares the options of a WebSocket here, without ever calling request().
        if str(options.url).startswith(("ws:", "wss:")):
            self._terms.unmetered("a WebSocket")

    def _watch_sockets(self, resource: Any) -> Any:
        connect = getattr(resource, "connect", None)
        if connect is None:
            return resource

        def watched(*args: Any, **kwargs: Any) -> Any:
            self._terms.unmetered("a WebSocket")
            return connect(*args, **kwargs)

        resource.connect = watched
        return resource

    def _refusal(self, exchange: Exchange, refusal: BudgetExceeded, options: Any) -> Any:
        """An HTTP response in the endpoint's own form that says why nothing was sent."""
        kind = exchange.endpoint.reply
        if exchange.terms.policy.on_limit != "stop" or kind is None:
            raise refusal
        text = refusal_text(refusal)
        body = exchange.body
        structured = _wants_object(body)
        if exchange.stream:
            asked = (body.get("stream_options") or {}).get("include_usage", False)
            content = reply_events(kind, text, structured=structured, with_usage=asked)
            content_type = "text/event-stream"
        else:
            content = reply_json(kind, text, structured=structured)
            content_type = "application/json"
        request = self._build_request(options, retries_taken=0)
        response_class = _response_class(request)
        return response_class(
            200, content=content, headers={"content-type": content_type}, request=request
        )

    def _look(self, options: Any, stream: bool) -> Look | None:
        """The look that a request takes at what was started before and has not ended; or None."""
        background = self._terms.background
        path = options.url.strip("/").split("/")
        if background and path[0] in ("responses", "batches") and len(path) > 1:
            exchange = background.get(path[1])
            if exchange is not None:
                return Look(exchange, path[1], options, stream, _raw(options.headers))
        return None


Overrides: TypeAlias = dict[str, Callable[..., Any]]
"""Methods of one guarded class. They call those of its base by name: `super()` would look through
the classes anew, three times a request."""


def _sync_overrides(cls: Any) -> Overrides:
    """Overrides for `openai.OpenAI` and its subclasses."""

    def request(
        self: Any, cast_to: Any, options: Any, *, stream: bool = False, stream_cls: Any = None
    ) -> Any:
        exchange = self._exchange(options, stream)
        if exchange is None and starts_batch(options):
            file = self.files.content(options.json_data["input_file_id"])
            exchange = self._batch_exchange(options, file.content)
        if exchange is None:
            look = self._look(options, stream)
            token = current.set(None)  # it is no attempt of a call in whose midst it may be made
            try:
                answer = cls.request(self, cast_to, options, stream=stream, stream_cls=stream_cls)
            finally:
                current.reset(token)
            if look is not None:
                look.answered(answer)
            return answer
        token = current.set(exchange)
        try:
            if not exchange.taken_over:
                exchange.call.admit()
            answer = cls.request(self, cast_to, options, stream=stream, stream_cls=stream_cls)
            exchange.answered(answer)
            return answer
        except BudgetExceeded as refusal:
            response = self._refusal(exchange, refusal, options)
            return cls._process_response(
                self,
                cast_to=self._maybe_override_cast_to(cast_to, options),
                options=options,
                response=response,
                stream=stream,
                stream_cls=stream_cls,
            )
        except BaseException as error:
            exchange.failed(error)
            raise
        finally:
            current.reset(token)

    def _prepare_options(self: Any, options: Any) -> Any:
        options = cls._prepare_options(self, options)
        exchange = current.get()
        if exchange is None:
            self._check_socket(options)
            return options
        if exchange.call.outcome is not None:
            exchange.next_attempt().admit()
        return exchange.rewrite(options)

    def _send_request(self: Any, request: Any, **kwargs: Any) -> Any:
        exchange = current.get()
        if exchange is None:
            return cls._send_request(self, request, **kwargs)
        exchange.sent = True
        try:
            response = cls._send_request(self, request, **kwargs)
        except BaseException as error:
            exchange.failed(error)
            raise
        exchange.received(response)
        return response

    return {
        "request": request,
        "_prepare_options": _prepare_options,
        "_send_request": _send_request,
    }


def _async_overrides(cls: Any) -> Overrides:
    """Overrides for `openai.AsyncOpenAI` and its subclasses; as `_sync_overrides`, awaited."""

    async def request(
        self: Any, cast_to: Any, options: Any, *, stream: bool = False, stream_cls: Any = None
    ) -> Any:
        exchange = self._exchange(options, stream)
        if exchange is None and starts_batch(options):
            file = await self.files.content(options.json_data["input_file_id"])
            exchange = self._batch_exchange(options, file.content)
        if exchange is None:
            look = self._look(options, stream)
            token = current.set(None)  # it is no attempt of a call in whose midst it may be made
            try:
                answer = await cls.request(
                    self, cast_to, options, stream=stream, stream_cls=stream_cls
                )
            finally:
                current.reset(token)
            if look is not None:
                look.answered(answer)
            return answer
        token = current.set(exchange)
        try:
            if not exchange.taken_over:
                await exchange.call.aadmit()
            answer = await cls.request(self, cast_to, options, stream=stream, stream_cls=stream_cls)
            exchange.answered(answer)
            return answer
        except BudgetExceeded as refusal:
            response = self._refusal(exchange, refusal, options)
            return await cls._process_response(
                self,
                cast_to=self._maybe_override_cast_to(cast_to, options),
                options=options,
                response=response,
                stream=stream,
                stream_cls=stream_cls,
            )
        except BaseException as error:
            exchange.failed(error)
            raise
        finally:
            current.reset(token)

    async def _prepare_options(self: Any, options: Any) -> Any:
        options = await cls._prepare_options(self, options)
        exchange = current.get()
        if exchange is None:
            self._check_socket(options)
            return options
        if exchange.call.outcome is not None:
            await exchange.next_attempt().aadmit()
        return exchange.rewrite(options)

    async def _send_request(self: Any, request: Any, **kwargs: Any) -> Any:
        exchange = current.get()
        if exchange is None:
            return await cls._send_request(self, request, **kwargs)
        exchange.sent = True
        try:
            response = await cls._send_request(self, request, **kwargs)
        except BaseException as error:
            exchange.failed(error)
            raise
        exchange.received(response)
        return response

    return {
        "request": request,
        "_prepare_options": _prepare_options,
        "_send_request": _send_request,
    }


def is_guarded(client: object) -> bool:
    """Whether this client is guarded."""
    return isinstance(client, _Guarded)


def guard_client(
    client: OpenAI | AsyncOpenAI,
    *,
    budget: Budget | None,
    policy: Policy,
    prices: Prices = None,
    strict: bool = False,
    stream_usage: bool = True,
    exact_input: bool | None = None,
    error: type[BudgetExceeded] = OpenAIBudgetExceeded,
) -> Any:
    """A clone of the client that enforces a budget; the client itself stays as it is.

    Args:
        client: Any OpenAI or Azure client.
        budget: What its calls count against; None: the budget in scope.
        policy: How they are admitted.
        prices: Prices of your own, by model.
        strict: Refuse what cannot be metered, rather than warn.
        stream_usage: Ask streams for their usage (and hide the chunk that reports it).
        exact_input: Whether the server counts text as OpenAI does; None: if it is OpenAI or Azure.
        error: The class of refusals; an `openai.OpenAIError`, or else the SDK retries them.

    Returns:
        An instance of the client's own class, with `.tokenfence`.

    Raises:
        TypeError: It is guarded already, or its ``request`` was replaced on the instance.
        ValueError: A fallback cannot work, because the client is pinned to one Azure deployment.
        UnknownModelError: A fallback has no known price.
    """
    cls = type(client)
    if isinstance(client, _Guarded):
        raise TypeError(
            "this client is guarded already; to share or divide its budget, guard the plain client "
            "with budget=guarded.tokenfence, or with a child of it"
        )
    if "request" in client.__dict__:
        raise TypeError(
            "the request method of this client was replaced on the instance (by an "
            "instrumentation?) and would run past the budget; guard the client first, then "
            "instrument it"
        )
    terms = Terms(
        budget=budget,
        policy=policy,
        prices=prices,
        counts_exactly=exact_input,
        stream_usage=stream_usage,
        strict=strict,
        error=error,
        base_url=str(client.base_url),
        azure=isinstance(client, AzureOpenAI | AsyncAzureOpenAI),
    )
    clone = object.__new__(_guarded_class(cls))
    # Resources that were made already (client.chat) are bound to the old client: leave them behind.
    cached = {
        name for c in cls.__mro__ for name, v in vars(c).items() if isinstance(v, cached_property)
    }
    clone.__dict__.update({k: v for k, v in client.__dict__.items() if k not in cached})
    clone._terms = terms
    return clone


_CLASSES: dict[type, Any] = {}


def _guarded_class(cls: type) -> Any:
    """The guarded subclass of a client class; made once, and named as the class itself."""
    guarded = _CLASSES.get(cls)
    if guarded is None:
        overrides = _async_overrides if issubclass(cls, AsyncOpenAI) else _sync_overrides
        names = {
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,
            "__doc__": cls.__doc__,
        }
        guarded = _CLASSES[cls] = type(cls.__name__, (_Guarded, cls), {**names, **overrides(cls)})
    return guarded


def _raw(headers: Any) -> str:
    """How the caller wants the response: "true" as it is, "stream" unread, or else parsed."""
    return str(headers.get(RAW, "")) if isinstance(headers, dict) else ""


def _wants_object(body: Mapping[str, Any]) -> bool:
    wanted = body.get("response_format") or (body.get("text") or {}).get("format")
    return isinstance(wanted, Mapping) and wanted.get("type") not in (None, "text")


def _response_class(request: Any) -> Any:
    return sys.modules[type(request).__module__.partition(".")[0]].Response


if TYPE_CHECKING:
    # What type checkers see: the client's own class, and .tokenfence.

    class GuardedOpenAI(OpenAI):
        tokenfence: Budget

    class GuardedAsyncOpenAI(AsyncOpenAI):
        tokenfence: Budget

    class GuardedAzureOpenAI(AzureOpenAI, GuardedOpenAI):
        tokenfence: Budget

    class GuardedAsyncAzureOpenAI(AsyncAzureOpenAI, GuardedAsyncOpenAI):
        tokenfence: Budget
