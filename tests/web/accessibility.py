"""What axe-core finds on a page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Page

SHOWN = 4  # elements of a violation that are named
WIDE = 120  # characters of an element that are shown


def serious(page: Page) -> list[str]:
    """One line for each violation of impact serious or critical: rule, impact, what it says, where and why.

    The script comes in through the debugger, which the page's Content-Security-Policy does not stop.
    """
    from axe_playwright_python.base import AXE_SCRIPT

    page.evaluate(f"() => {{ {AXE_SCRIPT}\n }}")
    violations = page.evaluate("async () => (await axe.run({resultTypes: ['violations']})).violations")
    return [
        f"{found['id']} ({found['impact']}): {found['help']}: {_places(found['nodes'])}"
        for found in violations
        if found["impact"] in ("serious", "critical")
    ]


def _places(nodes: list[dict[str, Any]]) -> str:
    """The elements, as they stand in the page, each with the reason."""
    named = []
    for node in nodes[:SHOWN]:
        reasons = [check["message"] for check in (*node["any"], *node["all"], *node["none"])]
        named.append(f"{node['html'][:WIDE]} at {' '.join(map(str, node['target']))}, {reasons[0] if reasons else ''}")
    return " | ".join(named) + (f" | and {len(nodes) - SHOWN} more" if len(nodes) > SHOWN else "")
