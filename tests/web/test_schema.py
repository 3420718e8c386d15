"""schemathesis sends what the OpenAPI schema allows, and what it does not: the answers are as the schema says, and no
request is a fault of the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import checks
from schemathesis.core.result import Ok

from blemish.web.app import application
from tests.web.support import PRODUCT, grey, made_site

CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]  # not whether what the schema allows is accepted: bytes may be no image, and numbers nobody's
HOST = {"Host": "127.0.0.1:8477"}
BOUNDED = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def test_answers_are_as_the_schema_says(tmp_path: Path) -> None:
    site = made_site(tmp_path)
    for value in (60, 95, 130):
        site.line.inspect(grey(value), f"{value}.png", PRODUCT, by="ann", source="page")
    schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", application(site), headers=HOST)
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    assert len(operations) >= 2
    for operation in operations:

        @BOUNDED
        @given(case=operation.as_strategy())
        def answered(case: schemathesis.Case[Any]) -> None:
            case.call_and_validate(headers=HOST, checks=CHECKS)

        answered()
