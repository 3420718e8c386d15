"""Connected components by hand, and as scipy finds them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from blemish.data.grouping import connected


def test_links_join_and_single_items_stay_alone() -> None:
    assert connected(6, [(4, 1), (5, 4), (2, 2), ()]) == [[0], [1, 4, 5], [2], [3]]
    assert connected(4, [(0, 1, 2), (3, 2)]) == [[0, 1, 2, 3]]  # a link of more than two items
    assert connected(2, []) == [[0], [1]]
    assert connected(0, []) == []


@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_components_are_those_of_scipy(case: tuple[int, list[tuple[int, int]]]) -> None:
    count, links = case
    rows, columns = np.array(links, np.intp).reshape(-1, 2).T
    graph = coo_array((np.ones(len(links)), (rows, columns)), shape=(count, count))
    number, labels = connected_components(graph, directed=False)
    ours = connected(count, links)
    assert len(ours) == number
    assert all(len(set(labels[component])) == 1 for component in ours)
    assert [component[0] for component in ours] == sorted(min(component) for component in ours)
    assert all(component == sorted(component) for component in ours)
