"""The forecast of output lengths, against samples whose quantiles are known."""

import math
import random
from statistics import NormalDist

from hypothesis import given
from hypothesis import strategies as st

from tokenfence_integrations.engine.forecast import UNREAD, Forecast, Forecasts, OutputForecast


def lognormal(median: float, p99: float, count: int) -> list[int]:
    """Seeded lengths with this median and 99th percentile."""
    deviation = math.log(p99 / median) / NormalDist().inv_cdf(0.99)
    chance = random.Random(7)
    return [round(chance.lognormvariate(math.log(median), deviation)) for _ in range(count)]


def learned(lengths: list[int]) -> Forecast:
    forecast = OutputForecast()
    for length in lengths:
        forecast.observe(length)
    return forecast.forecast


def share_within(lengths: list[int], limit: int) -> float:
    return sum(length <= limit for length in lengths) / len(lengths)


def test_before_anything_is_known() -> None:
    assert OutputForecast().forecast.tail == 4_096
    assert 300 < OutputForecast().forecast.typical < 4_096


def test_most_answers_keep_within_typical_and_nearly_all_within_tail() -> None:
    lengths = lognormal(median=300, p99=4_000, count=5_000)
    forecast = learned(lengths[:500])
    rest = lengths[500:]
    assert 0.80 <= share_within(rest, forecast.typical) <= 0.96
    assert share_within(rest, forecast.tail) >= 0.98


def test_it_learns_short_answers_and_follows_a_change_of_task() -> None:
    short = learned(lognormal(20, 60, 300))
    assert short.typical < 60
    assert short.tail < 200
    changed = learned(lognormal(20, 60, 300) + lognormal(2_000, 6_000, 600))
    assert 2_000 < changed.typical < 10_000


def test_one_odd_answer_changes_little() -> None:
    usual = lognormal(300, 1_000, 200)
    assert learned([*usual, 30_000]).tail < 2 * learned(usual).tail


def test_an_answer_that_was_cut_short_raises_the_forecast_more_than_one_that_ended() -> None:
    cut, ended = OutputForecast(), OutputForecast()
    for _ in range(20):
        cut.observe(500, cut_short=True)
        ended.observe(500)
    assert cut.forecast.typical > ended.forecast.typical


@given(st.lists(st.integers(0, 1_000_000), max_size=50))
def test_whatever_it_sees_it_stays_a_forecast(lengths: list[int]) -> None:
    typical, tail = learned(lengths)
    assert 1 <= typical <= tail


def test_each_model_is_forecast_by_its_own_answers() -> None:
    forecasts, terse = Forecasts(), OutputForecast()
    for _ in range(50):
        forecasts.answers.append(("terse", 10, False))
        forecasts.answers.append(("cut", 10, True))
        terse.observe(10)
    assert forecasts.of("terse") == terse.forecast
    assert forecasts.of("terse").typical < forecasts.of("cut").typical
    assert forecasts.of("never seen") == OutputForecast().forecast


def test_answers_that_nobody_asks_about_do_not_pile_up() -> None:
    forecasts = Forecasts()
    for length in range(UNREAD * 3):
        forecasts.answers.append(("any", length, False))
    assert len(forecasts.answers) == UNREAD
