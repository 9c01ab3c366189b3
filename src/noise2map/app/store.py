"""What the app remembers for a while: images and results by an address that nobody can guess."""

import secrets
import threading
from collections import OrderedDict
from typing import Generic, TypeVar

Kept = TypeVar("Kept")


class Store(Generic[Kept]):
    """Values by random tokens; the one that was not asked for longest is forgotten first.

    Args:
        most: How many.
        most_bytes: Of all together.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most, self._most_bytes, self._lock = most, most_bytes, threading.Lock()
        self._kept: OrderedDict[str, tuple[Kept, int]] = OrderedDict()

    def put(self, value: Kept, size: int) -> str:
        """Keeps a value of so many bytes and returns its token."""
        token = secrets.token_urlsafe(18)
        with self._lock:
            self._kept[token] = value, size
            while len(self._kept) > self._most or (self.bytes > self._most_bytes and len(self._kept) > 1):
                self._kept.popitem(last=False)
        return token

    def get(self, token: str) -> Kept:
        """The value of a token.

        Raises:
            KeyError: If it is unknown or forgotten.
        """
        with self._lock:
            self._kept.move_to_end(token)
            return self._kept[token][0]

    @property
    def bytes(self) -> int:
        """Of all values together."""
        return sum(size for _, size in self._kept.values())
