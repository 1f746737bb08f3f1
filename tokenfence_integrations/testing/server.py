"""The simulated provider's HTTP side: requests off the wire, answers and faults onto it."""

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.web_protocol import RequestHandler

from tokenfence_integrations.testing.answers import Answer, Job, ProviderError
from tokenfence_integrations.testing.endpoints import ENDPOINTS, parse, parse_fields
from tokenfence_integrations.testing.resources import Resources
from tokenfence_integrations.testing.service import Service
from tokenfence_integrations.testing.traffic import Traffic

_AZURE_DEPLOYMENT = re.compile(r"/openai/deployments/([^/]+)(/.*)")
_RESPONSE = re.compile("/v1/responses/([^/]+)")
_CORRUPT_EVENT = b'data: {"id": "cut sh\n\n'


class Server:
    """Serves one `Service` on 127.0.0.1, within the running event loop.

    Args:
        service: What answers and charges.
        traffic: What counts and holds.
    """

    def __init__(self, service: Service, traffic: Traffic) -> None:
        self._service = service
        self._traffic = traffic
        self._resources = Resources(service, traffic)
        self._works: set[asyncio.Task[web.StreamResponse]] = set()
        self._runner: web.ServerRunner | None = None

    async def start(self, port: int) -> int:
        """Listen on `port` (0: a free one); returns the port."""
        server = web.Server(
            self._handle, request_factory=_make_request, handler_cancellation=True, access_log=None
        )
        self._runner = web.ServerRunner(server, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port, backlog=1024).start()
        actual: int = self._runner.addresses[0][1]
        return actual

    async def stop(self) -> None:
        """Give up all work and close all connections."""
        for work in self._works:
            work.cancel()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Do the work in a task of its own: it goes on when the client leaves.

        aiohttp then cancels this coroutine, which is how the work learns of it.
        """
        content = await _read(request)
        gone = asyncio.Event()
        work = asyncio.create_task(self._work(request, content, gone))
        self._works.add(work)
        work.add_done_callback(self._works.discard)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            if not work.done():
                gone.set()
                self._traffic.disconnected()
            raise

    async def _work(
        self, request: web.BaseRequest, content: bytes | Mapping[str, Any], gone: asyncio.Event
    ) -> web.StreamResponse:
        path, deployment = _route(request.path)
        if path == "/bill":
            return _json(self._resources.handle(request.method, path, {}))
        index = self._traffic.enter()
        try:
            if request.query.get("stream") == "true" and (name := _RESPONSE.fullmatch(path)):
                after = int(request.query.get("starting_after", -1))
                events = self._resources.events(name[1], after)
                return web.Response(body=events, content_type="text/event-stream")
            if request.method != "POST" or path not in ENDPOINTS:
                fields = content if isinstance(content, Mapping) else _fields(content)
                return _json(self._resources.handle(request.method, path, fields))
            if isinstance(content, bytes):
                parsed = parse(path, content, deployment)
            else:
                model = deployment or content.get("model")
                parsed = parse_fields(path, {**content, "model": model})
            job = self._service.accept(path, parsed, request.headers, index)
            return await self._respond(request, job, gone)
        except ProviderError as error:
            return _json(error.body, error.status)
        finally:
            self._traffic.leave()

    async def _respond(
        self, request: web.BaseRequest, job: Job, gone: asyncio.Event
    ) -> web.StreamResponse:
        behavior = job.behavior
        if behavior.latency:
            await asyncio.sleep(behavior.latency)
        if behavior.hold:
            await self._traffic.pass_gate()
        answer = self._service.answer(job)
        if behavior.status is not None:
            return self._refuse(job, answer, behavior.status, gone)
        if behavior.drop == "before":
            self._service.charge(job, answer.usage, client_gone=gone.is_set())
            return _hang_up(request)
        try:
            if answer.events is not None:
                return await self._stream(request, job, answer, gone)
            self._service.charge(job, answer.usage, client_gone=gone.is_set())
            return await _send(request, job, answer, gone)
        except ConnectionError:  # the client left while we wrote; all of it is billed
            return _hang_up(request)

    def _refuse(
        self, job: Job, answer: Answer, status: int, gone: asyncio.Event
    ) -> web.StreamResponse:
        behavior = job.behavior
        if behavior.bill_errors:
            self._service.charge(job, answer.usage, client_gone=gone.is_set(), status=status)
        headers = {}
        if behavior.retry_after is not None:
            headers["Retry-After"] = f"{behavior.retry_after:g}"
        error = ProviderError(status, f"Simulated error {status}.", behavior.error_code)
        return _json(error.body, status, headers)

    async def _stream(
        self, request: web.BaseRequest, job: Job, answer: Answer, gone: asyncio.Event
    ) -> web.StreamResponse:
        """Send a stream, and charge it once: before its closing events, or where it breaks off."""
        behavior = job.behavior
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        half = max(1, answer.usage.output_tokens // 2)
        breaks = behavior.drop == "during" or behavior.stall or behavior.end_early
        corrupt, broken, charged = behavior.corrupt, False, False
        generated = 0
        try:
            await response.prepare(request)
            for event in answer.events or ():
                # Also without a delay: lets other requests in, and the client's leaving be noticed.
                await asyncio.sleep(behavior.chunk_delay if event.tokens else 0)
                if gone.is_set():
                    break
                if generated >= half or event.closing:
                    if breaks:
                        broken = True
                        break
                    if corrupt:
                        corrupt = False
                        await response.write(_CORRUPT_EVENT)
                if event.closing and not charged:
                    charged = True
                    self._service.charge(job, answer.usage)
                generated += event.tokens
                await response.write(event.data)
        except ConnectionError:
            gone.set()
        if broken and behavior.stall:
            await gone.wait()
        if not charged:
            usage = answer.usage
            if not (behavior.bill_full_on_disconnect or job.body.get("background")):
                reasoning = min(usage.reasoning_tokens, generated)
                usage = replace(usage, output_tokens=generated, reasoning_tokens=reasoning)
            self._service.charge(job, usage, client_gone=gone.is_set())
        if broken and behavior.drop:
            _close(request)
        return response


async def _send(
    request: web.BaseRequest, job: Job, answer: Answer, gone: asyncio.Event
) -> web.StreamResponse:
    """Send a plain answer, or half of it."""
    behavior = job.behavior
    headers = {"Content-Type": answer.content_type, "x-request-id": f"req_{job.number}"}
    half = len(answer.body) // 2
    body = answer.body[:half] if behavior.corrupt else answer.body
    if behavior.drop is None and not behavior.stall:
        return web.Response(body=body, headers=headers)
    response = web.StreamResponse(headers={**headers, "Content-Length": str(len(body))})
    await response.prepare(request)
    await response.write(body[:half])
    if behavior.stall:
        await gone.wait()
    else:
        _close(request)
    return response


def _close(request: web.BaseRequest) -> None:
    """Close the connection after what was written so far."""
    if request.transport is not None:
        request.transport.close()


def _hang_up(request: web.BaseRequest) -> web.StreamResponse:
    """Close the connection without a word; aiohttp drops the response that it wants."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _json(
    body: bytes, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.StreamResponse:
    return web.Response(
        body=body, status=status, headers={"Content-Type": "application/json", **(headers or {})}
    )


def _route(path: str) -> tuple[str, str | None]:
    """The path on api.openai.com, and the deployment if Azure's path names one."""
    if match := _AZURE_DEPLOYMENT.fullmatch(path):
        return f"/v1{match.group(2)}", match.group(1)
    if path.startswith("/openai/v1/"):
        return path.removeprefix("/openai"), None
    return path, None


async def _read(request: web.BaseRequest) -> bytes | Mapping[str, Any]:
    """The body's bytes, or a form's fields; one whose name ends with [] may come several times."""
    if not request.headers.get("Content-Type", "").startswith("multipart/"):
        return await request.read()
    fields: dict[str, Any] = {}
    for name, value in (await request.post()).items():
        if isinstance(value, web.FileField):
            with value.file as file:
                read: Any = file.read()
        else:
            read = value
        if name.endswith("[]"):
            fields.setdefault(name.removesuffix("[]"), []).append(read)
        else:
            fields[name] = read
    return fields


def _fields(content: bytes) -> Mapping[str, Any]:
    try:
        body = json.loads(content or b"{}")
    except ValueError as error:
        raise ProviderError(400, f"The body is not JSON: {error}.") from error
    return body if isinstance(body, dict) else {}


def _make_request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: RequestHandler,
    writer: AbstractStreamWriter,
    task: "asyncio.Task[None]",
) -> web.BaseRequest:
    # Like aiohttp's own, without its limit of 1 MB: pictures in a request are larger.
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=0)
