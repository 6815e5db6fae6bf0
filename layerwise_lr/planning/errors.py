"""The one exception that is the user's to mend: it says what, where, and the next command, in one line."""

import difflib
import re

from .secrets import hidden


class UserError(Exception):
    """A mistake in the input. The command line prints it as one line and exits with code 2."""


class ProcessDied(Exception):
    """Of several processes that train together one is gone: it was killed, or failed; says which and why, in one line."""


class Absent(UserError):
    """Data that are not on this machine: where data.stand_in allows it, others take their place."""


def near(word: str, options: list[str], n: int = 3) -> list[str]:
    """The options that are most like `word`, the nearest first, however far."""
    return difflib.get_close_matches(word, options, n=n, cutoff=0.0)


def did_you_mean(word: str, options: list[str]) -> str:
    """`"; did you mean 'layer_decay'?"` where one of `options` is close to `word`, else an empty string."""
    close = difflib.get_close_matches(word, options, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def plain(text: object, most: int = 80) -> str:
    """Text out of a file, fit to be shown: one line, no control character and no terminal escape, not too long."""
    words = " ".join(re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", hidden(str(text))[: 4 * most]).split())
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words)
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


def printable(text: str) -> str:
    """Text fit for a terminal, as long and with as many lines as it is: a control character, a terminal's escape above
    all, is spelled out. What an environment variable gave is not shown."""
    text = hidden(text)
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def unknown(convention: str, what: str) -> str:
    """A depth convention's refusal: what it knows, and what else there is."""
    return (
        f"grouping.convention={convention} knows {what}; use grouping.convention=tree (as the model declares), order, "
        "or rules of your own: grouping.depths"
    )
