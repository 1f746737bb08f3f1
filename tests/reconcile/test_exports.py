"""Usage exports as providers and gateways write them, read by the names of their columns."""

from datetime import UTC, datetime

import pytest

from tokenfence_integrations.reconcile.exports import ExportError, Row, read_rows
from tokenfence_integrations.usage import Usage


def only(text: str) -> Row:
    export = read_rows(text.splitlines())
    assert export.unread == ()
    [row] = export.rows
    return row


def at(*when: int) -> float:
    return datetime(*when, tzinfo=UTC).timestamp()  # type: ignore[arg-type, misc]


def test_openai_s_usage_of_completions_by_the_minute() -> None:
    row = only(
        "start_time,end_time,start_time_iso,end_time_iso,project_id,num_model_requests,model,batch,"
        "service_tier,input_tokens,output_tokens,input_cached_tokens\n"
        "1795512600,1795512660,2026-11-24T09:30:00+00:00,2026-11-24T09:31:00+00:00,proj_1,3,"
        "gpt-4o-2024-08-06,True,default,1200,80,1024"
    )
    assert row == Row(
        2,
        "gpt-4o-2024-08-06",
        at(2026, 11, 24, 9, 30),
        at(2026, 11, 24, 9, 31),
        3,
        Usage(1200, 80, 1024),
        None,
        "",
        True,
    )


def test_anthropic_s_usage_by_the_day() -> None:
    row = only(
        "usage_date_utc,model_version,api_key,workspace,usage_type,context_window,"
        "usage_input_tokens_no_cache,usage_input_tokens_cache_write_5m,"
        "usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,usage_output_tokens,"
        "web_search_count\n"
        "2026-11-24,claude-sonnet-4-5-20250929,key,Default,standard,≤ 200k,100,20,30,400,50,0"
    )
    assert (row.begin, row.end) == (at(2026, 11, 24), at(2026, 11, 25))
    assert row.requests is None
    assert row.usage == Usage(550, 50, 400, cache_write_tokens=50, cache_write_1h_tokens=30)


def test_a_gateway_s_export_of_single_requests_with_costs() -> None:
    row = only(
        "\ufeffgeneration_id,created_at,cost_total,tokens_prompt,tokens_completion,model_permaslug\n"
        "gen-1,2026-11-24 09:30:00.500,0.00123456789,100,20,openai/gpt-4o".lstrip("\ufeff")
    )
    assert (row.requests, row.cost, row.usage) == (1, 1_234_568, Usage(100, 20))
    assert row.begin == row.end == at(2026, 11, 24, 9, 30) + 0.5


def test_a_gateway_s_log_with_a_beginning_and_an_end() -> None:
    row = only(
        "request_id,Model, startTime ,endTime,spend,prompt_tokens,completion_tokens\n"
        "chatcmpl-1,gpt-4o,2026-11-24T09:30:00Z,2026-11-24T09:30:07Z,0.5,1,2"
    )
    assert (row.end - row.begin, row.cost, row.requests) == (7, 500_000_000, 1)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("1795512600", at(2026, 11, 24, 9, 30)),
        ("1795512600.5", at(2026, 11, 24, 9, 30) + 0.5),
        ("1795512600000", at(2026, 11, 24, 9, 30)),
        ("2026-11-24T09:30:00Z", at(2026, 11, 24, 9, 30)),
        ("2026-11-24T11:30:00+02:00", at(2026, 11, 24, 9, 30)),
        ("2026-11-24 09:30:00 UTC", at(2026, 11, 24, 9, 30)),
        ("2026-11-24 09:30", at(2026, 11, 24, 9, 30)),
    ],
)
def test_times_are_read_as_they_are_written(text: str, moment: float) -> None:
    row = only(f"timestamp,model,cost\n{text},gpt-4o,1")
    assert row.begin == row.end == moment


def test_a_time_in_which_nothing_happened_is_no_row() -> None:
    export = read_rows(["start_time,end_time,model,cost", "1795512600,1795512660,,"])
    assert export == ((), ())


@pytest.mark.parametrize(
    ("cells", "why"),
    [
        ("soon,gpt-4o,1,,,", "'soon' is no time"),
        (",gpt-4o,1,,,", "'' is no time"),
        ("1795512600,,1,,,", "it names no model"),
        ("1795512600,gpt-4o,,5,,", "neither tokens nor a cost"),
        ("1795512600,gpt-4o,-1,,,", "'-1' is no cost of 0 or more"),
        ("1795512600,gpt-4o,nan,,,", "'nan' is no cost"),
        ("1795512600,gpt-4o,much,,,", "'much' is no cost"),
        ("1795512600,gpt-4o,1,,,eur", "its cost is in eur"),
        ("1795512600,gpt-4o,,1.5,2,", "'1.5' is no number of input"),
    ],
)
def test_what_cannot_be_read_is_told_by_its_line(cells: str, why: str) -> None:
    header = "timestamp,model,cost,input_tokens,output_tokens,currency"
    export = read_rows([header, "1795512600,gpt-4o,1,,,usd", cells])
    assert len(export.rows) == 1
    [told] = export.unread
    assert told.startswith("line 3: ")
    assert why in told


@pytest.mark.parametrize(
    ("header", "what"),
    [
        ("model,cost", "time"),
        ("date,cost", "model"),
        ("date,model", "tokens or cost"),
        ("", "time"),
    ],
)
def test_a_file_without_the_columns_is_no_export(header: str, what: str) -> None:
    with pytest.raises(ExportError, match=f"has no column of {what}: one of"):
        read_rows([header, "1,2"])
