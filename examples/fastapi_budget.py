"""A budget for each request of a FastAPI app, and one for each of its users.

A call that does not fit is answered with 429; a user who has spent everything affects nobody else.
Serve it with `uvicorn examples.fastapi_budget:app`. Run as a program, it makes requests to itself:
`python examples/fastapi_budget.py --simulated`. Needs the extra `fastapi`.
"""

from functools import cache
from typing import Annotated

import openai
from fastapi import Depends, FastAPI
from pydantic import BaseModel, Field
from starlette.requests import HTTPConnection

from tokenfence_integrations import Budget, async_guard
from tokenfence_integrations.web import RequestBudgets, request_budget


def user_of(request: HTTPConnection) -> str | None:
    # In your app: the user that your authentication found. Never trust a header as this does.
    return request.headers.get("x-user")


service = Budget("$20.00", name="service")
spend = request_budget("$0.005", parent=service, key=user_of, per_user="$0.02")
app = FastAPI()
app.add_middleware(RequestBudgets)


@cache
def client() -> openai.AsyncOpenAI:
    # One client for all requests, without its own budget: it uses the request's.
    return async_guard(openai.AsyncOpenAI(), on_limit="raise")


class Job(BaseModel):
    questions: list[str] = Field(max_length=20)


@app.post("/answers")
async def answers(job: Job, budget: Annotated[Budget, Depends(spend)]) -> dict[str, object]:
    texts = [await ask(question) for question in job.questions]
    return {"answers": texts, "spent": budget.spent}


async def ask(question: str) -> str:
    completion = await client().chat.completions.create(
        model="gpt-4o", messages=[{"role": "user", "content": question}], max_tokens=150
    )
    return completion.choices[0].message.content or ""


if __name__ == "__main__":
    from fastapi.testclient import TestClient
    from simulated import simulated_if_asked

    with simulated_if_asked(), TestClient(app) as browser:
        for user, count in (("ann", 1), ("ann", 2), ("bob", 9), ("ann", 1)):
            job = {"questions": ["Why is the sky blue?"] * count}
            reply = browser.post("/answers", json=job, headers={"x-user": user})
            cost, left = (reply.headers[f"x-budget-{of}"] for of in ("spent", "remaining"))
            print(f"{user}, {count} questions: {reply.status_code}, cost ${cost}, ${left} left")
        print(f"{service.name}: spent ${service.spent:.9f} in {service.calls} calls")
