"""`decide`, rule by rule, without a clock, a thread or a socket.

Unless a test says otherwise, a token costs one nano-dollar, so that room in dollars and room in
output tokens are the same number.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfence_integrations.engine.calls.admission import (
    ENOUGH,
    Admit,
    Headroom,
    Option,
    Refuse,
    Room,
    Wait,
    affordable,
    bound,
    decide,
)
from tokenfence_integrations.stores.base import Amount

NANO = 1000
"""Pico-dollars per nano-dollar: the rate of a token here."""


def option(model: str = "wanted", **changes: int | None) -> Option:
    """A model: no input, an answer of at most 100 tokens wished, by default."""
    plain = Option(
        model=model,
        input_tokens=0,
        input_rate=NANO,
        output_rate=NANO,
        call_price=0,
        choices=1,
        wish=100,
        ceiling=10_000,
        typical=300,
        tail=4_000,
    )
    return plain._replace(**changes)


def open_ended(model: str = "wanted", **changes: int | None) -> Option:
    """A model asked without an output maximum."""
    return option(model, **{"wish": None, **changes})


def usd(
    now: int, later: int | None = None, *, settled: float = 0.5, fresh: bool = False
) -> Headroom:
    """A budget of dollars alone, of which so many nano-dollars are free, now and later."""
    rooms = [Room(left, *[ENOUGH] * 4) for left in (now, now if later is None else later)]
    return Headroom(rooms[0], rooms[1], settled, fresh)


def ask(
    room: Headroom,
    *options: Option,
    rivals: int = 0,
    patient: bool = True,
    min_output_tokens: int = 16,
) -> Admit | type[Wait] | type[Refuse]:
    """The decision for these models: an admission, or which of the others it is."""
    decision = decide(
        options or (option(),),
        room,
        rivals=rivals,
        patient=patient,
        min_output_tokens=min_output_tokens,
    )
    return decision if isinstance(decision, Admit) else type(decision)


# The caller's own maximum


def test_a_wanted_model_that_fits_is_admitted_whole() -> None:
    assert ask(usd(100)) == Admit(option(), 100)


def test_one_nano_dollar_short_is_not_whole() -> None:
    assert ask(usd(99)) == Admit(option(), 99)


def test_an_answer_without_output_fits_with_its_input_alone() -> None:
    embedding = option(input_tokens=40, output_rate=0, wish=0)
    assert ask(usd(40), embedding) == Admit(embedding, 0)
    assert ask(usd(39), embedding) == Refuse


def test_all_choices_have_to_fit() -> None:
    twice = option(choices=2)
    assert ask(usd(200), twice) == Admit(twice, 100)
    assert ask(usd(199), twice) == Admit(twice, 99)


def test_input_and_call_price_count() -> None:
    dear = option(input_tokens=30, call_price=20 * NANO)
    assert ask(usd(150), dear) == Admit(dear, 100)
    assert ask(usd(149), dear) == Admit(dear, 99)
    assert ask(usd(49), dear) == Refuse


def test_it_waits_for_calls_of_others() -> None:
    assert ask(usd(99, later=100)) == Wait


def test_it_waits_even_for_a_part_of_its_wish() -> None:
    assert ask(usd(10, later=60)) == Wait


def test_it_does_not_wait_with_nothing_in_flight() -> None:
    assert ask(usd(15)) == Refuse


def test_it_does_not_wait_for_what_could_never_be_enough() -> None:
    assert ask(usd(5, later=15)) == Refuse


def test_it_does_not_wait_for_calls_that_hold_nothing_it_lacks() -> None:
    now = Room(50, 7, ENOUGH, ENOUGH, ENOUGH)
    room = Headroom(now, now._replace(calls=9), 0.5, fresh=False)
    assert ask(room) == Admit(option(), 50)


def test_out_of_patience_it_takes_what_there_is() -> None:
    assert ask(usd(40, later=100), patient=False) == Admit(option(), 40)
    assert ask(usd(15, later=100), patient=False) == Refuse


# Fallbacks


CHEAP = option("cheap", output_rate=NANO // 10)
CHEAPEST = option("cheapest", output_rate=NANO // 100)


def test_the_fallback_takes_over_when_the_wanted_model_no_longer_fits() -> None:
    assert ask(usd(50), option(), CHEAP) == Admit(CHEAP, 100)


def test_a_chain_is_tried_in_order() -> None:
    assert ask(usd(10), option(), CHEAP, CHEAPEST) == Admit(CHEAP, 100)
    assert ask(usd(9), option(), CHEAP, CHEAPEST) == Admit(CHEAPEST, 100)


def test_waiting_for_the_wanted_model_comes_before_its_fallback() -> None:
    assert ask(usd(50, later=100), option(), CHEAP) == Wait


def test_the_fallback_comes_before_waiting_for_a_part_of_the_wanted_model() -> None:
    assert ask(usd(50, later=60), option(), CHEAP) == Admit(CHEAP, 100)


def test_a_fallback_is_waited_for_too() -> None:
    assert ask(usd(5, later=10), option(), CHEAP) == Wait


def test_a_fresh_budget_caps_its_first_call_rather_than_downgrade_it() -> None:
    assert ask(usd(50, fresh=True), option(), CHEAP) == Admit(option(), 50)


def test_a_fresh_budget_downgrades_where_the_wanted_model_is_of_no_use() -> None:
    assert ask(usd(15, fresh=True), option(), CHEAP) == Admit(CHEAP, 100)


def test_a_fresh_child_still_waits_for_what_is_in_flight_above_it() -> None:
    assert ask(usd(50, later=100, fresh=True), option(), CHEAP) == Wait


def test_later_models_are_not_even_looked_at_when_the_first_fits() -> None:
    def models():  # type: ignore[no-untyped-def]
        yield option()
        raise AssertionError("the second model was worked out")

    decision = decide(models(), usd(100), rivals=0, patient=True, min_output_tokens=16)
    assert decision == Admit(option(), 100)


# Caps


def test_the_smallest_useful_cap() -> None:
    assert ask(usd(16)) == Admit(option(), 16)
    assert ask(usd(15)) == Refuse
    assert ask(usd(15), min_output_tokens=15) == Admit(option(), 15)


def test_a_wish_below_the_smallest_useful_cap_is_useful_whole_or_not_at_all() -> None:
    short = option(wish=5)
    assert ask(usd(5), short) == Admit(short, 5)
    assert ask(usd(4), short) == Refuse


def test_what_cannot_be_capped_is_admitted_whole_or_not_at_all() -> None:
    assert ask(usd(99), min_output_tokens=ENOUGH) == Refuse
    assert ask(usd(100), min_output_tokens=ENOUGH) == Admit(option(), 100)
    bound_to_ceiling = open_ended(ceiling=200)
    assert ask(usd(199), bound_to_ceiling, min_output_tokens=ENOUGH) == Refuse
    assert ask(usd(200), bound_to_ceiling, min_output_tokens=ENOUGH) == Admit(bound_to_ceiling, 200)


def test_of_all_caps_the_longest_is_taken() -> None:
    cheap = CHEAP._replace(wish=1_000)
    wanted = option(wish=1_000)
    assert ask(usd(50), wanted, cheap) == Admit(cheap, 500)


# No maximum


def test_a_lone_caller_gets_all_that_the_budget_can_pay() -> None:
    assert ask(usd(5_000), open_ended()) == Admit(open_ended(), 5_000)


def test_but_not_more_than_the_model_can_say() -> None:
    assert ask(usd(50_000), open_ended()) == Admit(open_ended(), 10_000)


def test_a_lone_caller_falls_back_before_it_gets_less_than_a_typical_answer() -> None:
    cheap = open_ended("cheap", output_rate=NANO // 10)
    assert ask(usd(300), open_ended(), cheap) == Admit(open_ended(), 300)
    assert ask(usd(299), open_ended(), cheap) == Admit(cheap, 2_990)


def test_a_lone_caller_without_fallback_gets_the_rest() -> None:
    assert ask(usd(16), open_ended()) == Admit(open_ended(), 16)
    assert ask(usd(15), open_ended()) == Refuse


def test_with_others_in_flight_nearly_every_answer_has_room() -> None:
    assert ask(usd(4_000, later=9_000), open_ended()) == Admit(open_ended(), 4_000)
    assert ask(usd(9_000, later=9_001), open_ended()) == Admit(open_ended(), 4_000)


def test_with_others_in_flight_less_than_that_is_waited_for() -> None:
    assert ask(usd(3_999, later=9_000), open_ended()) == Wait
    assert ask(usd(0, later=300), open_ended()) == Wait


def test_a_rich_budget_caps_nobody() -> None:
    long_answers = open_ended(ceiling=100_000)
    rich = usd(128 * 100_000, later=200 * 100_000)
    assert ask(rich, long_answers) == Admit(long_answers, 100_000)


@pytest.mark.parametrize("waiting", [1, 9, 99])
def test_no_call_pins_the_budget_while_others_queue(waiting: int) -> None:
    decision = ask(usd(100_000), open_ended(tail=50), rivals=waiting)
    assert decision == Admit(open_ended(tail=50), min(10_000, 100_000 // (waiting + 1)))


def test_a_share_is_never_less_than_nearly_every_answer_needs() -> None:
    assert ask(usd(20_000), open_ended(), rivals=99) == Admit(open_ended(), 4_000)


def test_where_waiting_helps_nobody_a_typical_answer_is_enough() -> None:
    assert ask(usd(3_999), open_ended(), rivals=99) == Admit(open_ended(), 300)
    assert ask(usd(3_999), open_ended(), rivals=1) == Admit(open_ended(), 1_999)


def test_a_model_that_answers_shortly_is_not_held_to_the_forecast() -> None:
    short = open_ended(ceiling=50)
    assert ask(usd(50, later=100), short) == Admit(short, 50)


# Other quantities


@pytest.mark.parametrize(
    ("room", "fits"),
    [
        (Room(ENOUGH, 1, ENOUGH, ENOUGH, ENOUGH), ENOUGH),
        (Room(ENOUGH, 0, ENOUGH, ENOUGH, ENOUGH), -1),
        (Room(ENOUGH, 9, 130, ENOUGH, ENOUGH), 50),
        (Room(ENOUGH, 9, 29, ENOUGH, ENOUGH), -1),
        (Room(ENOUGH, 9, ENOUGH, 30, ENOUGH), ENOUGH),
        (Room(ENOUGH, 9, ENOUGH, 29, ENOUGH), -1),
        (Room(ENOUGH, 9, ENOUGH, ENOUGH, 61), 30),
        (Room(90, 9, 130, 30, 70), 30),
        (Room(-1, 9, ENOUGH, ENOUGH, ENOUGH), -1),
    ],
)
def test_every_quantity_limits_the_answer(room: Room, fits: int) -> None:
    assert affordable(option(input_tokens=30, choices=2), room) == fits


def test_a_free_model_is_limited_by_tokens_alone() -> None:
    free = option(input_tokens=10, input_rate=0, output_rate=0)
    assert affordable(free, Room(0, ENOUGH, 25, ENOUGH, ENOUGH)) == 15
    assert affordable(free, Room(0, ENOUGH, ENOUGH, ENOUGH, ENOUGH)) == ENOUGH


def test_a_bound_rounds_up() -> None:
    assert bound(option(input_tokens=1, input_rate=1, wish=0), 0) == Amount(1, 1, 1, 0)
    assert bound(option(input_tokens=3, choices=2, call_price=1), 5) == Amount(14, 1, 3, 10)


# Whatever the state


amounts = st.integers(0, 400)
limited = st.one_of(st.just(ENOUGH), st.integers(-50, 400))
rooms = st.builds(Room, limited, limited, limited, limited, limited)


@st.composite
def options(draw: st.DrawFn) -> list[Option]:
    """A model and up to two fallbacks, for the same call."""
    wish = draw(st.one_of(st.none(), amounts))
    choices = draw(st.integers(1, 3))
    found = []
    for model in ("wanted", "second", "third")[: draw(st.integers(1, 3))]:
        typical = draw(amounts)
        found.append(
            Option(
                model,
                input_tokens=draw(amounts),
                input_rate=draw(st.integers(0, 2_000)),
                output_rate=draw(st.integers(0, 2_000)),
                call_price=draw(st.integers(0, 20_000)),
                choices=choices,
                wish=wish,
                ceiling=draw(amounts),
                typical=typical,
                tail=typical + draw(amounts),
            )
        )
    return found


@st.composite
def headrooms(draw: st.DrawFn) -> Headroom:
    now = draw(rooms)
    later = Room(*[n if n == ENOUGH else n + draw(st.integers(0, 200)) for n in now])
    return Headroom(now, later, draw(st.floats(0, 1)), draw(st.booleans()))


questions = st.tuples(options(), st.integers(0, 5), st.booleans(), st.integers(1, 50))


def _decide(
    question: tuple[list[Option], int, bool, int], room: Headroom
) -> Admit | type[Wait] | type[Refuse]:
    models, rivals, patient, least = question
    return ask(room, *models, rivals=rivals, patient=patient, min_output_tokens=least)


def fits(amount: Amount, room: Room) -> bool:
    needed = (amount.usd, amount.calls, amount.tokens, amount.input_tokens, amount.output_tokens)
    return all(part <= free for part, free in zip(needed, room, strict=True))


@given(questions, headrooms())
def test_what_is_admitted_always_fits(
    question: tuple[list[Option], int, bool, int], room: Headroom
) -> None:
    decision = _decide(question, room)
    if isinstance(decision, Admit):
        chosen, output_tokens = decision
        assert fits(bound(chosen, output_tokens), room.now)
        assert 0 <= output_tokens <= (chosen.ceiling if chosen.wish is None else chosen.wish)


@given(questions, headrooms())
def test_one_waits_only_while_others_are_in_flight_and_as_long_as_one_may(
    question: tuple[list[Option], int, bool, int], room: Headroom
) -> None:
    if _decide(question, room) is Wait:
        assert room.now != room.later
        assert question[2], "it had no patience left"


@given(questions, headrooms())
def test_nothing_is_refused_that_would_fit_now_or_later(
    question: tuple[list[Option], int, bool, int], room: Headroom
) -> None:
    models, _, patient, least = question
    if _decide(question, room) is Refuse:
        for model in models:
            useful = min(least, model.ceiling if model.wish is None else model.wish)
            assert not fits(bound(model, useful), room.now)
            assert not (patient and fits(bound(model, useful), room.later))


@given(questions, headrooms(), st.tuples(*[st.integers(0, 300)] * 5))
def test_more_room_never_turns_an_admission_into_a_refusal(
    question: tuple[list[Option], int, bool, int], room: Headroom, more: tuple[int, ...]
) -> None:
    now, later = (
        Room(*[n if n == ENOUGH else n + m for n, m in zip(part, more, strict=True)])
        for part in (room.now, room.later)
    )
    if isinstance(_decide(question, room), Admit):
        assert _decide(question, room._replace(now=now, later=later)) is not Refuse
