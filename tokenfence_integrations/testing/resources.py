"""What can be created, retrieved and listed: models, responses, files, batches, and the bill."""

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from tokenfence_integrations.testing.answers import ProviderError, dump
from tokenfence_integrations.testing.endpoints import malformed_is_400
from tokenfence_integrations.testing.service import Service
from tokenfence_integrations.testing.traffic import Traffic

_LISTED_MODELS = ("gpt-4o", "gpt-4o-mini", "gpt-5", "gpt-5-mini", "text-embedding-3-small")
_DAY = 24 * 60 * 60

T = TypeVar("T")
Route = Callable[["Resources", Mapping[str, Any], str], bytes]


class Resources:
    """Answers every request that is not a model call.

    Args:
        service: The provider.
        traffic: Its counts, for the bill.
    """

    def __init__(self, service: Service, traffic: Traffic) -> None:
        self._service = service
        self._traffic = traffic

    def handle(self, method: str, path: str, body: Mapping[str, Any]) -> bytes:
        """Answer one request.

        Raises:
            ProviderError: 404 for a path or a thing that is not there, 400 for a malformed body.
        """
        for route_method, pattern, route in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method == route_method:
                with malformed_is_400():
                    return route(self, body, match.group(1) if match.groups() else "")
        raise ProviderError(404, f"Invalid URL ({method} {path})", "unknown_url")

    def bill(self, body: Mapping[str, Any], name: str) -> bytes:
        lines = self._service.bill.lines()
        return dump(
            {
                "requests": self._traffic.received,
                "peak": self._traffic.peak,
                "billed": sum(line.cost for line in lines),
                "lines": [asdict(line) for line in lines],
            }
        )

    def clear(self, body: Mapping[str, Any], name: str) -> bytes:
        self._service.clear()
        self._traffic.clear()
        return self.bill(body, name)

    def models(self, body: Mapping[str, Any], name: str) -> bytes:
        listed = dict.fromkeys((*self._service.prices.own, *_LISTED_MODELS))
        return dump({"object": "list", "data": [_model(name) for name in listed]})

    def model(self, body: Mapping[str, Any], name: str) -> bytes:
        if not self._service.prices.knows(name):
            raise ProviderError(404, f"The model '{name}' does not exist.")
        return dump(_model(name))

    def response(self, body: Mapping[str, Any], name: str) -> bytes:
        return dump(_found(self._service.responses, name).stored)

    def events(self, name: str, after: int) -> bytes:
        """A background response as the events that come after one of this number."""
        events = list(_found(self._service.responses, name).retold())
        if not events:
            raise ProviderError(400, "Only responses with background=true can be streamed again.")
        return b"".join(event.data for event in events[after + 1 :])

    def create_file(self, body: Mapping[str, Any], name: str) -> bytes:
        return dump(self._store_file(body["file"], body.get("purpose", "batch")))

    def file(self, body: Mapping[str, Any], name: str) -> bytes:
        return dump(_file(name, _found(self._service.files, name), "batch"))

    def file_content(self, body: Mapping[str, Any], name: str) -> bytes:
        return _found(self._service.files, name)

    def create_batch(self, body: Mapping[str, Any], name: str) -> bytes:
        """All of a batch's work is done at once; the next retrieval shows it completed."""
        requests = _found(self._service.files, body["input_file_id"])
        answers = self._service.run_batch(requests)
        output = self._store_file(answers, "batch_output")
        count, now = len(requests.splitlines()), int(time.time())
        batch = {
            "id": f"batch_{len(self._service.batches) + 1}",
            "object": "batch",
            "endpoint": body["endpoint"],
            "input_file_id": body["input_file_id"],
            "completion_window": body["completion_window"],
            "created_at": now,
            "expires_at": now + _DAY,
            "status": "validating",
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
        }
        self._service.batches[str(batch["id"])] = {
            **batch,
            "status": "completed",
            "completed_at": now,
            "output_file_id": output["id"],
            "request_counts": {"total": count, "completed": count, "failed": 0},
            "usage": _batch_usage(answers),
        }
        return dump(batch)

    def batch(self, body: Mapping[str, Any], name: str) -> bytes:
        return dump(_found(self._service.batches, name))

    def all_batches(self, body: Mapping[str, Any], name: str) -> bytes:
        """All of them on one page, the newest first."""
        data = list(reversed(self._service.batches.values()))
        return dump({"object": "list", "data": data, "has_more": False})

    def _store_file(self, content: bytes, purpose: str) -> dict[str, Any]:
        name = f"file-{len(self._service.files) + 1}"
        self._service.files[name] = content
        return _file(name, content, purpose)


_ROUTES: tuple[tuple[str, str, Route], ...] = (
    ("GET", "/bill", Resources.bill),
    ("DELETE", "/bill", Resources.clear),
    ("GET", "/v1/models", Resources.models),
    ("GET", "/v1/models/(.+)", Resources.model),
    ("GET", "/v1/responses/([^/]+)", Resources.response),
    ("POST", "/v1/files", Resources.create_file),
    ("GET", "/v1/files/([^/]+)", Resources.file),
    ("GET", "/v1/files/([^/]+)/content", Resources.file_content),
    ("POST", "/v1/batches", Resources.create_batch),
    ("GET", "/v1/batches", Resources.all_batches),
    ("GET", "/v1/batches/([^/]+)", Resources.batch),
)


def _found(things: Mapping[str, T], name: str) -> T:
    if name not in things:
        raise ProviderError(404, f"No such object: {name!r}.", "not_found")
    return things[name]


def _batch_usage(answers: bytes) -> dict[str, Any]:
    """The sum of what the answers in a batch's output file report."""
    into = cached = out = reasoning = 0
    for line in answers.splitlines():
        usage = json.loads(line)["response"]["body"].get("usage") or {}
        into += usage.get("prompt_tokens", usage.get("input_tokens", 0))
        out += usage.get("completion_tokens", usage.get("output_tokens", 0))
        details = usage.get("prompt_tokens_details", usage.get("input_tokens_details")) or {}
        cached += details.get("cached_tokens") or 0
        details = usage.get("completion_tokens_details", usage.get("output_tokens_details")) or {}
        reasoning += details.get("reasoning_tokens") or 0
    return {
        "input_tokens": into,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": out,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": into + out,
    }


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "simulated"}


def _file(name: str, content: bytes, purpose: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "file",
        "bytes": len(content),
        "created_at": int(time.time()),
        "filename": f"{name}.jsonl",
        "purpose": purpose,
        "status": "processed",
    }
