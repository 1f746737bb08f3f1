"""Any provider, by hand: reserve what a call may cost, make it, settle what it cost.

Here plain HTTP from eight threads. Run it with `python examples/low_level.py --simulated`, or with
OPENAI_API_KEY for real money.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.request import Request, urlopen

from tokenfence_integrations import Budget, BudgetExceeded, Usage

budget = Budget("$0.004", name="batch job", calls=100)


def summarize(text: str) -> str:
    messages = [{"role": "user", "content": f"Summarize: {text}"}]
    # A token is at least a byte, so the bytes of what is sent bound its tokens.
    most = len(json.dumps(messages).encode()) + 64
    try:
        with budget.reserve(model="gpt-4o", input_tokens=most, max_output_tokens=100) as call:
            body = {"model": call.model, "messages": messages, "max_tokens": call.max_output_tokens}
            answer = post("/chat/completions", body)
            used = answer["usage"]
            call.settle(Usage(used["prompt_tokens"], used["completion_tokens"]))
            # Without settle(), the block books the call as uncertain; if it ends with an error
            # which shows that nothing was sent, or that it was refused, it books nothing.
    except BudgetExceeded as refusal:
        return f"not sent: {refusal}"
    text = answer["choices"][0]["message"]["content"]
    return f"${call.cost_usd:.7f}: {text}"


def post(path: str, body: object) -> Any:
    base_url = os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1")
    headers = {
        "Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}",
        "Content-Type": "application/json",
    }
    with urlopen(Request(base_url + path, json.dumps(body).encode(), headers)) as response:
        return json.load(response)


def main() -> None:
    with ThreadPoolExecutor(8) as threads:
        for line in threads.map(summarize, [f"chapter {n}" for n in range(8)]):
            print(line[:100])
    print(f"spent ${budget.spent:.9f} in {budget.calls} calls, in flight ${budget.reserved:.2f}")


if __name__ == "__main__":
    from simulated import simulated_if_asked

    with simulated_if_asked():
        main()
