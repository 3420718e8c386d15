"""Alembic's entry: runs the revisions on the connection that `database.Database.upgrade` gives."""

from __future__ import annotations

from alembic import context

from blemish.web.tables import Base

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True
)
context.run_migrations()
