"""What the input of a request can count as, seen from the request alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenfence_integrations.clients.openai.reasoning import hidden_tokens, hides_reasoning
from tokenfence_integrations.pricing.images import image_tokens
from tokenfence_integrations.pricing.rates import Card
from tokenfence_integrations.pricing.tokens import byte_bound

__all__ = [
    "FOUND_BY_SERVER",
    "PER_TOOL",
    "UNKNOWN_WINDOW",
    "Content",
    "add_hidden",
    "chat_content",
    "each_of",
    "is_text",
    "plain",
    "responses_content",
    "sound_tokens",
    "unused_prediction",
]

UNKNOWN_WINDOW = 2_000_000
"""Tokens assumed for what cannot be seen where the model's context window is not known."""

PER_TOOL = 16
"""Tokens that a provider may add for each tool, beside the tool's own JSON."""

BYTES_PER_SOUND_TOKEN = 20
"""Of MP3 and WAV, which have 1,000 bytes a second or more; models hear 50 tokens a second or less
(OpenAI's 10, Qwen's 25, Gemini's 32)."""

SPARE_SOUND_TOKENS = 50
"""For the rest of a second that is begun."""

FOUND_BY_SERVER = frozenset({"data_sources", "plugins", "search_parameters"})
"""Have a server look for more to read: Azure's own data, OpenRouter's and xAI's searches."""

# Keys of a request body that the model reads.
CHAT_KEYS = FOUND_BY_SERVER | {
    "chat_template_kwargs",
    "documents",
    "functions",
    "prediction",
    "response_format",
    "tools",
    "web_search_options",
}
RESPONSES_KEYS = frozenset({"instructions", "tools", "text"})

# Tuples, since what is looked for in them need not be hashable: nobody has validated a request.
TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
UNSEEN_ITEMS = ("item_reference", "image_generation_call")
UNSEEN_PARTS = (
    "file",
    "input_file",
    "document",
    "video",
    "video_url",
    "input_video",
    "audio_url",
)
"""Pages of a document also count as pictures, and films as many: only the window bounds them."""


@dataclass(slots=True)
class Content:
    """The input of one request: text by its bytes, and what a byte count does not bound.

    ``plain`` tells that it is nothing but text in messages, which can be counted exactly.
    """

    text_bytes: int = 0
    images: list[tuple[str, int]] = field(default_factory=list)
    other_bytes: int = 0
    unseen: bool = False
    plain: bool = True

    def bound(self, card: Card) -> int:
        """The most input tokens that a provider can count for it.

        Args:
            card: The model; pictures count differently on each.

        Returns:
            Tokens; the context window for what cannot be seen (references, files by id).
        """
        window = card.context_window or UNKNOWN_WINDOW
        if self.unseen:
            return window
        total = self.text_bytes + self.other_bytes
        for detail, data_bytes in self.images:
            known = image_tokens(card.known_as, detail)
            if known is None:
                known = data_bytes or window
            total += known
        return total


def chat_content(body: Mapping[str, Any]) -> Content:
    """The input of a chat completion."""
    content = Content(plain=False)
    messages = each_of(body.get("messages"))
    content.text_bytes = byte_bound([_without_parts(message, content) for message in messages])
    _add_keys(content, body, CHAT_KEYS)
    content.unseen = content.unseen or any(body.get(key) for key in FOUND_BY_SERVER)
    return content


def responses_content(body: Mapping[str, Any]) -> Content:
    """The input of a call to the Responses API."""
    content = Content(plain=False)
    given = body.get("input")
    if isinstance(given, str) or given is None:
        content.text_bytes = byte_bound(given)
    else:
        content.text_bytes = byte_bound([_without_parts(item, content) for item in each_of(given)])
    references = ("previous_response_id", "conversation", "prompt")
    content.unseen = content.unseen or any(body.get(key) is not None for key in references)
    _add_keys(content, body, RESPONSES_KEYS)
    # What a hosted tool finds becomes input of the same call.
    tools = each_of(body.get("tools"))
    if any(isinstance(t, Mapping) and t.get("type") not in ("function", "custom") for t in tools):
        content.unseen = True
    return content


def unused_prediction(
    prediction: Any, service_tier: str | None = None
) -> Callable[[Card], int] | None:
    """The price of what an answer makes no use of: it is billed as output, beside its maximum.

    Args:
        prediction: What was sent as ``prediction``.
        service_tier: The tier asked for.

    Returns:
        A function from a model to pico-dollars; None if nothing was predicted.
    """
    if prediction is None:
        return None
    most = byte_bound(plain(prediction))
    return lambda card: most * card.rates(service_tier=service_tier).output


def _add_keys(content: Content, body: Mapping[str, Any], keys: frozenset[str]) -> None:
    for key in keys & body.keys():
        value = body[key]
        if value is not None:
            content.plain = False
            content.text_bytes += byte_bound(plain(value))
            if key in ("tools", "functions"):
                content.text_bytes += PER_TOOL * len(each_of(value))


def _without_parts(message: Any, content: Content) -> Any:
    """A message with its pictures, sounds and files noted in ``content`` and taken out."""
    message = plain(message)
    if not isinstance(message, Mapping):
        return message
    add_hidden(message, content)
    if message.get("type") in UNSEEN_ITEMS or message.get("audio") is not None:
        content.unseen = True
    parts = message.get("content")
    output = message.get("output")
    kept = dict(message)
    if isinstance(parts, list | tuple):
        kept["content"] = [part for part in map(plain, parts) if is_text(part, content)]
    if isinstance(output, Mapping):  # the picture of a screen
        output = [output]
    if isinstance(output, list | tuple):
        kept["output"] = [part for part in map(plain, output) if is_text(part, content)]
    return kept


def is_text(part: Any, content: Content) -> bool:
    if not isinstance(part, Mapping):
        return True
    kind = part.get("type")
    if kind in TEXT_PARTS:
        return True
    if kind in ("image_url", "input_image", "computer_screenshot"):
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, Mapping) else image
        detail = image.get("detail") if isinstance(image, Mapping) else part.get("detail")
        data = len(url) if isinstance(url, str) and url.startswith("data:") else 0
        content.images.append((detail or "auto", data))
        return False
    if kind == "input_audio":
        sound = part.get("input_audio")
        sound = sound if isinstance(sound, Mapping) else {}
        spoken = sound.get("data")
        if isinstance(spoken, str):
            content.other_bytes += sound_tokens(len(spoken), sound.get("format"))
        else:
            content.unseen = True
        return False
    if kind in UNSEEN_PARTS:
        content.unseen = True
        return False
    add_hidden(part, content)
    return True


def sound_tokens(length: int, coding: object) -> int:
    """The most tokens of a recording.

    Args:
        length: Of its base64 text.
        coding: Its format, such as ``"wav"``.
    """
    if coding in ("wav", "mp3"):
        return length // BYTES_PER_SOUND_TOKEN + SPARE_SOUND_TOKENS
    # A token is a tenth of a second of sound or less, which no codec brings below one byte.
    return length


def add_hidden(item: Any, content: Content) -> None:
    """Note in ``content`` what an item hides, if it is one of reasoning."""
    if isinstance(item, Mapping) and hides_reasoning(item):
        hidden = hidden_tokens(item)
        content.unseen = content.unseen or hidden is None
        content.other_bytes += hidden or 0


def each_of(given: Any) -> Sequence[Any]:
    """The elements of an array in a request; what is none, and will be refused, is its only one."""
    if given is None:
        return ()
    return given if isinstance(given, list | tuple) else (given,)


def plain(value: Any) -> Any:
    """JSON-like data from what the SDK also accepts: pydantic models, tuples, iterables, types."""
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [plain(member) for member in value]
    dump = getattr(value, "model_dump", None)
    if dump is not None and not isinstance(value, type):
        return dump(mode="json", exclude_unset=True)
    return str(value)
