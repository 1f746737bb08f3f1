"""A budget for each request of a FastAPI app: what does not fit is answered with 429.

Serve it with `uvicorn examples.fastapi_budget:app`. Run as a program, it makes three requests to
itself: `python examples/fastapi_budget.py --simulated`. Needs the extra `fastapi`.
"""

import uuid
from functools import cache

import openai
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from tokenfence_integrations import Budget, BudgetExceeded, async_guard

service = Budget("$20.00", name="service")
app = FastAPI()


@cache
def client() -> openai.AsyncOpenAI:
    # One client for all requests, without a budget of its own: the scope of the request counts.
    return async_guard(openai.AsyncOpenAI(), on_limit="raise")


class Job(BaseModel):
    questions: list[str] = Field(max_length=20)


@app.post("/answers")
async def answers(job: Job) -> dict[str, object]:
    budget = service.child(f"request-{uuid.uuid4()}", "$0.005")
    with budget.scope():
        texts = [await ask(question) for question in job.questions]
    return {"answers": texts, "spent": budget.spent}


async def ask(question: str) -> str:
    completion = await client().chat.completions.create(
        model="gpt-4o", messages=[{"role": "user", "content": question}], max_tokens=150
    )
    return completion.choices[0].message.content or ""


@app.exception_handler(BudgetExceeded)
async def too_many(request: Request, error: BudgetExceeded) -> JSONResponse:
    detail = {"detail": "budget exceeded", "limit": error.limit, "spent": error.spent}
    return JSONResponse(detail, status_code=429)


if __name__ == "__main__":
    from fastapi.testclient import TestClient
    from simulated import simulated_if_asked

    with simulated_if_asked(), TestClient(app) as browser:
        for count in (1, 2, 9):
            reply = browser.post("/answers", json={"questions": ["Why is the sky blue?"] * count})
            print(f"{count} questions: {reply.status_code} {reply.text[:70]}")
        print(f"{service.name}: spent ${service.spent:.9f} in {service.calls} calls")
