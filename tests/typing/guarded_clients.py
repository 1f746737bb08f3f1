"""Read by the type checker, not run: what guard() and async_guard() return."""

from datetime import timedelta
from typing import assert_type

import openai
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRetryMiddleware
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from llama_index.core import MockEmbedding
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.llms.openai import OpenAI as LlamaOpenAI

from tokenfence_integrations import Budget, async_guard, guard
from tokenfence_integrations.langchain import BudgetedChatModel, BudgetMiddleware
from tokenfence_integrations.llama_index import BudgetedLLM, budget_for

sync: openai.OpenAI = guard(openai.OpenAI(), budget="$5.00")
azure: openai.AzureOpenAI = guard(openai.AzureOpenAI(), budget=5)
aio: openai.AsyncOpenAI = async_guard(openai.AsyncOpenAI(), budget=Budget("$1"))
aio_too: openai.AsyncOpenAI = guard(openai.AsyncOpenAI(), budget=0.5)
azure_aio: openai.AsyncAzureOpenAI = async_guard(openai.AsyncAzureOpenAI())

assert_type(guard(openai.OpenAI(), budget=1).tokenfence, Budget)
assert_type(guard(openai.AsyncOpenAI(), budget=1).tokenfence, Budget)
assert_type(guard(openai.AzureOpenAI(), budget=1).tokenfence, Budget)
assert_type(guard(openai.AsyncAzureOpenAI(), budget=1).tokenfence, Budget)
assert_type(async_guard(openai.AsyncOpenAI(), budget=1).tokenfence, Budget)
assert_type(async_guard(openai.AsyncAzureOpenAI(), budget=1).tokenfence, Budget)

reply = guard(openai.OpenAI(), budget=1).chat.completions.create(
    model="gpt-4o", messages=[{"role": "user", "content": "Hello"}]
)
assert_type(reply, openai.types.chat.ChatCompletion)


async def ask() -> None:
    client = async_guard(openai.AsyncOpenAI(), fallback=["gpt-4.1-mini", "gpt-4.1-nano"])
    stream = await client.chat.completions.create(
        model="gpt-4o", messages=[{"role": "user", "content": "Hello"}], stream=True
    )
    assert_type(stream, openai.AsyncStream[openai.types.chat.ChatCompletionChunk])


class Mine(openai.OpenAI):
    """A subclass of the user's own."""


mine: openai.OpenAI = guard(Mine(), fallback={0.5: "gpt-4o-mini"}, on_limit="warn")


# Chat models and embeddings of LangChain.

model = guard(
    ChatOpenAI(model="gpt-4o"), budget=1, fallback=["gpt-4o-mini", ChatOpenAI(model="gpt-4.1-nano")]
)
assert_type(model, ChatOpenAI)
assert_type(guard(OpenAIEmbeddings(), budget=1), OpenAIEmbeddings)
if isinstance(model, BudgetedChatModel):
    assert_type(model.tokenfence, Budget)

# Middleware of a state of its own goes with LangChain's, whose state is another one.
create_agent(model, middleware=[ModelRetryMiddleware(), BudgetMiddleware("$5.00")])

# LLMs, embeddings and engines of LlamaIndex.

llm = guard(
    LlamaOpenAI(model="gpt-4o"), budget=1, fallback={0.5: "gpt-4o-mini", 0.9: LlamaOpenAI()}
)
assert_type(llm, LlamaOpenAI)
assert_type(guard(MockEmbedding(3), budget=1), MockEmbedding)
if isinstance(llm, BudgetedLLM):
    assert_type(llm.tokenfence, Budget)


def answer(engine: RetrieverQueryEngine) -> None:
    assert_type(budget_for(engine, "$0.05", fallback="gpt-4o-mini"), RetrieverQueryEngine)


# Budgets below others take the limits that budgets take.

team = Budget("$5", tz="Europe/Berlin")
assert_type(team.child("a", "20%", calls="10%", tokens=1_000, per=timedelta(hours=5)), Budget)

# Each of these has to be an error.
team.child("b", call=5)  # expect: call-arg
team.child("c", calls=0.5)  # expect: arg-type
team.child("d", per=3_600)  # expect: arg-type
guard(ChatOpenAI(model="gpt-4o"), fallback=5)  # expect: call-overload
guard(LlamaOpenAI(model="gpt-4o"), fallback=ChatOpenAI())  # expect: call-overload
guard(openai.OpenAI(), budgett="$5.00")  # expect: call-overload
guard(openai.OpenAI(), on_limit="explode")  # expect: call-overload
guard(openai.OpenAI(), wait="long")  # expect: call-overload
guard("sk-key", budget="$5.00")  # expect: call-overload
async_guard(openai.OpenAI(), budget="$5.00")  # expect: call-overload
wrong: openai.AsyncOpenAI = guard(openai.OpenAI(), budget=1)  # expect: assignment


def ask_wrongly(engine: RetrieverQueryEngine) -> None:
    budget_for(engine, "$0.05", on_limit="never")  # expect: arg-type
    budget_for(engine, "$0.05", treshold=0.5)  # expect: call-arg
