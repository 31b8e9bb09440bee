"""Write times as text, and make text of others safe to show."""

from __future__ import annotations

import time


def make_printable(text: object, *, keep_line_ends: bool = True) -> str:
    r"""Return text that a terminal may show: characters that steer a terminal or do not print are spelled out.

    Parameters
    ----------
    text
        Anything; its ``str()`` is used.
    keep_line_ends
        Whether ``\n`` stays as it is. Where each text must stay on its line, it is spelled out as well.

    Examples
    --------
    >>> make_printable("Cu\x1b[31m\nAu")
    'Cu\\x1b[31m\nAu'
    >>> make_printable("Cu\nAu", keep_line_ends=False)
    'Cu\\nAu'
    """
    kept = "\n" if keep_line_ends else ""
    return "".join(
        char if char.isprintable() or char == kept else char.encode("unicode_escape").decode() for char in str(text)
    )


def utc_timestamp() -> str:
    """Return the present time in UTC as ISO 8601 with seconds, such as ``2026-11-30T01:45:00Z``."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
