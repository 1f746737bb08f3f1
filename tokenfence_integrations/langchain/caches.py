"""LangChain's caches: an answer that a cap of ours cut short is not worth keeping."""

from typing import Any

from langchain_core.caches import RETURN_VAL_TYPE, BaseCache
from langchain_core.globals import get_llm_cache
from langchain_core.language_models import BaseChatModel

from tokenfence_integrations.langchain.usages import was_cut

__all__ = ["CutAnswersLeftOut", "cache_of"]


def cache_of(model: BaseChatModel) -> BaseCache | None:
    """The cache that a model's answers go to; None if they go to none."""
    own = model.cache
    if own is None or own is True:
        return get_llm_cache()
    return None if own is False else own


class CutAnswersLeftOut(BaseCache):
    """A cache that stores whole answers only. It is asked after the cache below knew none.

    Without a budget the model would have gone on, so a cut answer is not what the cache would have
    held; and it would be served long after the budget was raised.

    Args:
        below: Where whole answers are stored.
    """

    def __init__(self, below: BaseCache) -> None:
        self._below = below

    def lookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        return None

    async def alookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        return None

    def update(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        if _whole(return_val):
            self._below.update(prompt, llm_string, return_val)

    async def aupdate(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        if _whole(return_val):
            await self._below.aupdate(prompt, llm_string, return_val)

    def clear(self, **kwargs: Any) -> None:
        self._below.clear(**kwargs)


def _whole(answers: RETURN_VAL_TYPE) -> bool:
    return not any(was_cut(getattr(answer, "message", None)) for answer in answers)
