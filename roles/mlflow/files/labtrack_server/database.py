"""Writes by one statement: so in one transaction, in one round trip, all of it or nothing; and asks by one.

PostgreSQL answers a statement outside of a transaction after its commit, as durable as `synchronous_commit` says.  The
statement may be sent again: points are kept by their primary key, parameters and tags have the value already.
"""

import asyncio
import contextlib
import itertools
import os

import asyncpg
from sqlalchemy.engine import make_url

CONNECTIONS = int(os.environ.get("LABTRACK_NATIVE_CONNECTIONS", "6"))
READERS = max(1, CONNECTIONS // 2)  # of the connections: a training does not wait for who looks at many runs
READ = 5  # seconds of a statement that reads; what takes longer is MLflow's
QUICK = 1  # seconds of one that is to be quicker than another, which is asked then
READING = 50  # requests that read, or wait for it; more are told to come again
WAITING = 200  # requests, each up to native.LONGEST; more are told to come again
TURN = 10  # seconds until a connection is free
# that PostgreSQL works on a statement, or waits for a lock
STATEMENT = int(os.environ.get("LABTRACK_NATIVE_STATEMENT_SECONDS", "30"))
# What asyncpg reads in an address as libpq does.
PARAMETERS = {"host", "port", "sslmode", "sslrootcert", "sslcert", "sslkey"}

POINTS = """points AS (
    INSERT INTO metrics (key, timestamp, step, value, is_nan, run_uuid)
    SELECT new.*, run_uuid FROM run, unnest({}::text[], {}::int8[], {}::int8[], {}::float8[], {}::bool[]) AS new)"""
# Points of which some may be there already.  Looking for each before it is written costs PostgreSQL a third more, and
# almost always none is there: so this is asked where POINTS has met one.
REPEATED = POINTS.removesuffix(")") + "\n    ON CONFLICT DO NOTHING)"
LATEST = """latest AS (
    INSERT INTO latest_metrics AS old (key, timestamp, step, value, is_nan, run_uuid)
    SELECT new.*, run_uuid FROM run, unnest({}::text[], {}::int8[], {}::int8[], {}::float8[], {}::bool[]) AS new
    ON CONFLICT (key, run_uuid) DO UPDATE
        SET (timestamp, step, value, is_nan) = (EXCLUDED.timestamp, EXCLUDED.step, EXCLUDED.value, EXCLUDED.is_nan)
        WHERE (EXCLUDED.step, EXCLUDED.timestamp, EXCLUDED.value) > (old.step, old.timestamp, old.value))"""
# Another value that comes at the same moment violates the primary key, and then nothing is written.
PARAMS = """params AS (
    INSERT INTO params (key, value, run_uuid)
    SELECT new.*, run_uuid FROM run, unnest({0}::text[], {1}::text[]) AS new (key, value)
    WHERE NOT EXISTS (SELECT FROM params WHERE run_uuid = $1 AND key = new.key))"""
UNCHANGED = """
    AND NOT EXISTS (SELECT FROM params, unnest({0}::text[], {1}::text[]) AS new (key, value)
        WHERE run_uuid = $1 AND params.key = new.key AND params.value <> new.value)"""
TAGS = """tags AS (
    INSERT INTO tags AS old (key, value, run_uuid)
    SELECT new.*, run_uuid FROM run, unnest({}::text[], {}::text[]) AS new
    ON CONFLICT (key, run_uuid) DO UPDATE SET value = EXCLUDED.value WHERE old.value IS DISTINCT FROM EXCLUDED.value)"""


# PostgreSQL looks for the run of each row that refers to it, a thousand times for a batch, and locks it against being
# deleted.  The statements here do both once (FOR KEY SHARE), and delete nothing; so where the role may, its connections
# leave those checks out.
REFERENCES = """SELECT set_config('session_replication_role', 'replica', false)
    WHERE has_parameter_privilege('session_replication_role', 'SET')"""


class Unavailable(Exception):
    """Nothing is known about the write, or it never began: the client is to send it again."""


def statement(*parts):
    """The SQL for some PARTS of a batch; it gives the run, or nothing where nothing was written."""
    numbers = itertools.count(2)
    written, unless = [], ""
    for part, width in parts:
        places = [f"${next(numbers)}" for _ in range(width)]
        written.append(part.format(*places))
        if part is PARAMS:
            unless = UNCHANGED.format(*places)
    run = f"run AS (SELECT run_uuid FROM runs WHERE run_uuid = $1 AND lifecycle_stage = 'active'{unless} FOR KEY SHARE)"
    return f"WITH {', '.join([run, *written])} SELECT run_uuid FROM run"


# By whether a batch has points, parameters and tags: the statement for new points, and the one for any.
STATEMENTS = {
    (points, params, tags): [
        statement(*[(kind, 5), (LATEST, 5)] * points, *[(PARAMS, 2)] * params, *[(TAGS, 2)] * tags)
        for kind in (POINTS, REPEATED)
    ]
    for points, params, tags in itertools.product((False, True), repeat=3)
}


def logged(batch):
    """The statement that writes a batch, what belongs in its places, and the statement for points that are there."""
    # Points in the order of their primary key: neighbours of its index one after the other, and the same order by all
    # who write the same ones, so that none waits for another who waits for it.
    columns = [sorted(batch.points), batch.latest, sorted(batch.params.items()), sorted(batch.tags.items())]
    sql, repeated = STATEMENTS[bool(batch.points), bool(batch.params), bool(batch.tags)]
    return sql, [batch.run_id, *(list(column) for rows in columns for column in zip(*rows))], repeated


async def _begun(connection):
    """What a connection begins with."""
    await connection.execute(REFERENCES)


async def _nothing(_connection):
    """What a connection needs after a statement outside of a transaction."""


class Database:
    """The tracking server's database, by a few connections that are made when they are needed."""

    def __init__(self, uri):
        url = make_url(uri)
        if url.get_backend_name() != "postgresql" or not url.query.keys() <= PARAMETERS:
            raise ValueError("the database's address is not one of PostgreSQL's that asyncpg reads as psycopg2 does")
        self._address = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._pool, self._opening = None, asyncio.Lock()
        self._waiting, self._reading, self._readers = 0, 0, asyncio.Semaphore(READERS)

    async def _opened(self):
        async with self._opening:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    self._address,
                    min_size=0,
                    max_size=CONNECTIONS,
                    init=_begun,
                    reset=_nothing,
                    timeout=TURN,
                    command_timeout=STATEMENT + TURN,
                    # compiling a statement that takes milliseconds takes longer than it
                    server_settings={
                        "application_name": "labtrack",
                        "statement_timeout": f"{STATEMENT}s",
                        "jit": "off",
                    },
                )
        return self._pool

    async def write(self, sql, places, repeated=None):
        """The rows, of which there are none where nothing was written.  Raises Unavailable for what to send again.

        repeated: the statement for the same PLACES that is asked where SQL has met a row that is there already.
        """
        try:
            return await self._ask(sql, places) or []
        except asyncpg.UniqueViolationError:
            return await self.write(repeated, places) if repeated else []

    @contextlib.asynccontextmanager
    async def reading(self):
        """One's turn to read, and to hold what was read.  Raises Unavailable where too many have come before."""
        if self._reading >= READING:
            raise Unavailable("too many requests are waiting to read")
        self._reading += 1
        try:
            await asyncio.wait_for(self._readers.acquire(), TURN)
            try:
                yield
            finally:
                self._readers.release()
        except TimeoutError as error:
            raise Unavailable("those who read now take too long") from error
        finally:
            self._reading -= 1

    async def read(self, sql, places, seconds=READ, planned=False):
        """The rows; None where MLflow is to be asked.  Raises Unavailable where it must be asked again.

        planned: for these very values.  PostgreSQL plans a statement that is kept for any values after a few times, and
        what is best for a value that all runs have takes a thousand times as long for one that few have.
        """
        return await self._ask(sql, places, seconds, planned)

    async def _ask(self, sql, places, seconds=None, planned=False):
        """The rows of a statement, None where it failed or took more than SECONDS.

        Raises UniqueViolationError where a row is there already.
        """
        if self._waiting >= WAITING:
            raise Unavailable("too many requests are waiting for the database")
        self._waiting += 1
        try:
            pool = self._pool or await self._opened()
            async with pool.acquire(timeout=TURN) as connection:
                try:
                    if planned:  # one without a name is not kept
                        return await (await connection.prepare(sql, name="", timeout=seconds)).fetch(
                            *places, timeout=seconds
                        )
                    return await connection.fetch(sql, *places, timeout=seconds)
                except TimeoutError:
                    if seconds is None:
                        raise
                    return None
        except ValueError:
            return None  # asyncpg could not encode a value: nothing was sent
        except (
            OSError,
            TimeoutError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,
            asyncpg.PostgresConnectionError,
            asyncpg.CannotConnectNowError,
            asyncpg.OperatorInterventionError,
            asyncpg.InsufficientResourcesError,
        ) as error:
            raise Unavailable(f"the database does not answer: {type(error).__name__}") from error
        except asyncpg.UniqueViolationError:
            raise
        except asyncpg.PostgresError:
            return None
        finally:
            self._waiting -= 1
