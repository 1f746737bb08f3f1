-- What is kept. The files of this folder are run once, in one transaction, when the schema is made.

CREATE TABLE tokenfence.about (version integer NOT NULL);

-- given: the limits as they were given last; the limits themselves may have been raised since.
-- Half of each page stays free, so that a new version of a row lands beside the old one.
CREATE TABLE tokenfence.accounts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE,
    given bigint[] NOT NULL,
    limit_usd bigint,
    limit_calls bigint,
    limit_tokens bigint,
    limit_input bigint,
    limit_output bigint,
    spent_usd bigint NOT NULL DEFAULT 0,
    spent_calls bigint NOT NULL DEFAULT 0,
    spent_input bigint NOT NULL DEFAULT 0,
    spent_output bigint NOT NULL DEFAULT 0,
    reserved_usd bigint NOT NULL DEFAULT 0,
    reserved_calls bigint NOT NULL DEFAULT 0,
    reserved_input bigint NOT NULL DEFAULT 0,
    reserved_output bigint NOT NULL DEFAULT 0,
    uncertain_usd bigint NOT NULL DEFAULT 0,
    uncertain_calls bigint NOT NULL DEFAULT 0,
    uncertain_input bigint NOT NULL DEFAULT 0,
    uncertain_output bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);

-- Who makes reservations: the processes.
-- gone: its lease is over, and all that it held is charged as uncertain.
-- epoch: the highest of its batches; those below it come too late. number: of the last command of
-- it that was applied. answers: what the last batch was answered that could not be told again.
CREATE TABLE tokenfence.owners (
    id bigint PRIMARY KEY,
    lease timestamptz NOT NULL,
    gone boolean NOT NULL,
    epoch bigint NOT NULL,
    number bigint NOT NULL,
    answers jsonb NOT NULL
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0.05);

-- What is reserved: calls in flight. idle: nothing is spent of it yet. expired: since when it is
-- charged as uncertain, because its owner's lease is over; the row stays, for the truth may still come.
CREATE TABLE tokenfence.reservations (
    owner bigint NOT NULL,
    key bigint NOT NULL,
    tree text COLLATE "C" NOT NULL,
    path text[] COLLATE "C" NOT NULL,
    usd bigint NOT NULL,
    calls bigint NOT NULL,
    input bigint NOT NULL,
    output bigint NOT NULL,
    what text NOT NULL,
    at timestamptz NOT NULL,
    idle boolean NOT NULL,
    expired timestamptz,
    PRIMARY KEY (owner, key)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);

-- Calls of unknown outcome. charged: the accounts of the path that it counts in, which are all but
-- those that were reset or dropped since. owner, key: null for what was drawn from a reservation.
CREATE TABLE tokenfence.charges (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    owner bigint,
    key bigint,
    tree text COLLATE "C" NOT NULL,
    path text[] COLLATE "C" NOT NULL,
    charged text[] COLLATE "C" NOT NULL,
    usd bigint NOT NULL,
    calls bigint NOT NULL,
    input bigint NOT NULL,
    output bigint NOT NULL,
    what text NOT NULL,
    at timestamptz NOT NULL,
    UNIQUE (owner, key)
);
CREATE INDEX ON tokenfence.charges (tree);

-- The moments from which windows are counted.
CREATE TABLE tokenfence.anchors (
    account text COLLATE "C" PRIMARY KEY,
    at double precision NOT NULL
);

-- Who waits for room in a tree, and wants to be told of it.
CREATE TABLE tokenfence.waiting (
    tree text COLLATE "C" NOT NULL,
    listener bigint NOT NULL,
    until timestamptz NOT NULL,
    PRIMARY KEY (tree, listener)
);

-- One row an attempt of a call, from PostgresLedger. writer, number: so that none is there twice.
-- Amounts are in nano-dollars; the view `calls` shows dollars.
CREATE TABLE tokenfence.ledger (
    writer bigint NOT NULL,
    number bigint NOT NULL,
    at timestamptz NOT NULL,
    call bigint NOT NULL,
    accounts text[] COLLATE "C" NOT NULL,
    model_asked text NOT NULL,
    model text NOT NULL,
    outcome text NOT NULL,
    usage jsonb,
    cost bigint NOT NULL,
    uncertain bigint NOT NULL,
    bound bigint NOT NULL,
    cap bigint,
    truncated boolean NOT NULL,
    waited double precision NOT NULL,
    tags jsonb NOT NULL,
    PRIMARY KEY (writer, number)
);
CREATE INDEX ON tokenfence.ledger (at);
