-- What people look at. Dollars are exact: a nano-dollar is the ninth place.

CREATE VIEW tokenfence.budgets AS
SELECT
    name,
    (limit_usd / 1e9)::numeric(20, 9) AS limit_usd,
    (spent_usd / 1e9)::numeric(20, 9) AS spent_usd,
    (reserved_usd / 1e9)::numeric(20, 9) AS reserved_usd,
    (uncertain_usd / 1e9)::numeric(20, 9) AS uncertain_usd,
    limit_calls,
    spent_calls AS calls,
    reserved_calls AS calls_in_flight,
    uncertain_calls,
    limit_tokens,
    limit_input AS limit_input_tokens,
    spent_input AS input_tokens,
    limit_output AS limit_output_tokens,
    spent_output AS output_tokens
FROM tokenfence.accounts;

CREATE VIEW tokenfence.calls AS
SELECT
    at,
    accounts[1] AS budget,
    outcome,
    model,
    model_asked,
    (cost / 1e9)::numeric(20, 9) AS cost_usd,
    (uncertain / 1e9)::numeric(20, 9) AS uncertain_usd,
    (bound / 1e9)::numeric(20, 9) AS bound_usd,
    (usage->>'input_tokens')::bigint AS input_tokens,
    (usage->>'output_tokens')::bigint AS output_tokens,
    cap,
    truncated,
    waited AS waited_seconds,
    tags,
    accounts
FROM tokenfence.ledger;
