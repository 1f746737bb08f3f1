"""What `import tokenfence_integrations` itself imports: no more than a budget in memory needs."""

import subprocess
import sys

NOT_NEEDED = ["asyncio", "sqlite3", "genai_prices", "tiktoken", "openai", "pydantic"]
ROOMS = ["clients", "models", "langchain", "llama_index", "tenants", "web", "testing", "cli"]


def test_importing_the_package_imports_no_room_that_is_not_asked_for() -> None:
    script = (
        "import sys, tokenfence_integrations as t; t.Budget('$1', store='memory:')\n"
        f"rooms = ['tokenfence_integrations.' + room for room in {ROOMS}]\n"
        f"print([name for name in {NOT_NEEDED} + rooms if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
