"""Exceptions: what they say, what they carry, and that they travel between processes."""

import copy
import pickle

import pytest

from tokenfence_integrations import (
    BudgetExceeded,
    NoBudgetError,
    TokenFenceError,
    UnknownModelError,
    UnmeteredError,
)


class ProvidersExceeded(BudgetExceeded, OSError):
    """As integrations make them: also an error of the library below."""


@pytest.mark.parametrize("kind", [BudgetExceeded, ProvidersExceeded])
@pytest.mark.parametrize("travel", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy])
def test_a_refusal_travels_with_its_numbers(kind, travel) -> None:  # type: ignore[no-untyped-def]
    error = kind(
        5.0,
        4.5,
        name="team/a",
        quantity="usd",
        reserved=0.25,
        uncertain=0.125,
        requested=0.5,
        model="gpt-4o",
        waited=1.5,
        replaceable=False,
    )
    other = travel(error)
    assert type(other) is kind
    assert str(other) == str(error)
    assert vars(other) == vars(error)


def test_a_refusal_says_the_numbers_and_what_to_do() -> None:
    error = BudgetExceeded(
        1_000.0, 999.5, name="team", reserved=0.25, uncertain=0.125, requested=0.5, model="gpt-4o"
    )
    assert str(error) == (
        "budget 'team' of $1,000.00 has no room for this call to gpt-4o: spent $999.50, in flight "
        "$0.25, uncertain $0.125, this call needs at least $0.50. Raise the limit with "
        "budget.top_up(), send a shorter prompt, or give a cheaper fallback. Settle "
        "uncertain charges with budget.resolve()."
    )


def test_a_refusal_of_tokens_speaks_of_tokens() -> None:
    error = BudgetExceeded(1_000, 990, quantity="output_tokens", requested=50, waited=2.0)
    assert "budget 'budget' of 1,000 output tokens" in str(error)
    assert "needs at least 50 output tokens, waited 2.0 s" in str(error)


@pytest.mark.parametrize(
    ("spent", "reserved", "uncertain", "remaining"),
    [(1.0, 1.0, 0.5, 2.5), (5.0, 0.0, 0.0, 0.0), (7.0, 0.0, 0.0, 0.0)],
)
def test_what_remains_is_never_negative(
    spent: float, reserved: float, uncertain: float, remaining: float
) -> None:
    error = BudgetExceeded(5.0, spent, reserved=reserved, uncertain=uncertain)
    assert (error.limit, error.remaining) == (5.0, remaining)


def test_an_unknown_model_shows_what_is_near_and_how_to_give_a_price() -> None:
    error = UnknownModelError("gpt-5o", ["gpt-5", "gpt-4o"], "azure", ["openai"])
    assert "'gpt-5o' of provider 'azure'" in str(error)
    assert "Nearest known: gpt-5, gpt-4o." in str(error)
    assert "Providers that list it: openai." in str(error)
    assert "prices={'gpt-5o': Price(" in str(error)
    assert 'ListPrice("gpt-5o", "openai")' in str(error)
    other = pickle.loads(pickle.dumps(error))
    assert (str(other), other.nearest) == (str(error), ("gpt-5", "gpt-4o"))
    assert other.elsewhere == ("openai",)


@pytest.mark.parametrize(
    ("kind", "also"),
    [
        (BudgetExceeded, RuntimeError),
        (UnknownModelError, LookupError),
        (UnmeteredError, RuntimeError),
        (NoBudgetError, LookupError),
    ],
)
def test_the_tree_of_errors(kind: type, also: type) -> None:
    assert issubclass(kind, TokenFenceError)
    assert issubclass(kind, also)


def test_a_call_without_a_model_is_told_to_name_one() -> None:
    assert "Give model=" in str(UnknownModelError(""))
    assert "prices=" not in str(UnknownModelError(""))


@pytest.mark.parametrize(
    ("quantity", "helps", "does_not"),
    [
        ("usd", ["shorter prompt", "cheaper fallback"], ["max_tokens"]),
        ("calls", [], ["max_tokens", "fallback", "prompt"]),
        ("tokens", ["shorter prompt"], ["max_tokens", "fallback"]),
        ("input_tokens", ["shorter prompt"], ["max_tokens", "fallback"]),
        ("output_tokens", [], ["max_tokens", "fallback", "prompt"]),
    ],
)
def test_a_refusal_advises_what_can_help(
    quantity: str, helps: list[str], does_not: list[str]
) -> None:
    advice = str(BudgetExceeded(10, 10, quantity=quantity)).partition(".")[2]
    assert "top_up()" in advice
    assert all(word in advice for word in helps)
    assert not any(word in advice for word in does_not)


@pytest.mark.parametrize(("uncertain", "told"), [(0.0, False), (4.0, True)])
def test_a_refusal_says_how_uncertain_charges_are_settled(uncertain: float, told: bool) -> None:
    message = str(BudgetExceeded(5, 1, uncertain=uncertain))
    assert ("budget.resolve()" in message) is told


def test_one_call_is_not_calls() -> None:
    message = str(BudgetExceeded(1, 1, quantity="calls", requested=1, reserved=2))
    assert "of 1 call has no room" in message
    assert "spent 1 call, in flight 2 calls, this call needs at least 1 call." in message


@pytest.mark.parametrize("quantity", ["usd", "calls", "tokens", "input_tokens", "output_tokens"])
def test_a_refusal_of_what_nothing_can_replace_advises_no_fallback(quantity: str) -> None:
    error = BudgetExceeded(10, 10, quantity=quantity, replaceable=False)
    assert "fallback" not in str(error)
    assert "top_up()" in str(error)
