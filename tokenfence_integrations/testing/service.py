"""The simulated provider without its network: understands requests, answers them, charges them."""

import json
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tokenfence_integrations.testing.answers import Answer, Job, ProviderError, dump
from tokenfence_integrations.testing.billing import Bill, BillLine, PriceList, Usage
from tokenfence_integrations.testing.counting import tokenizer_for
from tokenfence_integrations.testing.endpoints import (
    ENDPOINTS,
    Parsed,
    malformed_is_400,
    parse_fields,
)
from tokenfence_integrations.testing.script import Behavior, Request, Script, behavior_for

_KEPT = 1000
"""How many requests and stored responses are remembered."""


class Service:
    """What the provider knows: its prices, its instructions, its bill, and what it stored.

    Args:
        prices: Its models and what they cost.
        behavior: How to answer where the script does not say.
        script: Chooses a behavior per request.
    """

    def __init__(self, prices: PriceList, behavior: Behavior, script: Script | None) -> None:
        self.prices = prices
        self.behavior = behavior
        self.script = script
        self.bill = Bill(prices)
        self.received: deque[Request] = deque(maxlen=_KEPT)
        self.responses: dict[str, Answer] = {}
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, Mapping[str, Any]] = {}
        self._jobs = 0

    def warm_up(self) -> None:
        """Load the price data and the vocabulary that most models share."""
        self.prices.knows("gpt-4o")
        tokenizer_for("gpt-4o")

    def accept(self, path: str, parsed: Parsed, headers: Mapping[str, str], index: int) -> Job:
        """Turn a request into a job.

        Raises:
            ProviderError: 404 for an unknown model, 400 for an unknown previous response.
        """
        request = Request(path, parsed.body, headers, index)
        self.received.append(request)
        if not self.prices.knows(request.model):
            message = f"The model `{request.model}` does not exist or you do not have access to it."
            raise ProviderError(404, message)
        behavior = behavior_for(self.script, request, self.behavior)
        usage = parsed.input + self._context(parsed.body.get("previous_response_id"))
        cached = min(behavior.cached_tokens, usage.input_tokens)
        self._jobs += 1
        return Job(
            endpoint=path,
            number=self._jobs,
            attempt=int(headers.get("x-stainless-retry-count", 0)) + 1,
            created=int(time.time()),
            body=parsed.body,
            input=replace(usage, cached_tokens=cached) if cached else usage,
            tokenizer=parsed.tokenizer,
            behavior=behavior,
        )

    def answer(self, job: Job) -> Answer:
        """Do a job's work.

        Raises:
            ProviderError: 400, if the body is not what the endpoint takes.
        """
        with malformed_is_400():
            answer = ENDPOINTS[job.endpoint].answer(job)
        if answer.stored and job.body.get("store") is not False:
            self.responses[answer.stored["id"]] = answer
            if len(self.responses) > _KEPT:
                del self.responses[next(iter(self.responses))]
        return answer

    def charge(
        self,
        job: Job,
        usage: Usage,
        *,
        client_gone: bool = False,
        status: int = 200,
        batch: bool = False,
    ) -> None:
        """Put a job on the bill."""
        billed = usage.scaled(job.behavior.usage_factor)
        line = BillLine(
            model=job.model,
            endpoint=job.endpoint,
            input_tokens=billed.input_tokens,
            cached_tokens=billed.cached_tokens,
            output_tokens=billed.output_tokens,
            cost=0,  # priced when read
            client_gone=client_gone,
            attempt=job.attempt,
            stream=bool(job.body.get("stream")),
            status=status,
            service_tier=job.service_tier,
            batch=batch,
            reasoning_tokens=billed.reasoning_tokens,
            input_audio_tokens=billed.input_audio_tokens,
            output_audio_tokens=billed.output_audio_tokens,
            input_image_tokens=billed.input_image_tokens,
            characters=billed.characters,
            seconds=billed.seconds,
        )
        self.bill.add(line, billed)

    def run_batch(self, requests: bytes) -> bytes:
        """Answer and charge every line of a batch's input file; returns its output file.

        Raises:
            ProviderError: 400, for a line that is no request; or what one of the requests raised.
        """
        answers = []
        for index, line in enumerate(requests.splitlines()):
            with malformed_is_400():
                entry = json.loads(line)
                path, custom_id = entry["url"], entry["custom_id"]
                parsed = parse_fields(path, entry["body"])
            job = self.accept(path, parsed, {}, index)
            answer = self.answer(job)
            self.charge(job, answer.usage, batch=True)
            response = {"status_code": 200, "body": json.loads(answer.body)}
            answers.append(dump({"custom_id": custom_id, "response": response, "error": None}))
        return b"\n".join(answers)

    def clear(self) -> None:
        """Forget everything but the instructions."""
        self.bill.clear()
        self.received.clear()
        self.responses.clear()
        self.files.clear()
        self.batches.clear()

    def _context(self, previous: str | None) -> Usage:
        """The input that a previous response brings along: all of its tokens."""
        if previous is None:
            return Usage()
        if previous not in self.responses:
            message = f"Previous response with id '{previous}' not found."
            raise ProviderError(400, message, "previous_response_not_found")
        usage = self.responses[previous].usage
        return Usage(input_tokens=usage.input_tokens + usage.output_tokens)
