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

-- Tell those who wait for room in a tree that there may be some.
CREATE FUNCTION tokenfence.tell(trees text[], owner bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    -- Commits that notify wait for one another in all of the database: so only if somebody waits.
    PERFORM pg_notify('tokenfence_' || md5(tree), tell.owner::text)
    FROM (
        SELECT DISTINCT w.tree FROM tokenfence.waiting w
        WHERE w.tree = ANY (trees) AND w.until > clock_timestamp()
    ) AS waited_for;
END
$$;

-- Note that an owner waits for room in a tree.
CREATE FUNCTION tokenfence.wait(owner bigint, tree text, seconds double precision) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO tokenfence.waiting
    VALUES (tree, owner, clock_timestamp() + make_interval(secs => seconds))
    ON CONFLICT ON CONSTRAINT waiting_pkey DO UPDATE SET until = excluded.until;
END
$$;
