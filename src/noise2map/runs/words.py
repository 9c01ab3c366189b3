"""Words of messages: numbers with their nouns, names as they can be printed."""

import os
import unicodedata


def counted(number: int, noun: str, plural: str = "") -> str:
    """``1 file``, ``3 files``, ``1,200 files``; ``plural`` where it is not the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """``20 seconds``, ``5 minutes``, ``7 hours``, ``3.5 days``."""
    if seconds < 59.5:
        return counted(round(seconds), "second")
    if seconds < 3570:
        return counted(round(seconds / 60), "minute")
    return counted(round(seconds / 3600), "hour") if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def printable(name: str) -> str:
    """A name as it can be printed, drawn and stored anywhere: control characters and stray bytes become escapes."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(one.encode("unicode_escape").decode() if unicodedata.category(one) == "Cc" else one for one in text)
