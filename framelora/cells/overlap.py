"""Reading ahead of a computation and writing behind it, each in a thread of its own.

Neither changes a byte: what is computed, and in which order, stays as it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

Value = TypeVar("Value")
PENDING = 2  # writes that may wait: more would only take memory


class ReadAhead(Generic[Value]):
    """Loads the next thing while the last one is in use.

    Args:
        load: loads one thing by its name.
        order: the names in the order in which they will be asked for; some may be left out.
    """

    def __init__(self, load: Callable[[str], Value], order: Iterable[str]) -> None:
        self.load = load
        self.order = list(dict.fromkeys(order))
        self.places = {name: place for place, name in enumerate(self.order)}
        self.thread = ThreadPoolExecutor(1, "read-ahead")
        self.loading: dict[str, Future[Value]] = {}  # the thing in use, and the next

    def get(self, name: str) -> Value:
        """A thing; raises what loading it raised."""
        wanted = self.order[self.places[name] : self.places[name] + 2]
        self.loading = {name: self.loading.get(name) or self.thread.submit(self.load, name) for name in wanted}
        return self.loading[name].result()


class WriteBehind:
    """Writes one thing after the other while the next is computed. Leaving it waits for all of them."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, "write-behind")
        self.pending: deque[Future[None]] = deque()

    def put(self, write: Callable[[], None]) -> None:
        """Have something written; raises what an earlier write raised."""
        self.pending.append(self.thread.submit(write))
        while len(self.pending) > PENDING or (self.pending and self.pending[0].done()):
            self.pending.popleft().result()

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.thread.shutdown(wait=True)
        if error is None:  # else what went wrong first is told
            for write in self.pending:
                write.result()
