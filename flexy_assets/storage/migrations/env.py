"""Alembic's entry: it is given a connection by `flexy_assets.storage.migrate`."""

from alembic import context

from flexy_assets.storage.tables import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=VERSION_TABLE
)
with context.begin_transaction():
    context.run_migrations()
