"""How much OpenAI's models can read and write: facts that price lists do not have.

The output ceiling bounds what a call without a maximum can cost.
"""

from typing import NamedTuple


class Ceiling(NamedTuple):
    """Limits of a model.

    Args:
        context_window: The most tokens of prompt and answer together; None if not published.
        max_output_tokens: The most tokens of an answer, reasoning included; 0 if it has none.
        reasoning: Whether the model thinks in output tokens that are not shown.
    """

    context_window: int | None
    max_output_tokens: int
    reasoning: bool = False


def ceiling(model: str) -> Ceiling | None:
    """The limits of an OpenAI model.

    Args:
        model: A model name, also dated ("gpt-4o-2024-08-06"), fine-tuned ("ft:gpt-4o:...") or with
            an "openai/" prefix.

    Returns:
        The limits by the longest name in the table that the model's name is or continues with "-"
        or ":"; None if there is none.

    Example:
        >>> ceiling("gpt-4.1-mini-2025-04-14")
        Ceiling(context_window=1047576, max_output_tokens=32768, reasoning=False)
    """
    name = model.lower().removeprefix("openai/").removeprefix("ft:")
    while name:
        if known := _CEILINGS.get(name):
            return known
        name = name[: max(name.rfind("-"), name.rfind(":"), 0)]
    return None


_CHAT_4 = Ceiling(128_000, 16_384)
_TURBO = Ceiling(128_000, 4_096)
_GPT_4_1 = Ceiling(1_047_576, 32_768)
_GPT_5 = Ceiling(400_000, 128_000, reasoning=True)
_GPT_5_CHAT = Ceiling(128_000, 16_384, reasoning=True)
_GPT_5_LONG = Ceiling(1_050_000, 128_000, reasoning=True)
_O_SERIES = Ceiling(200_000, 100_000, reasoning=True)
_EMBEDDING = Ceiling(8_192, 0)
_NO_TOKENS_OUT = Ceiling(None, 0)

# Sources, compared figure by figure: models.dev (as in langchain_openai/data/_profiles.py of
# langchain-openai 1.7.3) and LiteLLM (model_prices_and_context_window.json of 1.109.1), which both
# follow the pages under https://developers.openai.com/api/docs/models. They agree but for the rows
# with a note; there the larger figure is kept, since a ceiling that is too low is none. Both count
# the answer out of the context window of gpt-5 and later; here it is in.
_CEILINGS = {
    # GPT-3.5 and GPT-4: models.dev, LiteLLM
    "gpt-3.5-turbo": Ceiling(16_385, 4_096),
    "gpt-35-turbo": Ceiling(16_385, 4_096),  # Azure's spelling
    "gpt-3.5-turbo-instruct": Ceiling(8_192, 4_097),  # LiteLLM
    "gpt-4": Ceiling(8_192, 8_192),  # LiteLLM: 4,096 out
    "gpt-4-32k": Ceiling(32_768, 32_768),  # as gpt-4: the whole window; LiteLLM: 4,096 out
    "gpt-4-turbo": _TURBO,
    "gpt-4-1106": _TURBO,
    "gpt-4-0125": _TURBO,
    "gpt-4-vision": _TURBO,  # a gpt-4-1106 that sees
    "gpt-4.5-preview": _CHAT_4,
    # GPT-4o: models.dev, LiteLLM
    "gpt-4o": _CHAT_4,  # and -mini, -audio-preview, -search-preview
    "gpt-4o-2024-05-13": _TURBO,
    "gpt-4o-transcribe": Ceiling(16_000, 2_000),
    "gpt-4o-mini-transcribe": Ceiling(16_000, 2_000),
    "chatgpt-4o-latest": _CHAT_4,  # the gpt-4o of ChatGPT
    "gpt-audio": _CHAT_4,
    # GPT-4.1: models.dev, LiteLLM
    "gpt-4.1": _GPT_4_1,  # and -mini, -nano
    # GPT-5: models.dev, LiteLLM
    "gpt-5": _GPT_5,  # and -mini, -nano, -codex
    "gpt-5-chat": Ceiling(128_000, 16_384),
    "gpt-5-pro": Ceiling(400_000, 272_000, reasoning=True),  # LiteLLM: 128,000 out
    "gpt-5.1": _GPT_5,
    "gpt-5.1-chat": _GPT_5_CHAT,
    "gpt-5.2": _GPT_5,
    "gpt-5.2-chat": _GPT_5_CHAT,
    "gpt-5.3-chat": _GPT_5_CHAT,
    "gpt-5.3-codex": _GPT_5,
    "gpt-5.3-codex-spark": Ceiling(128_000, 128_000, reasoning=True),  # models.dev: 32,000 out
    # GPT-5.4 to GPT-6: models.dev, LiteLLM
    "gpt-5.4": _GPT_5_LONG,  # and -pro
    "gpt-5.4-mini": _GPT_5,
    "gpt-5.4-nano": _GPT_5,
    "gpt-5.5": _GPT_5_LONG,  # and -pro
    "gpt-5.6": _GPT_5_LONG,  # and -luna, -sol, -terra
    "gpt-6-astra": _GPT_5_LONG,
    "gpt-6-luna": _GPT_5_LONG,
    "gpt-6-sol": _GPT_5_LONG,
    "gpt-6.1-sol": _GPT_5_LONG,
    "gpt-6.1-terra": _GPT_5_LONG,
    # o-series and what is built on it: models.dev, LiteLLM
    "o1": _O_SERIES,  # and -pro
    "o1-mini": Ceiling(128_000, 65_536, reasoning=True),
    "o1-preview": Ceiling(128_000, 32_768, reasoning=True),
    "o3": _O_SERIES,  # and -mini, -pro, -deep-research
    "o4-mini": _O_SERIES,
    "codex-mini": _O_SERIES,
    "computer-use-preview": Ceiling(8_192, 1_024, reasoning=True),
    # Open weights and base models: LiteLLM
    "gpt-oss": Ceiling(131_072, 131_072, reasoning=True),
    "davinci-002": Ceiling(16_384, 16_384),  # the whole window; LiteLLM: 4,096 out
    "babbage-002": Ceiling(16_384, 16_384),  # so here
    # Embeddings: LiteLLM (models.dev: 8,191 in); their answers are vectors, not tokens
    "text-embedding-3": _EMBEDDING,
    "text-embedding-ada": _EMBEDDING,
    # Answers without tokens: scores, or text and sound billed by duration or characters: LiteLLM
    "omni-moderation": Ceiling(32_768, 0),
    "text-moderation": Ceiling(32_768, 0),
    "whisper-1": _NO_TOKENS_OUT,
    "tts-1": _NO_TOKENS_OUT,
}
