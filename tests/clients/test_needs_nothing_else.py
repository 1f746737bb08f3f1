"""A guarded OpenAI client works where nothing but openai is installed.

The tests' environments have more, so that the rest is hidden here.
"""

import subprocess
import sys

from tests.clients.helpers import OPENAI_3
from tokenfence_integrations.testing import SimulatedProvider

HIDDEN = [
    "aiohttp",
    "anthropic",
    "fastapi",
    "langchain",
    "langchain_core",
    "langchain_openai",
    "langgraph",
    "llama_index",
    "redis",
    "requests",
    "rich",
    *(["httpx"] if OPENAI_3 else []),  # openai 3 stands on httpx2
]
PROGRAM = """
import importlib.abc
import sys

base_url, *hidden = sys.argv[1:]

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"{name} is hidden", name=name)

sys.meta_path.insert(0, Hidden())

import openai
from tokenfence_integrations import Budget, guard

budget = Budget("$1")
client = guard(openai.OpenAI(base_url=base_url, api_key="unused"), budget=budget)
call = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16}
client.chat.completions.create(**call)
list(client.chat.completions.create(**call, stream=True))
list(client.responses.create(model="gpt-4o", input="Hello", max_output_tokens=16, stream=True))
assert not set(hidden) & set(sys.modules)
print(budget.snapshot().spent.usd)
"""


def test_guarded_calls_with_all_else_hidden(provider: SimulatedProvider) -> None:
    command = [sys.executable, "-c", PROGRAM, provider.base_url, *HIDDEN]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    provider.idle()
    assert len(provider.bill) == 3
    assert int(done.stdout) == provider.billed
