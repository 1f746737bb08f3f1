"""What a response synthesizer hands on from one prompt to the next: answers, and refusals.

Refining and summarizing put each answer into the next prompt. Where that one is refused, the
refusal gives back what it was handed, so that what is paid for is not lost. Where it fits, a
refusal among its material is not sent, and the answer says that there was one.
"""

import re
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

__all__ = ["REMEMBERED", "Answers", "Material", "material", "remember", "with_kept"]

REMEMBERED = 256
"""How many answers a guarded LLM can know again in a prompt."""

LONGEST = 64
"""How many paragraphs such an answer may have."""

Answers: TypeAlias = deque[int]
"""Hashes of what was answered lately: an answer itself is never kept."""

NOTICE = re.compile(r"\[TokenFence\] Budget of .*? exceeded \(spent .*?\)\. Request blocked\.")
"""A refusal's text."""

ANSWER, CONTEXT = "existing_answer", "context_str"
"""The variables of LlamaIndex's prompts in which answers are handed on."""


class Material:
    """What one prompt hands on of answers before it.

    Args:
        answers: What was answered to prompts before.
        prompt: The prompt, some of whose variables may be filled in.
        given: Its other variables.

    Attributes:
        given: The variables, without refusals.
        notice: The refusal among them; empty if there is none.
        empty: Whether nothing but refusals was handed on.
        refused: Whether this prompt is refused as well.
    """

    __slots__ = ("_answers", "_handed", "empty", "given", "notice", "refused")

    def __init__(self, answers: Answers, prompt: Any, given: Mapping[str, Any]) -> None:
        self.given = dict(given)
        self.notice = ""
        self.empty = self.refused = False
        self._answers = answers
        self._handed: dict[str, str] = {}
        for name in (ANSWER, CONTEXT):
            text = given.get(name, prompt.kwargs.get(name))
            if not isinstance(text, str):
                continue
            notice = NOTICE.search(text)
            if notice is not None:
                self.notice = notice[0]
                text = self.given[name] = re.sub(r"\n{3,}", "\n\n", NOTICE.sub("", text)).strip()
                self.empty = not text
            self._handed[name] = text

    def kept(self) -> str:
        """The answer that is to be refined, or the summaries that are to be summarized."""
        if ANSWER in self._handed:
            return self._handed[ANSWER]
        paragraphs = self._handed.get(CONTEXT, "").split("\n\n")
        return "\n\n".join(_known(paragraphs, set(self._answers.copy())))

    def told(self, answer: str) -> str:
        """An answer, after which the refusal of others is told."""
        return answer if self.refused or not self.notice else f"{answer}\n\n{self.notice}".strip()

    def told_after(self, tokens: Iterator[str]) -> Iterator[str]:
        """The same for a stream."""
        yield from tokens
        yield from self._last_tokens()

    async def atold_after(self, tokens: AsyncIterator[str]) -> AsyncIterator[str]:
        """The same for an async stream."""
        async for token in tokens:
            yield token
        for token in self._last_tokens():
            yield token

    def _last_tokens(self) -> list[str]:
        return [] if self.refused or not self.notice else [f"\n\n{self.notice}"]


def remember(answers: Answers, answer: str) -> None:
    """Know an answer again, should a prompt hand it on."""
    answers.append(hash(answer.strip()))


def _known(paragraphs: list[str], answers: set[int]) -> Iterator[str]:
    """The answers among the paragraphs of a text, the longest ones first."""
    start = 0
    while start < len(paragraphs):
        for end in range(min(len(paragraphs), start + LONGEST), start, -1):
            text = "\n\n".join(paragraphs[start:end])
            if hash(text.strip()) in answers:
                yield text
                start = end
                break
        else:
            start += 1


_material: "ContextVar[Material | None]" = ContextVar("tokenfence_material", default=None)


@contextmanager
def material(answers: Answers, prompt: Any, given: Mapping[str, Any]) -> Iterator[Material]:
    """What a prompt hands on, while it is asked.

    Args:
        answers: What was answered to prompts before.
        prompt: The prompt, some of whose variables may be filled in.
        given: Its other variables.

    Example:
        >>> from llama_index.core import PromptTemplate
        >>> refine = PromptTemplate("{existing_answer}", existing_answer="At noon.")
        >>> with material(deque(), refine, {}):
        ...     print(with_kept("It is refused."))
        At noon.
        <BLANKLINE>
        It is refused.
    """
    token = _material.set(found := Material(answers, prompt, given))
    try:
        yield found
    finally:
        _material.reset(token)


def with_kept(text: str) -> str:
    """A refusal's text, after what the prompt at hand has handed on."""
    now = _material.get()
    if now is None:
        return text
    now.refused = True
    return f"{now.kept()}\n\n{text}".strip()
