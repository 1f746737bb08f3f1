"""The Python in README and docs runs as it stands there, and its books cover the provider's bill.

A block that begins with imports runs in an empty namespace; any other is an excerpt, and finds the
names of `excerpt_names`.
"""

import ast
import asyncio
import gc
import inspect
import re
from pathlib import Path
from typing import Any

import openai
import pytest

import tokenfence_integrations
from tokenfence_integrations import Budget
from tokenfence_integrations.testing import SimulatedProvider

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[Any]:
    """Each Python block, after as many empty lines that a traceback shows the page's own lines."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(pytest.param(page, line, match[1], id=f"{page.relative_to(ROOT)}:{line}"))
    return found


def excerpt_names() -> dict[str, Any]:
    public = {
        name: getattr(tokenfence_integrations, name) for name in tokenfence_integrations.__all__
    }
    return public | {
        "asyncio": asyncio,
        "budget": Budget("$1.00", name="team"),
        "messages": [{"role": "user", "content": "Why is the sky blue?"}],
        "openai": openai,
    }


def budgets_of(names: dict[str, Any]) -> list[Budget]:
    """The root budgets that a block used, by itself or in a guarded client."""
    held = [value for value in names.values() if isinstance(value, Budget)]
    clients = [v for v in names.values() if isinstance(v, openai.OpenAI) and hasattr(v, "_terms")]
    held += [client.tokenfence for client in clients if client._terms.budget is not None]
    return list({id(budget): budget for budget in held if budget.parent is None}.values())


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # excerpts do not close their clients
# LlamaIndex's workflows look at every attribute of an agent.
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")
@pytest.mark.parametrize(("page", "line", "source"), blocks())
def test_python_block_runs(
    page: Path, line: int, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = compile("\n" * line + source, page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names = {} if source.startswith(("import ", "from ")) else excerpt_names()
    names["__name__"] = "block"
    with SimulatedProvider(output_tokens=50) as provider:
        monkeypatch.setenv("OPENAI_BASE_URL", provider.base_url)
        monkeypatch.setenv("OPENAI_API_BASE", provider.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "unused")
        result = eval(code, names)
        if inspect.iscoroutine(result):
            asyncio.run(result)
        provider.idle()
        budgets = budgets_of(names)
        charged = [budget.snapshot() for budget in budgets]
        if budgets:
            assert sum(s.spent.usd + s.uncertain.usd for s in charged) >= provider.billed
        assert [s.reserved.usd for s in charged] == [0] * len(charged)
    names.clear()
    gc.collect()


def test_every_link_leads_somewhere() -> None:
    broken = [
        f"{page.name}: {target}"
        for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert broken == []


def test_every_code_fence_is_checked() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fences = re.findall(r"^```(\w*)$", text, re.MULTILINE)
        assert fences[::2] == ["python"] * len(BLOCK.findall(text)), page.name
