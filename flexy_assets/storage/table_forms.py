"""The forms of table that can be adopted. Each other form is refused in one line before the table is touched."""

import re
from collections.abc import Sequence
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine.interfaces import ReflectedIndex
from sqlalchemy.engine.reflection import ObjectKind

from flexy_assets.storage.tables import METRIC_COLUMNS, VERSION_TABLE, bench_run_results, bench_runs, metadata
from resources.errors import BadInputError

REQUIRED_COLUMNS = ("id", "engine", "steps", "guidance", "seed", "image_path")
"""Without these a `bench_run_results` is not FlexyFace's; its other columns may be missing and are added."""

FILLABLE_COLUMNS = {"batch": 20, "image_sha256": 64}
"""Columns that Flexy writes text to, and how many characters they must take."""

_TYPE_FAMILIES: dict[type, tuple[type, ...]] = {
    **{sa.Uuid: (sa.Uuid,), sa.Integer: (sa.Integer,), sa.Float: (sa.Numeric,), sa.TIMESTAMP: (sa.DateTime,)},
    sa.Boolean: (sa.Boolean,),
    sa.String: (sa.VARCHAR, sa.Text),  # not CHAR, whose blanks would be part of every name
}
"""Flexy's column types, and the types of existing columns that are compatible with them."""

_SCHEMAS = f"""SELECT nspname, pg_class.oid = to_regclass(relname) AS visible, relname = '{VERSION_TABLE}' AS ours,
    has_schema_privilege(pg_namespace.oid, 'USAGE') AS usable,
    EXISTS (SELECT FROM pg_attribute WHERE attrelid = pg_class.oid AND attname = 'batch') AS adopted
    FROM pg_class JOIN pg_namespace ON relnamespace = pg_namespace.oid
    WHERE relname IN ('bench_run_results', '{VERSION_TABLE}') AND relkind IN ('r', 'p', 'v', 'm', 'f')
    AND left(nspname, 3) <> 'pg_' ORDER BY nspname"""
"""The schemas of the table of images, and of Flexy's version."""

_OPEN_POLICY = """EXISTS (SELECT FROM pg_policy WHERE polrelid = pg_class.oid AND polpermissive AND polcmd = '*'
    AND pg_get_expr(polqual, polrelid) = 'true' AND coalesce(pg_get_expr(polwithcheck, polrelid), 'true') = 'true'
    AND EXISTS (SELECT FROM unnest(polroles) AS role WHERE role = 0 OR pg_has_role(role, 'USAGE')))
    AND NOT EXISTS (SELECT FROM pg_policy WHERE polrelid = pg_class.oid AND NOT polpermissive)"""
"""Whether a policy of `pg_class` shows this user every row and takes every value, and none takes that back."""

_BOUND_TABLES = f"""SELECT relname, quote_ident(current_user) AS role,
    (SELECT coalesce(string_agg(polname, ', ' ORDER BY polname), 'none') FROM pg_policy
    WHERE polrelid = pg_class.oid) AS policies
    FROM pg_class WHERE oid IN (to_regclass('bench_runs'), to_regclass('bench_run_results'))
    AND row_security_active(oid) AND NOT ({_OPEN_POLICY}) ORDER BY relname"""
"""The tables of which row-level security may hide rows from this user, or refuse values."""


def check_tables_are_meant(connection: sa.Connection) -> None:
    """Raise `BadInputError` where other tables than those in sight may be meant, or where rows may be hidden."""
    if connection.dialect.name == "postgresql":
        for table, role, policies in connection.execute(sa.text(_BOUND_TABLES)):
            raise BadInputError(
                f"row-level security of {table} (policies: {policies}) may hide rows from {role} and refuse scores, so"
                f" that nothing could be called complete: have a superuser run ALTER ROLE {role} BYPASSRLS; or, unless"
                f" a policy is restrictive, the table's owner CREATE POLICY flexy ON {table} TO {role} USING (true);"
            )
        _check_schema(connection)


def _check_schema(connection: sa.Connection) -> None:
    rows = connection.execute(sa.text(_SCHEMAS)).all()
    visible = {row.ours: row for row in rows if row.visible}
    others = [row for row in rows if not row.visible and not row.ours]
    name, here = bench_run_results.name, visible.get(False)
    if here and True in visible and not here.adopted:
        ours = visible[True].nspname
        raise BadInputError(
            f"Flexy's tables in the schema {ours} were made for another table than {here.nspname}.{name}, which lacks"
            f" its columns: {_undo(connection, ours) or f'name one schema alone in {_url(here.nspname)}'}"
        )
    if "search_path" in str(connection.engine.url.query.get("options", "")):  # the schema is chosen
        return
    if not others or (here and connection.scalar(sa.select(sa.exists().select_from(bench_run_results)))):
        return
    schemas = ", ".join(row.nspname for row in others)
    if here:
        undo = f"; {_undo(connection, here.nspname)}" if _undo(connection, here.nspname) else ""
        raise BadInputError(
            f"{here.nspname}.{name} has no rows, and there is a table of that name in the schema {schemas}, too:"
            f" name the schema that is meant in {_url(others[0].nspname)}{undo}"
        )
    if hidden := [_quoted(connection, row.nspname) for row in others if not row.usable]:
        role = connection.scalar(sa.text("SELECT quote_ident(current_user)"))
        raise BadInputError(
            f"{name} is in the schema {schemas}, which this user may not use: name another schema in"
            f" {_url('SCHEMA')}, or have their owner run: GRANT USAGE ON SCHEMA {', '.join(hidden)} TO {role};"
        )
    path = connection.scalar(sa.text("SHOW search_path"))
    raise BadInputError(
        f"{name} is in the schema {schemas}, where this user does not look (search_path: {path}): name the schema that"
        f" is meant in {_url(others[0].nspname)}"
    )


def _url(schema: str) -> str:
    return f"FLEXY_DATABASE_URL: …?options={quote(f'-csearch_path={schema}')}"


def _quoted(connection: sa.Connection, name: str) -> str:
    return connection.dialect.identifier_preparer.quote(name)


def _undo(connection: sa.Connection, schema: str) -> str | None:
    """Return what takes back what Flexy made in a schema; None where any of it has rows or is not ours."""
    inspector, prefix = sa.inspect(connection), f"{_quoted(connection, schema)}."
    tables = [table for name, table in metadata.tables.items() if inspector.has_table(name, schema)]
    for table in tables:
        columns = {column["name"] for column in inspector.get_columns(table.name, schema)}
        if columns - set(table.columns.keys()):
            return None
        if connection.scalar(sa.text(f"SELECT EXISTS (SELECT FROM {prefix}{table.name})")):
            return None
    names = ", ".join(f"{prefix}{name}" for name in (VERSION_TABLE, *(table.name for table in tables)))
    return f"what Flexy made in {schema}, all of it empty, is undone by DROP TABLE {names};"


def check_writable(connection: sa.Connection) -> None:
    """Raise `BadInputError` where Postgres takes no writes in this session, as a standby server does."""
    if connection.dialect.name == "postgresql" and connection.scalar(sa.text("SHOW transaction_read_only")) == "on":
        raise BadInputError(
            "the database takes no writes in this session: name the primary server, or a user without"
            " default_transaction_read_only, in FLEXY_DATABASE_URL"
        )


def check_new_tables(connection: sa.Connection) -> None:
    """Raise `BadInputError` where a table of FlexyFace's name is there that cannot be adopted as it is."""
    check_writable(connection)
    for table in (bench_runs, bench_run_results):
        _check_form(connection, table)
    check_ids(connection)
    check_numbers(connection)


def _check_form(connection: sa.Connection, table: sa.Table) -> None:
    inspector = sa.inspect(connection)
    if not inspector.has_table(table.name):
        return
    postgres = connection.dialect.name == "postgresql"
    foreign = sa.text(f"SELECT relkind = 'f' FROM pg_class WHERE oid = '{table.name}'::regclass")
    columns = inspector.get_multi_columns(filter_names=[table.name], kind=ObjectKind.TABLE).get((None, table.name))
    if columns is None or (postgres and connection.scalar(foreign)):
        raise BadInputError(
            f"{table.name} is not a table but a view, or of another server: name the database that has FlexyFace's"
            " table itself in FLEXY_DATABASE_URL"
        )
    types = {column["name"]: column["type"] for column in columns}
    needed = REQUIRED_COLUMNS if table is bench_run_results else ("id",)
    if lacking := [name for name in needed if name not in types]:
        raise BadInputError(
            f"the table {table.name} has no column {', '.join(lacking)}: it is not FlexyFace's: name the database"
            " that has FlexyFace's table, or an empty one, in FLEXY_DATABASE_URL"
        )
    keys: list[Sequence[str | None]] = [inspector.get_pk_constraint(table.name)["constrained_columns"]]
    if "id" not in (column["name"] for column in columns if column["nullable"]):
        keys += [index["column_names"] for index in inspector.get_indexes(table.name) if _is_unique(index)]
    if ["id"] not in keys:
        partition = sa.text(f"SELECT pg_get_partkeydef('{table.name}'::regclass)")
        by = connection.scalar(partition) if postgres else None
        raise BadInputError(
            f"the ids of the table {table.name} may repeat or be NULL by its definition: "
            + (f"it is partitioned by {by}: partition it by HASH (id)" if by else "make id its primary key")
        )
    for column in table.columns:
        if column.name not in types:
            continue
        kind = types[column.name]
        compatible = next(kinds for ours, kinds in _TYPE_FAMILIES.items() if isinstance(column.type, ours))
        too_narrow = (getattr(kind, "length", None) or 64) < FILLABLE_COLUMNS.get(column.name, 0)
        fits = isinstance(kind, compatible) and not too_narrow
        if not postgres:  # SQLite's columns take any type, but for an INTEGER PRIMARY KEY
            fits = not isinstance(column.type, sa.Uuid) or not isinstance(kind, sa.Integer)
        if not fits:
            raise BadInputError(
                f"the column {table.name}.{column.name} is {getattr(kind, 'name', kind)}, where Flexy keeps"
                f" {column.type.compile(connection.dialect)}: give it that type, rename it, or name another database"
                " in FLEXY_DATABASE_URL"
            )


def _is_unique(index: ReflectedIndex) -> bool:
    """Return whether the index makes values unique in all rows, not only in those of its condition."""
    return index["unique"] and not any(option.endswith("_where") for option in index.get("dialect_options", {}))


def check_ids(connection: sa.Connection, condition: str = "TRUE") -> None:
    """Raise `BadInputError` where SQLite holds ids in another form than Flexy writes and looks for.

    `condition` limits the images that are looked at.
    """
    if connection.dialect.name != "sqlite":
        return
    inspector, examples, statements = sa.inspect(connection), list[object](), list[str]()
    for table, column, of in (
        (bench_runs, "id", "TRUE"),
        (bench_run_results, "id", condition),
        (bench_run_results, "run_id", condition),
    ):
        if not inspector.has_table(table.name) or column not in (c["name"] for c in inspector.get_columns(table.name)):
            continue
        kinds = "'text'" if column == "id" else "'text', 'null'"
        wrong = f"typeof({column}) NOT IN ({kinds}) OR length({column}) <> 32 OR {column} GLOB '*[^0-9a-f]*'"
        for row in connection.exec_driver_sql(f"SELECT {column} FROM {table.name} WHERE {of} AND ({wrong}) LIMIT 1"):
            examples.append(row[0])
            statements.append(f"UPDATE {table.name} SET {column} = lower(replace({column}, '-', ''));")
    if examples:
        rewritable = all(re.fullmatch("[0-9a-fA-F]{32}", str(each).replace("-", "")) for each in examples)
        remedy = f"run {' '.join(statements)}" if rewritable else "copy the rows to tables whose ids are UUIDs"
        raise BadInputError(
            f"ids of {bench_run_results.name} or {bench_runs.name} are not the 32 lower-case hexadecimal digits that"
            f" SQLAlchemy keeps of a UUID in SQLite, for example {str(examples[0])[:40]!r}: {remedy}"
        )


def check_numbers(connection: sa.Connection) -> None:
    """Raise `BadInputError` where a score column holds NaN: neither a score nor missing. SQLite cannot hold it."""
    if connection.dialect.name != "postgresql" or not sa.inspect(connection).has_table(bench_run_results.name):
        return
    existing = {column["name"] for column in sa.inspect(connection).get_columns(bench_run_results.name)}
    names = [name for name in METRIC_COLUMNS if name in existing]
    counts = [sa.func.count().filter(bench_run_results.c[name] == sa.text("'NaN'")) for name in names]
    found = connection.execute(sa.select(*counts).select_from(bench_run_results)).one() if names else ()
    if wrong := {name: count for name, count in zip(names, found, strict=True) if count}:
        table = bench_run_results.name
        statements = (f"UPDATE {table} SET {name} = NULL WHERE {name} = 'NaN';" for name in wrong)
        raise BadInputError(
            f"{table} holds NaN, which is neither a score nor missing"
            f" ({', '.join(f'{count:,} of {name}' for name, count in wrong.items())}): run {' '.join(statements)}"
        )
