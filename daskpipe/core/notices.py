"""Tell the user something from within a computation, which does not know who listens."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)
_HERE = threading.local()


@contextmanager
def deliver_notices(deliver: Callable[[str], None]) -> Iterator[None]:
    """Pass each `send_notice` of this thread to a function."""
    _HERE.deliver = deliver
    try:
        yield
    finally:
        del _HERE.deliver


def send_notice(message: str) -> None:
    """Tell the user a message, which a run shows once; outside of the units of a run it goes to the log."""
    deliver = getattr(_HERE, "deliver", None)
    if deliver is None:
        _log.warning("%s", message)
    else:
        deliver(message)
