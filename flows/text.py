"""Text on a terminal: what comes from data is shown as it is, and can neither move the cursor nor be markup."""

import json
import sys
from typing import IO


def visible(text: str) -> str:
    """Text with its control characters as escapes (JSON's)."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def visible_lines(text: str) -> str:
    """As `visible`; ends of lines and tabs stay."""
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" else visible(c) for c in text)


def say(*words: object, file: IO[str] | None = None, end: str = "\n", flush: bool = False) -> None:
    """`print`, of visible text."""
    text = visible_lines(" ".join(map(str, words)))
    print(text, file=file or sys.stdout, end=end, flush=flush)
