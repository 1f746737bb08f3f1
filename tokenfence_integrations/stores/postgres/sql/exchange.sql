-- The one function that a store calls: orders in, replies out, all in one transaction.

-- Apply orders in turn, each of them once however often it is sent.
--
-- An order is an array: its number, the name of the command's class in
-- tokenfence_integrations.stores.base, then the command's fields, of which paths, amounts and limits
-- are written as arrays of PostgreSQL: [12, "End", "{acme}", 7, "{9,1,2,3}", "{0,0,0,0}"].
--
-- A reply is true or false; [done, states, at]; or {"unknown": account} if the account was never
-- opened, and then nothing was changed by it. All is null if the batch came too late: its owner has
-- given it up, and has sent one of a higher epoch since.
--
-- trees: those of all the orders. lease: seconds for which the owner lives on by this sign of life;
-- null: it is none, because nothing is asked for but a look.
CREATE FUNCTION tokenfence.exchange(
    owner bigint, epoch bigint, lease double precision, trees text[], orders jsonb
) RETURNS jsonb
LANGUAGE plpgsql
-- The rows are always found by their keys. To plan that anew each time costs as much as to do it, and
-- to look through a whole table is never right, also when it was small at first.
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
DECLARE
    dead bigint[] := tokenfence.dead(owner);
    so_far tokenfence.owners;
    command jsonb;
    at integer;
    place bigint;
    reply jsonb;
    replies jsonb := '[]';
    to_keep jsonb := '{}';
    makes_room boolean := false;
    freed text[] := '{}';  -- in these accounts, and those above them; null: anywhere
BEGIN
    -- Under a stricter isolation level, what is read after the lock would be as old as the statement.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE 'budgets need the isolation level "read committed"'
            USING HINT = 'set default_transaction_isolation of this role or database back';
    END IF;
    IF dead IS NOT NULL THEN
        trees := trees || tokenfence.trees_of(dead);
    END IF;
    IF dead IS NOT NULL OR lease IS NOT NULL THEN
        PERFORM tokenfence.lock(trees);
    END IF;
    IF lease IS NOT NULL THEN
        so_far := tokenfence.sign_of_life(
            owner, epoch, lease, (orders->-1->0)::bigint
        );
        IF so_far IS NULL THEN
            RETURN NULL;
        END IF;
    END IF;
    IF dead IS NOT NULL THEN
        PERFORM tokenfence.expire(dead, trees);
        makes_room := true;  -- or at least nothing to wait for any more
        freed := NULL;
    END IF;
    FOR at IN 0 .. jsonb_array_length(orders) - 1 LOOP
        command := orders->at;
        place := command->0;
        IF place > so_far.number OR command->>1 = 'Read' THEN
            reply := tokenfence.apply(owner, command);
            IF command->>1 = 'End' THEN
                makes_room := true;
                freed := freed || ((command->>2)::text[])[1];
            ELSIF command->>1 IN ('Adjust', 'SetLimits', 'Open', 'Reset', 'Resolve') THEN
                makes_room := true;
                freed := NULL;
            END IF;
            IF command->>1 IN ('Open', 'Reset', 'Drop', 'Resolve', 'Anchor')
                OR (command->>1 = 'Draw' AND reply = 'false')
            THEN
                to_keep := to_keep || jsonb_build_object(place, reply);
            END IF;
        ELSE
            reply := coalesce(so_far.answers->place::text, tokenfence.again(owner, command));
            to_keep := to_keep || jsonb_build_object(place, reply);
        END IF;
        replies := replies || jsonb_build_array(reply);
    END LOOP;
    IF to_keep <> '{}' THEN
        UPDATE tokenfence.owners o SET answers = to_keep WHERE o.id = owner;
    END IF;
    IF makes_room THEN
        PERFORM tokenfence.tell(trees, freed);
    END IF;
    RETURN replies;
END
$$;

-- Apply a `Reserve` that is alone in its batch: its reply, or null if that is a matter for `exchange`,
-- because its owner has to give a sign of life first, or others are dead. It leaves no number, for it
-- is not applied twice by itself.
CREATE FUNCTION tokenfence.reserve_alone(
    owner bigint, epoch bigint, tree text,
    path text[], key bigint, amount bigint[], room bigint[], what text, idle boolean
) RETURNS jsonb
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
DECLARE
    here bigint := 'tokenfence'::regnamespace::oid;
    reply jsonb;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RETURN NULL;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended(tree, here));
    -- Nobody calls it dead while this is under way.
    PERFORM FROM tokenfence.owners o
    WHERE o.id = owner AND o.epoch = reserve_alone.epoch AND NOT o.gone
        AND o.lease > clock_timestamp()
    FOR SHARE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    reply := tokenfence.reserve(owner, path, key, amount, room, what, idle);
    IF reply = 'true' OR tokenfence.dead(owner) IS NULL THEN
        RETURN reply;
    END IF;
    RETURN NULL;
END
$$;

-- Apply an order for the first time.
CREATE FUNCTION tokenfence.apply(owner bigint, command jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
    states jsonb;
BEGIN
    CASE command->>1
    WHEN 'Reserve' THEN
        RETURN tokenfence.reserve(
            owner, (command->>2)::text[], (command->>3)::bigint, (command->>4)::bigint[],
            (command->>5)::bigint[], command->>6, (command->>7)::boolean
        );
    WHEN 'Draw' THEN
        RETURN to_jsonb(tokenfence.draw(
            owner, (command->>3)::bigint, (command->>4)::bigint[], (command->>5)::bigint[],
            (command->>6)::bigint[], command->>7
        ));
    WHEN 'End' THEN
        RETURN to_jsonb(tokenfence.end_call(
            owner, (command->>3)::bigint, (command->>4)::bigint[], (command->>5)::bigint[]
        ));
    WHEN 'Read' THEN
        states := tokenfence.states((command->>2)::text[]);
    WHEN 'Open' THEN
        -- With the state: whoever opens an account keeps count of it from then on.
        RETURN jsonb_build_array(
            tokenfence.open(command->>2, (command->>3)::bigint[]),
            tokenfence.states(ARRAY[command->>2])
        );
    WHEN 'Book' THEN
        RETURN tokenfence.book((command->>2)::text[], (command->>3)::bigint[]);
    WHEN 'Adjust' THEN
        states := tokenfence.adjust(
            (command->>2)::text[], (command->>3)::bigint[], (command->>4)::bigint
        );
    WHEN 'SetLimits' THEN
        states := tokenfence.set_limits((command->>2)::text[], (command->>3)::bigint[]);
    WHEN 'Reset' THEN
        states := tokenfence.reset((command->>2)::text[]);
    WHEN 'Drop' THEN
        RETURN to_jsonb(tokenfence.drop(command->>2));
    WHEN 'Resolve' THEN
        RETURN to_jsonb(tokenfence.resolve(
            command->>2, (command->>3)::bigint, (command->>4)::bigint[]
        ));
    WHEN 'Anchor' THEN
        RETURN tokenfence.anchor(command->>2, (command->>3)::double precision);
    END CASE;
    RETURN CASE WHEN jsonb_typeof(states) = 'array' THEN jsonb_build_array(true, states)
        ELSE states END;
END
$$;

-- The reply to an order that was applied already, where it was not kept.
CREATE FUNCTION tokenfence.again(owner bigint, command jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$
BEGIN
    CASE command->>1
    WHEN 'Reserve' THEN
        IF EXISTS (
            SELECT FROM tokenfence.reservations r
            WHERE r.owner = again.owner AND r.key = (command->>3)::bigint
        ) THEN
            RETURN 'true';
        END IF;
        RETURN jsonb_build_array(false, tokenfence.states((command->>2)::text[]));
    WHEN 'Adjust', 'SetLimits' THEN
        RETURN jsonb_build_array(true, tokenfence.states((command->>2)::text[]));
    ELSE
        RETURN 'true';
    END CASE;
END
$$;
