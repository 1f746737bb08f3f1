-- Accounts: making, reading and changing them. All but the reading runs under the tree's lock.

-- The states of a path in its order, each as an array of AccountState's fields.
-- If an account was never opened: its name, as {"unknown": name}.
CREATE FUNCTION tokenfence.states(path text[]) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
    result jsonb;
BEGIN
    SELECT jsonb_agg(
        jsonb_build_array(
            limit_usd, limit_calls, limit_tokens, limit_input, limit_output,
            spent_usd, spent_calls, spent_input, spent_output,
            reserved_usd, reserved_calls, reserved_input, reserved_output,
            uncertain_usd, uncertain_calls, uncertain_input, uncertain_output
        ) ORDER BY array_position(path, name)
    ) INTO result
    FROM tokenfence.accounts WHERE name = ANY (path);
    IF coalesce(jsonb_array_length(result), 0) < cardinality(path) THEN
        RETURN tokenfence.unknown(path);
    END IF;
    RETURN result;
END
$$;

CREATE FUNCTION tokenfence.unknown(path text[]) RETURNS jsonb
LANGUAGE plpgsql AS $$
BEGIN
    RETURN (
        SELECT jsonb_build_object('unknown', account)
        FROM unnest(path) AS account
        WHERE NOT EXISTS (SELECT FROM tokenfence.accounts WHERE name = account)
        LIMIT 1
    );
END
$$;

-- Add to the three parts of accounts; those that are gone are passed over.
CREATE FUNCTION tokenfence.add(
    names text[], spent bigint[], reserved bigint[], uncertain bigint[]
) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE tokenfence.accounts SET
        spent_usd = spent_usd + spent[1],
        spent_calls = spent_calls + spent[2],
        spent_input = spent_input + spent[3],
        spent_output = spent_output + spent[4],
        reserved_usd = reserved_usd + reserved[1],
        reserved_calls = reserved_calls + reserved[2],
        reserved_input = reserved_input + reserved[3],
        reserved_output = reserved_output + reserved[4],
        uncertain_usd = uncertain_usd + uncertain[1],
        uncertain_calls = uncertain_calls + uncertain[2],
        uncertain_input = uncertain_input + uncertain[3],
        uncertain_output = uncertain_output + uncertain[4]
    WHERE name = ANY (names);
END
$$;

-- Make an account, or give it other limits; whether it was made.
CREATE FUNCTION tokenfence.open(account text, limits bigint[]) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO tokenfence.accounts (
        name, given, limit_usd, limit_calls, limit_tokens, limit_input, limit_output
    ) VALUES (account, limits, limits[1], limits[2], limits[3], limits[4], limits[5])
    ON CONFLICT (name) DO NOTHING;
    IF FOUND THEN
        RETURN true;
    END IF;
    UPDATE tokenfence.accounts SET
        given = limits,
        limit_usd = limits[1],
        limit_calls = limits[2],
        limit_tokens = limits[3],
        limit_input = limits[4],
        limit_output = limits[5]
    WHERE name = account AND given IS DISTINCT FROM limits AND num_nonnulls(VARIADIC limits) > 0;
    RETURN false;
END
$$;

CREATE FUNCTION tokenfence.book(path text[], spent bigint[]) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
    unknown jsonb := tokenfence.unknown(path);
BEGIN
    IF unknown IS NULL THEN
        PERFORM tokenfence.add(path, spent, '{0,0,0,0}', '{0,0,0,0}');
    END IF;
    RETURN coalesce(unknown, 'true');
END
$$;

-- Change the limits of the first account, where there are any.
CREATE FUNCTION tokenfence.adjust(path text[], changes bigint[], tokens bigint) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
    unknown jsonb := tokenfence.unknown(path);
BEGIN
    IF unknown IS NOT NULL THEN
        RETURN unknown;
    END IF;
    UPDATE tokenfence.accounts SET
        limit_usd = limit_usd + changes[1],
        limit_calls = limit_calls + changes[2],
        limit_tokens = limit_tokens + tokens,
        limit_input = limit_input + changes[3],
        limit_output = limit_output + changes[4]
    WHERE name = path[1];
    RETURN tokenfence.states(path);
END
$$;

-- Give the first account of a path these limits; null is none.
CREATE FUNCTION tokenfence.set_limits(path text[], limits bigint[]) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
    unknown jsonb := tokenfence.unknown(path);
BEGIN
    IF unknown IS NOT NULL THEN
        RETURN unknown;
    END IF;
    UPDATE tokenfence.accounts SET
        limit_usd = limits[1],
        limit_calls = limits[2],
        limit_tokens = limits[3],
        limit_input = limits[4],
        limit_output = limits[5]
    WHERE name = path[1];
    RETURN tokenfence.states(path);
END
$$;

-- Forget what is spent and uncertain; the states before.
CREATE FUNCTION tokenfence.reset(names text[]) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
    before jsonb := tokenfence.states(names);
BEGIN
    IF jsonb_typeof(before) = 'array' THEN
        UPDATE tokenfence.accounts SET
            spent_usd = 0, spent_calls = 0, spent_input = 0, spent_output = 0,
            uncertain_usd = 0, uncertain_calls = 0, uncertain_input = 0, uncertain_output = 0
        WHERE name = ANY (names);
        PERFORM tokenfence.forget_charges(names);
    END IF;
    RETURN before;
END
$$;

-- Forget an account in which nothing is reserved; whether it was done.
CREATE FUNCTION tokenfence.drop(account text) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM tokenfence.accounts
    WHERE name = account
        AND (reserved_usd, reserved_calls, reserved_input, reserved_output) = (0, 0, 0, 0);
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM tokenfence.forget_charges(ARRAY[account]);
    RETURN true;
END
$$;

-- Keep the first moment that is given; whether this was the first, and which one is kept.
CREATE FUNCTION tokenfence.anchor(name text, moment double precision) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
    kept double precision;
BEGIN
    INSERT INTO tokenfence.anchors VALUES (name, moment) ON CONFLICT DO NOTHING;
    IF FOUND THEN
        RETURN jsonb_build_array(true, NULL, moment);
    END IF;
    SELECT at INTO kept FROM tokenfence.anchors WHERE account = name;
    RETURN jsonb_build_array(false, NULL, kept);
END
$$;
