-- Leases, by the server's clock: a process that gives no sign of life for so long counts as dead.

-- Say that this owner lives, and lock it: what it was before; null if this comes too late.
CREATE FUNCTION tokenfence.sign_of_life(
    owner bigint, epoch bigint, seconds double precision, number bigint
) RETURNS tokenfence.owners
LANGUAGE plpgsql AS $$
DECLARE
    until timestamptz := clock_timestamp() + make_interval(secs => seconds);
    before tokenfence.owners;
BEGIN
    UPDATE tokenfence.owners o SET
        lease = until,
        gone = false,
        epoch = sign_of_life.epoch,
        number = greatest(was.number, sign_of_life.number),
        answers = '{}'
    FROM (SELECT * FROM tokenfence.owners WHERE id = owner FOR UPDATE) AS was
    WHERE o.id = owner AND was.epoch <= sign_of_life.epoch
    RETURNING was.* INTO before;
    IF NOT FOUND THEN
        INSERT INTO tokenfence.owners
        VALUES (owner, until, false, epoch, coalesce(number, 0), '{}')
        ON CONFLICT DO NOTHING;
        IF FOUND THEN
            before := (owner, until, false, epoch, 0, '{}');
        END IF;
    END IF;
    RETURN before;
END
$$;

-- The other owners whose lease is over, and who may still hold something; null: none.
CREATE FUNCTION tokenfence.dead(owner bigint) RETURNS bigint[]
LANGUAGE plpgsql AS $$
BEGIN
    RETURN (
        SELECT array_agg(id) FROM tokenfence.owners
        WHERE NOT gone AND lease < clock_timestamp() AND id <> owner
    );
END
$$;

-- The trees in which they hold something.
CREATE FUNCTION tokenfence.trees_of(dead bigint[]) RETURNS text[]
LANGUAGE plpgsql AS $$
BEGIN
    RETURN ARRAY(
        SELECT DISTINCT r.tree FROM tokenfence.reservations r
        WHERE r.owner = ANY (dead) AND r.expired IS NULL
    );
END
$$;

-- Charge as uncertain what dead owners hold in these trees, which are locked; what is idle is free.
CREATE FUNCTION tokenfence.expire(dead bigint[], trees text[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    call tokenfence.reservations;
    amount bigint[];
BEGIN
    -- Whoever is at one of these rows just now does that, or is one who lives again.
    dead := ARRAY(
        SELECT o.id FROM tokenfence.owners o
        WHERE o.id = ANY (dead) AND NOT o.gone AND o.lease < clock_timestamp()
        ORDER BY o.id
        FOR UPDATE SKIP LOCKED
    );
    FOR call IN
        SELECT * FROM tokenfence.reservations r
        WHERE r.owner = ANY (dead) AND r.tree = ANY (trees) AND r.expired IS NULL
        ORDER BY r.at
    LOOP
        amount := ARRAY[call.usd, call.calls, call.input, call.output];
        PERFORM tokenfence.add(
            call.path, '{0,0,0,0}', ARRAY[-call.usd, -call.calls, -call.input, -call.output],
            CASE WHEN call.idle THEN '{0,0,0,0}' ELSE amount END
        );
        IF call.idle THEN
            DELETE FROM tokenfence.reservations WHERE owner = call.owner AND key = call.key;
        ELSE
            PERFORM tokenfence.charge(call, amount);
            UPDATE tokenfence.reservations SET expired = clock_timestamp()
            WHERE owner = call.owner AND key = call.key;
        END IF;
    END LOOP;
    UPDATE tokenfence.owners o SET gone = true
    WHERE o.id = ANY (dead) AND NOT EXISTS (
        SELECT FROM tokenfence.reservations r WHERE r.owner = o.id AND r.expired IS NULL
    );
    -- Nor does anything come any more that was sent so long ago.
    DELETE FROM tokenfence.owners o
    WHERE o.gone AND o.lease < clock_timestamp() - interval '1 hour' AND o.id IN (
        SELECT id FROM tokenfence.owners WHERE gone ORDER BY id FOR UPDATE SKIP LOCKED
    );
END
$$;
