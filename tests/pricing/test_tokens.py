"""Token counts are exact or absent; the byte bound is never too low; nothing is downloaded."""

from __future__ import annotations

import json
import shutil
import threading
from collections import ChainMap
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from tokenfence_integrations.pricing import tokens
from tokenfence_integrations.pricing.tokens import (
    byte_bound,
    count_chat,
    count_text,
    encoding_for,
    encoding_name,
)

O200K = "fb374d419588a4632f3f557e76b4b70aebbca790"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> None:
        pytest.fail("tiktoken was asked to download")

    monkeypatch.setattr(requests, "get", download)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No encoding is loaded yet, here or in tiktoken."""
    from tiktoken import registry

    monkeypatch.setattr(registry, "ENCODINGS", {})
    tokens._load.cache_clear()
    yield
    tokens._load.cache_clear()


@pytest.fixture
def vocabulary() -> Path:
    """The o200k vocabulary that llama-index-core brings along."""
    folder = list(tokens._folders())[-1]
    if not (folder / O200K).exists():
        pytest.fail("these tests need llama-index-core, which brings tiktoken's data")
    return folder / O200K


@pytest.fixture
def no_data(fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No vocabulary anywhere; a folder where one may be put."""
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    monkeypatch.delenv("DATA_GYM_CACHE_DIR", raising=False)
    monkeypatch.setattr(tokens.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(tokens.importlib.util, "find_spec", lambda _: None)
    folder = tmp_path / "data-gym-cache"
    folder.mkdir()
    return folder


class TestEncoding:
    @pytest.mark.parametrize(
        ("model", "name"),
        [
            ("gpt-4o", "o200k_base"),
            ("gpt-4.1-mini", "o200k_base"),
            ("gpt-5", "o200k_base"),
            ("o3", "o200k_base"),
            ("gpt-4", "cl100k_base"),
            ("gpt-3.5-turbo-0125", "cl100k_base"),
            ("text-embedding-3-small", "cl100k_base"),
            ("openai/gpt-4", "cl100k_base"),
            ("GPT-4", "cl100k_base"),
            ("ft:gpt-3.5-turbo:org::id", "cl100k_base"),
            # tiktoken itself takes the next one for a gpt-4
            ("ft:gpt-4.1-mini-2025-04-14:org::id", "o200k_base"),
            ("gpt-oss-20b", "o200k_harmony"),
            ("my-deployment", None),
            ("", None),
        ],
    )
    def test_names(self, model: str, name: str | None) -> None:
        assert encoding_name(model) == name

    def test_an_unknown_model_gets_the_current_one(self) -> None:
        encoding = encoding_for("my-deployment")
        assert encoding is not None
        assert encoding.name == "o200k_base"

    def test_is_loaded_once_by_many_threads(self, fresh: None) -> None:
        found: list[object] = []
        threads = [
            threading.Thread(target=lambda: found.append(encoding_for("gpt-4o"))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 8
        assert len(set(map(id, found))) == 1
        assert found[0] is not None

    def test_leaves_the_environment_as_it_was(
        self, fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
        assert encoding_for("gpt-4o") is not None
        assert tokens.os.environ["TIKTOKEN_CACHE_DIR"] == str(tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_without_data_there_is_none(self, no_data: Path) -> None:
        assert encoding_for("gpt-4o") is None
        assert count_text("hello", "gpt-4o") is None
        assert count_chat([{"role": "user", "content": "hello"}], "gpt-4o") is None

    def test_damaged_data_is_left_alone(self, no_data: Path) -> None:
        (no_data / O200K).write_bytes(b"damaged")
        assert encoding_for("gpt-4o") is None
        assert (no_data / O200K).read_bytes() == b"damaged"

    @pytest.mark.parametrize("variable", ["TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR", None])
    def test_data_is_found(
        self,
        variable: str | None,
        vocabulary: Path,
        no_data: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        if variable:
            monkeypatch.setenv(variable, str(vocabulary.parent))
        else:
            shutil.copy(vocabulary, no_data)
        assert count_text("tiktoken is great!", "gpt-4o") == 6


class TestCounts:
    @pytest.mark.parametrize(
        ("text", "model", "count"),
        [
            # OpenAI Cookbook, "How to count tokens with tiktoken"
            ("tiktoken is great!", "gpt-4o", 6),
            ("antidisestablishmentarianism", "gpt-4o", 6),
            ("antidisestablishmentarianism", "gpt-4", 6),
            ("2 + 2 = 4", "gpt-4o", 7),
            ("", "gpt-4o", 0),
        ],
    )
    def test_published_counts(self, text: str, model: str, count: int) -> None:
        assert count_text(text, model) == count

    def test_special_tokens_are_text_like_any_other(self) -> None:
        count = count_text("<|endoftext|>", "gpt-4o")
        assert count is not None
        assert count > 1

    def test_what_tiktoken_cannot_do_is_not_counted(self) -> None:
        assert count_text(" " * 1_000_000, "gpt-4o") is None
        assert count_text("a" * 1_000_001, "gpt-4o") is None

    def test_the_published_chat(self) -> None:
        # The example of the same page, which the API itself counted as 129 for gpt-3.5-turbo and
        # gpt-4, and 124 for gpt-4o.
        system = "You are a helpful, pattern-following assistant that translates corporate jargon "
        messages = [
            {"role": "system", "content": system + "into plain English."},
            {
                "role": "system",
                "name": "example_user",
                "content": "New synergies will help drive top-line growth.",
            },
            {
                "role": "system",
                "name": "example_assistant",
                "content": "Things working well together will increase revenue.",
            },
            {
                "role": "system",
                "name": "example_user",
                "content": "Let's circle back when we have more bandwidth to touch base on "
                "opportunities for increased leverage.",
            },
            {
                "role": "system",
                "name": "example_assistant",
                "content": "Let's talk later when we're less busy about how to do better.",
            },
            {
                "role": "user",
                "content": "This late pivot means we don't have time to boil the ocean for the "
                "client deliverable.",
            },
        ]
        assert count_chat(messages, "gpt-4") == 129
        assert count_chat(messages, "gpt-4o") == 124

    def test_parts_of_text_count_like_text(self) -> None:
        whole = [{"role": "user", "content": "hello"}]
        parts = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
        assert count_chat(parts, "gpt-4o") == count_chat(whole, "gpt-4o")

    @pytest.mark.parametrize(
        "message",
        [
            {"role": "assistant", "content": None},
            {"role": "assistant", "content": "x", "tool_calls": []},
            {"role": "tool", "content": "x", "tool_call_id": "1"},
            {"role": "assistant", "content": "x", "refusal": "no"},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            {"role": "user", "content": [{"type": "input_audio", "text": "x"}]},
            {"role": "user", "content": [{"type": "text", "text": None}]},
            {"role": "user", "content": ["x"]},
            {"role": ["user"], "content": "x"},
        ],
    )
    def test_anything_else_is_not_counted(self, message: dict[str, object]) -> None:
        assert count_chat([{"role": "user", "content": "x"}, message], "gpt-4o") is None

    def test_long_chats_are_not_counted(self) -> None:
        messages = [{"role": "user", "content": "x" * 600_000}] * 2
        assert count_chat(messages, "gpt-4o") is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
# What tokenizers are worst at: private-use and unassigned code points, control characters.
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


class TestByteBound:
    @given(
        st.lists(
            st.fixed_dictionaries(
                {"role": st.sampled_from(["system", "user", "assistant"]), "content": any_text},
                optional={"name": any_text},
            ),
            max_size=6,
        ),
        st.sampled_from(["gpt-4o", "gpt-4"]),
    )
    def test_is_above_the_count_of_any_chat(
        self, messages: list[dict[str, str]], model: str
    ) -> None:
        count = count_chat(messages, model)
        assert count is not None
        assert byte_bound(messages) >= count + 30

    @given(json_values)
    def test_is_above_the_text_and_the_punctuation_of_the_json(self, value: object) -> None:
        escapes = escape_bytes(value)
        compact = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        assert byte_bound(value) >= len(compact.encode(errors="surrogatepass")) - escapes + 64

    @given(json_values)
    def test_is_above_the_tokens_of_the_json_without_its_escapes(self, value: object) -> None:
        count = count_text(json.dumps(value, ensure_ascii=False), "gpt-4o")
        assert count is not None
        assert byte_bound(value) + escape_bytes(value) + space_bytes(value) >= count

    def test_counts_code_points_by_their_bytes(self) -> None:
        assert byte_bound("aé你😀") - byte_bound("") == 1 + 2 + 3 + 4

    def test_lone_surrogates_do_not_stop_it(self) -> None:
        assert byte_bound("\ud800") == byte_bound("") + 3

    def test_token_arrays_have_at_least_a_token_a_number(self) -> None:
        assert byte_bound([0] * 1000) >= 1000

    def test_huge_numbers(self) -> None:
        assert byte_bound(-(10**10_000)) >= 10_001

    def test_any_mapping_and_sequence(self) -> None:
        assert byte_bound(ChainMap({"a": ("b",)})) == byte_bound({"a": ["b"]})

    @pytest.mark.parametrize("value", [object(), b"bytes", {1, 2}, [object()]])
    def test_what_is_not_json_is_refused(self, value: object) -> None:
        with pytest.raises(TypeError, match="Cannot bound the tokens of"):
            byte_bound(value)

    def test_a_value_within_itself_is_refused(self) -> None:
        loop: list[object] = []
        loop.append(loop)
        with pytest.raises(RecursionError):
            byte_bound(loop)


def escape_bytes(value: object) -> int:
    """Bytes that JSON spends on escapes within strings."""
    if isinstance(value, str):
        escaped = json.dumps(value, ensure_ascii=False)[1:-1]
        return len(escaped) - len(value)
    if isinstance(value, dict):
        return sum(escape_bytes(key) + escape_bytes(member) for key, member in value.items())
    if isinstance(value, list):
        return sum(map(escape_bytes, value))
    return 0


def space_bytes(value: object) -> int:
    """Bytes that json.dumps spends on spaces between items."""
    compact = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return len(json.dumps(value, ensure_ascii=False)) - len(compact)
