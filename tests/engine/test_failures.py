"""What a failed call may have cost, by its status or its exception."""

import socket

import pytest

from tokenfence_integrations import BudgetExceeded
from tokenfence_integrations.engine.calls.failures import cost_of_exception, cost_of_status


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 429])
def test_refusals_are_free(status: int) -> None:
    assert cost_of_status(status) == "free"


@pytest.mark.parametrize("status", [408, 499, 500, 502, 503, 504, 529])
def test_a_finished_generation_may_hide_behind_a_time_out_or_a_broken_server(status: int) -> None:
    assert cost_of_status(status) == "unknown"


def named(name: str, *bases: type[BaseException]) -> BaseException:
    """An exception of a class of this name, as some library has it."""
    return type(name, bases or (Exception,), {})()


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(),
        socket.gaierror(),
        named("ConnectError"),
        named("ConnectTimeout", TimeoutError),
        named("PoolTimeout"),
        named("Mine", type(named("ConnectError"))),
    ],
)
def test_what_was_surely_not_sent_is_free(error: BaseException) -> None:
    assert cost_of_exception(error) == "free"


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError(),
        ConnectionResetError(),
        BrokenPipeError(),
        KeyboardInterrupt(),
        GeneratorExit(),
        UnicodeEncodeError("ascii", "\u20ac", 0, 1, "of an answer that is printed, for one"),
        named("ReadTimeout"),
        named("RemoteProtocolError"),
        ValueError(),
        BudgetExceeded(1, 1),  # of another call, made after this one was paid for
    ],
)
def test_everything_else_is_unknown(error: BaseException) -> None:
    assert cost_of_exception(error) == "unknown"


class Response:
    def __init__(self, status_code: object) -> None:
        self.status_code = status_code


class StatusError(Exception):
    def __init__(self, status_code: object) -> None:
        self.response = Response(status_code)


class ClientResponseError(Exception):
    """As aiohttp names it."""

    status = 429


class HTTPException(Exception):
    """As a web framework names its own."""

    status_code = 422


@pytest.mark.parametrize(
    ("status", "cost"), [(429, "free"), (500, "unknown"), (200, "unknown"), ("429", "unknown")]
)
def test_the_status_of_an_error_counts(status: object, cost: str) -> None:
    assert cost_of_exception(StatusError(status)) == cost


def test_the_status_of_an_aiohttp_error_counts() -> None:
    assert cost_of_exception(ClientResponseError()) == "free"


def test_a_web_frameworks_own_error_says_nothing_of_the_call() -> None:
    assert cost_of_exception(HTTPException()) == "unknown"


def test_causes_are_looked_at() -> None:
    def raised(cause: BaseException) -> BaseException:
        error = RuntimeError("Connection error.")
        error.__cause__ = cause
        return error

    assert cost_of_exception(raised(named("ConnectError"))) == "free"
    assert cost_of_exception(raised(raised(ConnectionRefusedError()))) == "free"
    assert cost_of_exception(raised(named("ReadTimeout"))) == "unknown"


def test_what_only_happened_while_handling_another_error_is_no_cause() -> None:
    error = TimeoutError()
    error.__context__ = ConnectionRefusedError()
    assert cost_of_exception(error) == "unknown"


def test_an_error_that_is_its_own_cause_is_looked_at_once() -> None:
    error, other = RuntimeError(), RuntimeError()
    error.__cause__, other.__cause__ = other, error
    assert cost_of_exception(error) == "unknown"
