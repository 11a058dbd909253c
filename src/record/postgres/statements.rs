//! The statements on the tables of records, notes and suspects.

/// Wraps every statement, so that none depends on its session and none is executed by another server than the
/// one that was opened: behind a pooler or a host name the server may change while the connection stays. `$1`
/// is when the server started; statements that write check `is_same`.
pub(super) fn whole(body: &str) -> String {
    format!(
        "WITH server AS (SELECT pg_postmaster_start_time() = $1 AS is_same), done AS ({body})
        SELECT is_same, done.* FROM server LEFT JOIN (SELECT true AS is_there, * FROM done) AS done ON true"
    )
}

/// Records, and of the integrations up to when their persons were forgotten: a row without a revision. Both are of
/// one moment, so whoever has just been forgotten is found in one of them.
pub(super) const READ: &str = "
    SELECT key, revision, record FROM consent_gate_records WHERE key = ANY($2)
    UNION ALL SELECT decode(substring(name FROM 7), 'hex'), NULL, value FROM consent_gate_notes WHERE name = ANY($3)";
/// Writes the records that nobody else has written since they were read, and returns which those were.
pub(super) const WRITE: &str = "
    INSERT INTO consent_gate_records AS known (key, revision, merged, record)
    SELECT * FROM unnest($2::bytea[], $3::bigint[], $4::timestamptz[], $5::text[])
    WHERE (SELECT is_same FROM server) ORDER BY 1
    ON CONFLICT (key) DO UPDATE
        SET revision = excluded.revision, merged = excluded.merged, record = excluded.record
        WHERE known.revision = excluded.revision - 1
    RETURNING key";
/// The same for writes that nobody waits for: a commit that is lost in a crash of the database costs only an
/// extra request.
pub(super) const WRITE_LATER: &str = "
    INSERT INTO consent_gate_records AS known (key, revision, merged, record)
    SELECT * FROM unnest($2::bytea[], $3::bigint[], $4::timestamptz[], $5::text[])
    WHERE (SELECT is_same AND set_config('synchronous_commit', 'off', true) = 'off' FROM server) ORDER BY 1
    ON CONFLICT (key) DO UPDATE
        SET revision = excluded.revision, merged = excluded.merged, record = excluded.record
        WHERE known.revision = excluded.revision - 1
    RETURNING key";
pub(super) const PAGE: &str =
    "SELECT key, revision, record FROM consent_gate_records WHERE key > $2 ORDER BY key LIMIT $3";
/// Makes an empty store the copy of another, in one step.
pub(super) const TAKE_OVER: &str = "
    INSERT INTO consent_gate_notes SELECT * FROM unnest($2::text[], $3::text[])
    WHERE (SELECT is_same FROM server) AND NOT EXISTS (SELECT FROM consent_gate_records)
        AND NOT EXISTS (SELECT FROM consent_gate_notes WHERE name = 'epoch')
    ON CONFLICT (name) DO UPDATE SET value = excluded.value RETURNING name";
pub(super) const NOTES: &str = "SELECT name, value FROM consent_gate_notes";
pub(super) const NOTE: &str = "SELECT value FROM consent_gate_notes WHERE name = $2";
pub(super) const KEEP_NOTE: &str = "
    INSERT INTO consent_gate_notes SELECT $2, $3 WHERE (SELECT is_same FROM server)
    ON CONFLICT DO NOTHING RETURNING name";
pub(super) const SET_NOTE: &str = "
    INSERT INTO consent_gate_notes SELECT $2, $3 WHERE (SELECT is_same FROM server)
    ON CONFLICT (name) DO UPDATE SET value = excluded.value RETURNING name";
pub(super) const ADVANCE: &str = "
    INSERT INTO consent_gate_notes AS note SELECT 'epoch', '1' WHERE (SELECT is_same FROM server)
    ON CONFLICT (name) DO UPDATE SET value = (note.value::bigint + 1)::text RETURNING value";
pub(super) const COUNT: &str = "SELECT count(*) FROM consent_gate_records";
/// The note of a suspect, and whether its holder reported recently that it is alive.
pub(super) const SUSPECT: &str = "
    SELECT deaths, holder, at, at > now() - make_interval(secs => $3) FROM consent_gate_suspects WHERE key = $2";
pub(super) const NOTE_SUSPECT: &str = "
    INSERT INTO consent_gate_suspects SELECT $2, $3, $4, now() WHERE (SELECT is_same FROM server)
    ON CONFLICT (key) DO UPDATE SET deaths = excluded.deaths, holder = excluded.holder, at = excluded.at
    RETURNING key";
pub(super) const FORGET_SUSPECT: &str = "
    DELETE FROM consent_gate_suspects WHERE key = $2 AND (SELECT is_same FROM server) RETURNING key";
pub(super) const SAY_ALIVE: &str = "
    UPDATE consent_gate_suspects SET at = now() WHERE holder = $2 AND (SELECT is_same FROM server) RETURNING key";
pub(super) const SWEEP_SUSPECTS: &str = "
    DELETE FROM consent_gate_suspects WHERE at < $2 AND (SELECT is_same FROM server) RETURNING key";
/// Remembers the time up to which persons are forgotten, before they are.
pub(super) const MARK_SWEPT: &str = "
    INSERT INTO consent_gate_notes
    SELECT DISTINCT 'swept ' || encode(substring(key FROM 1 FOR 4), 'hex'), $3 FROM consent_gate_records
    WHERE merged < $2 AND (SELECT is_same FROM server)
    ON CONFLICT (name) DO UPDATE SET value = greatest(consent_gate_notes.value, excluded.value) RETURNING name";
pub(super) const SWEEP: &str = "
    DELETE FROM consent_gate_records WHERE (SELECT is_same FROM server) AND key IN
        (SELECT key FROM consent_gate_records WHERE merged < $2 LIMIT $3 FOR UPDATE SKIP LOCKED) RETURNING key";
