-- Calls: reserving, ending, and what is charged for those of unknown outcome. Under the tree's lock.

-- Reserve in all accounts of a path or in none, once. room: what has to fit; null: whatever does.
CREATE FUNCTION tokenfence.reserve(
    owner bigint, path text[], key bigint, amount bigint[], room bigint[], what text, idle boolean
) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
    known bigint;
    fits boolean;
    is_there boolean;
BEGIN
    SELECT count(*), room IS NULL OR bool_and(
        (limit_usd IS NULL OR spent_usd + reserved_usd + uncertain_usd <= limit_usd - room[1])
        AND (limit_calls IS NULL
            OR spent_calls + reserved_calls + uncertain_calls <= limit_calls - room[2])
        AND (limit_input IS NULL
            OR spent_input + reserved_input + uncertain_input <= limit_input - room[3])
        AND (limit_output IS NULL
            OR spent_output + reserved_output + uncertain_output <= limit_output - room[4])
        AND (limit_tokens IS NULL
            OR spent_input + reserved_input + uncertain_input
                + spent_output + reserved_output + uncertain_output <= limit_tokens - room[5])
    ), EXISTS (
        SELECT FROM tokenfence.reservations r WHERE r.owner = reserve.owner AND r.key = reserve.key
    ) INTO known, fits, is_there
    FROM tokenfence.accounts WHERE name = ANY (path);
    IF is_there THEN
        RETURN 'true';
    ELSIF known < cardinality(path) THEN
        RETURN tokenfence.unknown(path);
    ELSIF NOT fits THEN
        RETURN jsonb_build_array(false, tokenfence.states(path));
    END IF;
    WITH changed AS (
        UPDATE tokenfence.accounts SET
            reserved_usd = reserved_usd + amount[1],
            reserved_calls = reserved_calls + amount[2],
            reserved_input = reserved_input + amount[3],
            reserved_output = reserved_output + amount[4]
        WHERE name = ANY (path)
    )
    INSERT INTO tokenfence.reservations VALUES (
        owner, key, tokenfence.tree_of(path[1]), path,
        amount[1], amount[2], amount[3], amount[4], what, clock_timestamp(), idle
    );
    RETURN 'true';
END
$$;

-- Replace a reservation by what was spent and what is uncertain; whether there was one.
CREATE FUNCTION tokenfence.end_call(
    owner bigint, key bigint, spent bigint[], uncertain bigint[]
) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    call tokenfence.reservations;
    charge tokenfence.charges;
BEGIN
    DELETE FROM tokenfence.reservations r
    WHERE r.owner = end_call.owner AND r.key = end_call.key
    RETURNING * INTO call;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF call.expired IS NULL THEN
        PERFORM tokenfence.add(
            call.path, spent, ARRAY[-call.usd, -call.calls, -call.input, -call.output], uncertain
        );
    ELSE
        -- Its lease was over, and it is charged as uncertain: now the truth is known.
        DELETE FROM tokenfence.charges c
        WHERE c.owner = end_call.owner AND c.key = end_call.key
        RETURNING * INTO charge;
        IF FOUND THEN
            PERFORM tokenfence.add(
                charge.charged, '{0,0,0,0}', '{0,0,0,0}',
                ARRAY[-charge.usd, -charge.calls, -charge.input, -charge.output]
            );
        END IF;
        PERFORM tokenfence.add(call.path, spent, '{0,0,0,0}', uncertain);
    END IF;
    IF uncertain <> '{0,0,0,0}' THEN
        PERFORM tokenfence.charge(call, uncertain);
    END IF;
    RETURN true;
END
$$;

-- Book a part of a reservation, and keep another; whether there was one.
CREATE FUNCTION tokenfence.draw(
    owner bigint, key bigint, spent bigint[], uncertain bigint[], kept bigint[], what text
) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    call tokenfence.reservations;
    charge tokenfence.charges;
BEGIN
    SELECT * INTO call FROM tokenfence.reservations r
    WHERE r.owner = draw.owner AND r.key = draw.key;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF call.expired IS NULL THEN
        PERFORM tokenfence.add(
            call.path, spent,
            ARRAY[
                kept[1] - call.usd, kept[2] - call.calls, kept[3] - call.input, kept[4] - call.output
            ],
            uncertain
        );
    ELSE
        -- Its lease was over, and it is charged as uncertain: it is there again, unless that was
        -- forgotten by a reset.
        DELETE FROM tokenfence.charges c
        WHERE c.owner = draw.owner AND c.key = draw.key
        RETURNING * INTO charge;
        IF NOT FOUND THEN
            DELETE FROM tokenfence.reservations r WHERE r.owner = draw.owner AND r.key = draw.key;
            RETURN false;
        END IF;
        PERFORM tokenfence.add(
            charge.charged, '{0,0,0,0}', '{0,0,0,0}',
            ARRAY[-charge.usd, -charge.calls, -charge.input, -charge.output]
        );
        PERFORM tokenfence.add(call.path, spent, kept, uncertain);
    END IF;
    UPDATE tokenfence.reservations r SET
        usd = kept[1],
        calls = kept[2],
        input = kept[3],
        output = kept[4],
        idle = false,
        expired = NULL
    WHERE r.owner = draw.owner AND r.key = draw.key;
    IF uncertain <> '{0,0,0,0}' THEN
        INSERT INTO tokenfence.charges (
            tree, path, charged, usd, calls, input, output, what, at
        ) VALUES (
            call.tree, call.path, call.path,
            uncertain[1], uncertain[2], uncertain[3], uncertain[4], what, clock_timestamp()
        );
    END IF;
    IF call.usd > kept[1] + spent[1] + uncertain[1]
        OR call.calls > kept[2] + spent[2] + uncertain[2]
        OR call.input > kept[3] + spent[3] + uncertain[3]
        OR call.output > kept[4] + spent[4] + uncertain[4]
    THEN
        PERFORM tokenfence.tell(ARRAY[call.tree], ARRAY[call.path[1]]);
    END IF;
    RETURN true;
END
$$;

-- Note what is charged for a call of unknown outcome; its accounts are changed by the caller.
CREATE FUNCTION tokenfence.charge(call tokenfence.reservations, amount bigint[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO tokenfence.charges (
        owner, key, tree, path, charged, usd, calls, input, output, what, at
    ) VALUES (
        call.owner, call.key, call.tree, call.path, call.path,
        amount[1], amount[2], amount[3], amount[4], call.what, call.at
    );
END
$$;

-- Replace an uncertain charge by what the call did cost; whether there was one.
-- name: the tree and the number of the charge, as the store shows it.
CREATE FUNCTION tokenfence.resolve(name text, number bigint, spent bigint[]) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    charge tokenfence.charges;
BEGIN
    DELETE FROM tokenfence.charges
    WHERE id = number AND tree || ':' || id = name
    RETURNING * INTO charge;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM tokenfence.add(
        charge.charged, spent, '{0,0,0,0}',
        ARRAY[-charge.usd, -charge.calls, -charge.input, -charge.output]
    );
    -- Should its process come back after all: the call has ended.
    DELETE FROM tokenfence.reservations r WHERE r.owner = charge.owner AND r.key = charge.key;
    RETURN true;
END
$$;

-- Charges no longer count in accounts that were reset or dropped.
CREATE FUNCTION tokenfence.forget_charges(names text[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE tokenfence.charges
    SET charged = ARRAY(SELECT name FROM unnest(charged) AS name WHERE name <> ALL (names))
    WHERE tree = tokenfence.tree_of(names[1]) AND charged && names;
    DELETE FROM tokenfence.charges WHERE tree = tokenfence.tree_of(names[1]) AND charged = '{}';
END
$$;
