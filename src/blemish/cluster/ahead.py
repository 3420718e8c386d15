"""Reading ahead: what a file system is slow to answer is asked for before it is needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

THREADS = 8
MOST = 256 * 2**20  # bytes that are read ahead, but one item
T = TypeVar("T")
R = TypeVar("R")


def ahead(items: Iterable[T], do: Callable[[T], R], size: Callable[[T], int] = lambda _: 0) -> Iterator[R]:
    """`do(item)` of each item, in their order; of at most 16 items, with `MOST` bytes by their `size`, before they are
    asked for.

    >>> list(ahead("abc", str.upper))
    ['A', 'B', 'C']
    """
    waiting, pending, held = iter(items), deque[tuple[int, Future[R]]](), 0
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            while True:
                while len(pending) < 2 * THREADS and (not pending or held < MOST):
                    following = list(islice(waiting, 1))
                    if not following:
                        break
                    pending.append((size(following[0]), pool.submit(do, following[0])))
                    held += pending[-1][0]
                if not pending:
                    return
                taken, result = pending.popleft()
                yield result.result()
                held -= taken
        finally:
            pool.shutdown(cancel_futures=True)
