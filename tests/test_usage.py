"""Usage adds up by kind, and nonsense is refused where it is checked."""

from __future__ import annotations

import pytest

from tokenfence_integrations.usage import MOST_TOKENS, Usage, check_usage


def test_usages_add_up_kind_by_kind() -> None:
    first = Usage(input_tokens=100, output_tokens=20, cached_tokens=50)
    second = Usage(input_tokens=1, output_tokens=2, images=3)
    assert first + second == Usage(input_tokens=101, output_tokens=22, cached_tokens=50, images=3)
    assert sum([first, second], Usage()) == first + second


def test_a_plain_tuple_is_not_appended() -> None:
    with pytest.raises(TypeError):
        Usage() + (1, 2)  # noqa: RUF005 - the mistake that is meant


@pytest.mark.parametrize(
    "usage", [Usage(), Usage(8), Usage(8, 50, reasoning_tokens=20), Usage(images=2)]
)
def test_a_usage_is_shown_without_the_kinds_that_it_has_none_of(usage: Usage) -> None:
    assert eval(repr(usage)) == usage
    shown = {part.partition("=")[0] for part in repr(usage)[6:-1].split(", ")}
    counted = {name for name, count in usage._asdict().items() if count}
    assert shown == {"input_tokens", "output_tokens"} | counted


def test_a_fresh_usage_is_nothing() -> None:
    assert not any(Usage())


def test_a_sound_usage_passes_the_check() -> None:
    usage = Usage(input_tokens=3, audio_ms=1500)
    assert check_usage(usage) is usage


@pytest.mark.parametrize("field", Usage._fields)
@pytest.mark.parametrize("count", [-1, True, 1.0, None, "1"])
def test_the_check_names_what_is_wrong(field: str, count: object) -> None:
    with pytest.raises(ValueError, match=rf"usage\.{field} is .*expected an integer"):
        check_usage(Usage(**{field: count}))  # type: ignore[arg-type]


@pytest.mark.parametrize("field", Usage._fields)
def test_the_check_refuses_more_than_any_call_uses(field: str) -> None:
    check_usage(Usage(**{field: MOST_TOKENS}))
    with pytest.raises(
        ValueError, match=rf"usage\.{field} is 1,000,000,000,001: no call uses more"
    ):
        check_usage(Usage(**{field: MOST_TOKENS + 1}))
