"""Run by Alembic: `tessera.catalog.database.migrate` hands over a connection inside a transaction."""

from alembic import context

from tessera.catalog.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA, render_as_batch=True)
context.run_migrations()
