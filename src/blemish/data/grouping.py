"""Connected groups: what is linked, directly or through others, belongs together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def connected(count: int, links: Iterable[Sequence[int]]) -> list[list[int]]:
    """The connected components of the items 0 .. `count` - 1, single items too (union-find with path halving).

    Each link holds the indices of items that belong together. Components are in ascending order, by their first item.
    """
    leader = list(range(count))

    def find(item: int) -> int:
        while leader[item] != item:
            leader[item] = item = leader[leader[item]]
        return item

    for link in links:
        for other in link[1:]:
            first, second = sorted((find(link[0]), find(other)))
            leader[second] = first
    components: dict[int, list[int]] = {}
    for item in range(count):
        components.setdefault(find(item), []).append(item)
    return list(components.values())
