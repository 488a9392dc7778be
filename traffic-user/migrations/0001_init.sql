-- Whom traffic is booked to.
CREATE TABLE subject (
    id    INTEGER PRIMARY KEY CHECK (id BETWEEN 1 AND 0xffffff),
    kind  TEXT    NOT NULL, -- host, device, group, lane, user, relay
    key   TEXT    NOT NULL, -- tells it from others of the kind: `443/tcp`, an email
    name  TEXT,             -- what it is called now, such as a group's name
    first INTEGER NOT NULL, -- seconds of Unix time, as all times here that are not said to be other
    last  INTEGER NOT NULL, -- as of the last hour that was summed up
    UNIQUE (kind, key)
) STRICT;

-- Spans of time. What a bucket holds is in its parent as well, so all buckets without a parent
-- together are all that was ever booked, once.
CREATE TABLE bucket (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    level   INTEGER NOT NULL CHECK (level BETWEEN 0 AND 2), -- five minutes, hour, day
    "begin" INTEGER NOT NULL,
    "end"   INTEGER NOT NULL CHECK ("end" > "begin"),
    parent  INTEGER REFERENCES bucket (id),
    trimmed INTEGER NOT NULL DEFAULT 0 CHECK (trimmed IN (0, 1)), -- some of its parts were let go
    UNIQUE (level, "begin")
) STRICT;

-- What was booked. The key is packed, because one whole number is found twice as fast as three:
-- (bucket << 29) | (book << 24) | subject, where a book is one kind of subject and one layer. In this order
-- a tick writes neighbours, and a ranking reads them. A check with IN would make a table of its own
-- for every row that is written.
CREATE TABLE usage (
    key            INTEGER PRIMARY KEY,
    input_bytes    INTEGER NOT NULL CHECK (input_bytes    >= 0), -- of users: uplink
    output_bytes   INTEGER NOT NULL CHECK (output_bytes   >= 0), -- of users: downlink
    input_packets  INTEGER NOT NULL CHECK (input_packets  >= 0),
    output_packets INTEGER NOT NULL CHECK (output_packets >= 0),
    coverage       INTEGER NOT NULL CHECK (coverage BETWEEN 0 AND 2) -- complete, estimated, gap
) STRICT;

-- Readings up to which everything is booked, in the form that the program gives them.
CREATE TABLE cursor (
    name  TEXT PRIMARY KEY, -- a meter, `active`, `proxy`
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- Names of the proxy's counters, for its cursor.
CREATE TABLE counter (
    id   INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
) STRICT;

-- What happened beside.
CREATE TABLE event (
    id      INTEGER PRIMARY KEY,
    at      INTEGER NOT NULL, -- nanoseconds of Unix time
    kind    TEXT    NOT NULL,
    subject INTEGER REFERENCES subject (id),
    what    TEXT    NOT NULL
) STRICT;
CREATE INDEX event_at ON event (at);
