"""How many tokens a text or a request has: exactly where that is possible, else at most.

Counting costs about 45 microseconds per kilobyte and needs vocabulary data; the byte bound costs
less than one microsecond per kilobyte and needs none. So a caller tries the byte bound first, and
counts only when it does not fit. Nothing here ever downloads anything.
"""

import functools
import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tokenfence_integrations.forks import OwnLock

if TYPE_CHECKING:
    import tiktoken

DEFAULT_ENCODING = "o200k_base"
"""What OpenAI models use since gpt-4o, and the guess for a name that tiktoken does not know."""

MAX_COUNTED_CHARACTERS = 1_000_000
"""Longer texts are not counted: they take seconds, and tiktoken fails on a million spaces."""

REQUEST_OVERHEAD = 64
"""Tokens a provider may add to a request once: the priming of a reply, special tokens."""

TOKENS_PER_MESSAGE = 3
TOKENS_PER_NAME = 1
TOKENS_PER_REPLY = 3

_COUNTED_MESSAGE_KEYS = frozenset({"role", "content", "name"})
_COUNTED_PART_KEYS = frozenset({"type", "text"})

# Longest "-1.7976931348623157e+308", with one to spare.
_FLOAT_BYTES = 25


class _Vocabulary(NamedTuple):
    file_name: str  # sha1 of the address that tiktoken would download it from
    sha256: str


# From tiktoken's tiktoken_ext/openai_public.py (the addresses and the expected hashes).
_O200K = _Vocabulary(
    "fb374d419588a4632f3f557e76b4b70aebbca790",
    "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
)
_P50K = _Vocabulary(
    "ec7223a39ce59f226a68acc30dc1af2788490e15",
    "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069",
)
_VOCABULARIES = {
    "o200k_base": _O200K,
    "o200k_harmony": _O200K,
    "cl100k_base": _Vocabulary(
        "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    ),
    "p50k_base": _P50K,
    "p50k_edit": _P50K,
    "r50k_base": _Vocabulary(
        "0ea1e91bbb3a60f729a8dc8f777fd2fc07cd8df4",
        "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
    ),
}

# One thread loads a vocabulary (half a second), the others wait for it.
_lock = OwnLock()


@functools.lru_cache(maxsize=1024)
def encoding_name(model: str) -> str | None:
    """The name of the tiktoken encoding of a model.

    Args:
        model: A model name, also with an "openai/" prefix, or of a fine-tuned model ("ft:...").

    Returns:
        Such as "o200k_base"; None if tiktoken does not know the model (another maker's, a newer
        one, an Azure deployment).

    Example:
        >>> encoding_name("gpt-4o-mini")
        'o200k_base'
    """
    from tiktoken.model import encoding_name_for_model

    name = model.lower().removeprefix("openai/")
    if name.startswith("ft:"):
        # tiktoken takes "ft:gpt-4.1" for a gpt-4; the base model's own name is unambiguous.
        name = name.removeprefix("ft:").partition(":")[0]
    try:
        return encoding_name_for_model(name)
    except KeyError:
        return None


def encoding_for(model: str) -> "tiktoken.Encoding | None":
    """The tiktoken encoding of a model, if its vocabulary is on this machine.

    Looks into $TIKTOKEN_CACHE_DIR, $DATA_GYM_CACHE_DIR, tiktoken's default cache and the folder
    that llama-index-core brings along. Never downloads.

    Args:
        model: A model name. One that tiktoken does not know gets "o200k_base".

    Returns:
        The encoding, loaded once per process; None if no data was found.

    Example:
        >>> encoding = encoding_for("gpt-4o")
        >>> encoding.name if encoding else "no data here"
        'o200k_base'
    """
    name = encoding_name(model) or DEFAULT_ENCODING
    with _lock:
        return _load(name)


@functools.cache
def _load(name: str) -> "tiktoken.Encoding | None":
    import tiktoken

    vocabulary = _VOCABULARIES.get(name)
    folder = _find_folder(vocabulary) if vocabulary else None
    if folder is None:
        return None
    try:
        with _tiktoken_cache_dir(folder):
            return tiktoken.get_encoding(name)
    except (OSError, ValueError):  # the file went away or changed since it was verified
        return None


def _find_folder(vocabulary: _Vocabulary) -> Path | None:
    """The first folder with a valid copy (tiktoken deletes and downloads invalid ones)."""
    for folder in _folders():
        try:
            data = (folder / vocabulary.file_name).read_bytes()
        except OSError:
            continue
        if hashlib.sha256(data).hexdigest() == vocabulary.sha256:
            return folder
    return None


def _folders() -> Iterator[Path]:
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if folder := os.environ.get(variable):
            yield Path(folder)
    yield Path(tempfile.gettempdir(), "data-gym-cache")
    try:
        spec = importlib.util.find_spec("llama_index.core")
    except ModuleNotFoundError:
        return
    for location in (spec.submodule_search_locations if spec else None) or ():
        yield Path(location, "_static", "tiktoken_cache")


@contextmanager
def _tiktoken_cache_dir(folder: Path) -> Iterator[None]:
    """Point tiktoken at `folder`, which the environment alone can do, and only while it loads."""
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["TIKTOKEN_CACHE_DIR"]
        else:
            os.environ["TIKTOKEN_CACHE_DIR"] = before


def count_text(text: str, model: str) -> int | None:
    """The exact number of tokens of a text.

    Args:
        text: Any string; what looks like a special token counts as the text that it is.
        model: Whose encoding to use, see `encoding_for`. For a model that tiktoken does not know
            (`encoding_name` is None) the count is an estimate.

    Returns:
        The count; None if there is no vocabulary data here, the text has more than 1,000,000
        characters, or tiktoken cannot tokenize it.

    Example:
        >>> count_text("tiktoken is great!", "gpt-4o")
        6
    """
    if len(text) > MAX_COUNTED_CHARACTERS:
        return None
    encoding = encoding_for(model)
    if encoding is None:
        return None
    try:
        # encode(), because on very long runs of spaces encode_ordinary() panics instead of raising.
        return len(encoding.encode(text, disallowed_special=()))
    except ValueError:
        return None


def count_chat(messages: Sequence[Mapping[str, object]], model: str) -> int | None:
    """The number of prompt tokens of a chat of plain-text messages.

    The formula that OpenAI publishes: 3 tokens a message and 1 a name, around the tokens of role,
    content and name, and 3 that prime the reply ("How to count tokens with tiktoken", OpenAI
    Cookbook, `num_tokens_from_messages`).

    Args:
        messages: Chat Completions messages.
        model: Whose encoding to use, see `count_text`.

    Returns:
        The count; None if any message has more than a role, a name and text (tools, images, audio:
        the formula is not known to hold there), or where `count_text` returns None.

    Example:
        >>> count_chat([{"role": "user", "content": "tiktoken is great!"}], "gpt-4o")
        13
    """
    texts: list[str] = []
    total = TOKENS_PER_REPLY
    for message in messages:
        found = _message_texts(message)
        if found is None:
            return None
        texts += found
        total += TOKENS_PER_MESSAGE
        if "name" in message:
            total += TOKENS_PER_NAME
    if sum(map(len, texts)) > MAX_COUNTED_CHARACTERS:
        return None
    for text in texts:
        count = count_text(text, model)
        if count is None:
            return None
        total += count
    return total


def _message_texts(message: Mapping[str, object]) -> list[str] | None:
    if not message.keys() <= _COUNTED_MESSAGE_KEYS:
        return None
    texts: list[str] = []
    for key, value in message.items():
        if isinstance(value, str):
            texts.append(value)
        elif key == "content" and isinstance(value, list | tuple):
            for part in value:
                if not isinstance(part, Mapping) or part.keys() != _COUNTED_PART_KEYS:
                    return None
                text = part["text"]
                if part["type"] != "text" or not isinstance(text, str):
                    return None
                texts.append(text)
        else:
            return None
    return texts


def byte_bound(value: object) -> int:
    """At most this many tokens are in a request body, or in a part of one.

    Every token of a byte-level BPE vocabulary stands for at least one byte (all 256 single bytes
    are tokens of their own), so a text has at most as many tokens as it has UTF-8 bytes. What a
    provider adds per message is less than the JSON around it, which is counted too; what it adds
    once is in the constant 64. Escapes are not counted: the model reads the text, not its JSON
    form. What it adds per tool is not counted either. No theorem for tokenizers that normalise
    first (SentencePiece with NFKC), or that are not published.

    Args:
        value: JSON-like: mappings with string keys, lists, tuples, strings, numbers, booleans and
            None.

    Returns:
        UTF-8 bytes of all strings, plus JSON punctuation, plus 64.

    Raises:
        TypeError: For anything that is not JSON-like.
        RecursionError: For a value that contains itself, or is nested some hundred levels deep.

    Example:
        >>> byte_bound([{"role": "user", "content": "hello"}])
        101
    """
    return _json_bytes(value) + REQUEST_OVERHEAD


def text_messages_bound(messages: Sequence[object]) -> int | None:
    """As `byte_bound`, in one pass, for the commonest chats: messages of nothing but texts.

    Args:
        messages: Chat messages.

    Returns:
        The same as `byte_bound`; None if a message has anything but texts.
    """
    total = 2 + REQUEST_OVERHEAD
    for message in messages:
        if type(message) is not dict:
            return None
        try:
            text = "".join([*message, *message.values()])
        except TypeError:  # not text alone
            return None
        total += 3 + 6 * len(message) + (len(text) if text.isascii() else _utf8_bytes(text))
    return total


def _json_bytes(value: object) -> int:
    # This runs for every guarded call: so strings in mappings are measured in place.
    if isinstance(value, dict):
        total = 2 + 4 * len(value)  # braces; quotes, colon and comma of each member
        for key, member in value.items():
            total += len(key) if key.isascii() else _utf8_bytes(key)
            if type(member) is str:
                total += 2 + (len(member) if member.isascii() else _utf8_bytes(member))
            else:
                total += _json_bytes(member)
        return total
    if isinstance(value, list | tuple):
        total = 2 + len(value)  # brackets; a comma each
        for member in value:
            total += _json_bytes(member)
        return total
    if isinstance(value, str):
        return 2 + (len(value) if value.isascii() else _utf8_bytes(value))
    if value is None or isinstance(value, bool):
        return 5
    if isinstance(value, int):
        return value.bit_length() // 3 + 2  # at least its digits and sign, for any size
    if isinstance(value, float):
        return _FLOAT_BYTES
    if isinstance(value, Mapping):
        return _json_bytes(dict(value))
    raise TypeError(
        f"Cannot bound the tokens of a {type(value).__name__}: expected JSON-like values "
        "(dict, list, tuple, str, int, float, bool, None)."
    )


def _utf8_bytes(text: str) -> int:
    # Lone surrogates cannot be sent, but must not stop the bound from being computed.
    return len(text.encode(errors="surrogatepass"))
