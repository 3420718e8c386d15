"""Verdicts are found by the version that gave them."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_index("verdict_detector", "verdict", ["detector_id", "id"], unique=False)
