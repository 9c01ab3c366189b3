"""Words of messages: numbers with their nouns."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """``1 file``, ``3 files``, ``1,200 files``; ``plural`` where it is not the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
