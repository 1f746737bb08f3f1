-- A tree is a budget and all below it. Whoever changes accounts holds the lock of their tree.

-- What the names of all accounts of a tree begin with.
CREATE FUNCTION tokenfence.tree_of(account text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT split_part(split_part(account, '/', 1), '~', 1)
$$;

-- Lock trees until the end of the transaction; in one order, so that nobody waits in a circle.
CREATE FUNCTION tokenfence.lock(trees text[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    here bigint := 'tokenfence'::regnamespace::oid;
BEGIN
    IF cardinality(trees) = 1 THEN
        PERFORM pg_advisory_xact_lock(hashtextextended(trees[1], here));
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock(number)
    FROM (
        SELECT DISTINCT hashtextextended(tree, here) AS number FROM unnest(trees) AS tree
        ORDER BY number
    ) AS those;
END
$$;

-- Where it is told that room was made in a tree.
CREATE FUNCTION tokenfence.channel(tree text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT 'tokenfence_' || left(encode(sha256(convert_to(tree, 'UTF8')), 'hex'), 32)
$$;

-- Tell those who wait for room in trees that there may be some: in these accounts and above them, as
-- JSON; in any, if these are null or too many for a message.
CREATE FUNCTION tokenfence.tell(trees text[], accounts text[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    -- Commits that notify wait for one another in all of the database: so only if somebody waits.
    PERFORM pg_notify(
        tokenfence.channel(tree), CASE WHEN octet_length(there) < 7000 THEN there ELSE '' END
    )
    FROM (
        SELECT DISTINCT w.tree FROM tokenfence.waiting w
        WHERE w.tree = ANY (trees) AND w.until > clock_timestamp()
    ) AS waited_for
    CROSS JOIN LATERAL (
        SELECT jsonb_agg(DISTINCT account)::text AS there FROM unnest(accounts) AS account
        WHERE tokenfence.tree_of(account) = tree
    ) AS freed
    WHERE accounts IS NULL OR there IS NOT NULL;
END
$$;

-- Note that a listener waits for room in these trees, and in no others; where it will be told.
CREATE FUNCTION tokenfence.wait(listener bigint, trees text[], seconds double precision)
RETURNS SETOF text
LANGUAGE plpgsql AS $$
BEGIN
    -- Whoever is at a tree just now may have looked already who waits: let them commit first.
    PERFORM tokenfence.lock(trees);
    DELETE FROM tokenfence.waiting w
    WHERE w.listener = wait.listener AND w.tree <> ALL (trees) OR w.until < clock_timestamp();
    INSERT INTO tokenfence.waiting
    SELECT tree, wait.listener, clock_timestamp() + make_interval(secs => seconds)
    FROM unnest(trees) AS tree
    ON CONFLICT ON CONSTRAINT waiting_pkey DO UPDATE SET until = excluded.until;
    RETURN QUERY SELECT tokenfence.channel(tree) FROM unnest(trees) WITH ORDINALITY AS t (tree, place)
    ORDER BY place;
END
$$;
