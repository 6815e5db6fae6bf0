"""The one exception that is the user's to mend: it says what, where, and the next command, in one line."""

import difflib


class UserError(Exception):
    """A mistake in the input. The command line prints it as one line and exits with code 2."""


class Absent(UserError):
    """Data that are not on this machine: where data.stand_in allows it, others take their place."""


def did_you_mean(word: str, options: list[str]) -> str:
    """`"; did you mean 'layer_decay'?"` where one of `options` is close to `word`, else an empty string."""
    close = difflib.get_close_matches(word, options, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def unknown(convention: str, what: str) -> str:
    """A depth convention's refusal: what it knows, and what else there is."""
    return (
        f"grouping.convention={convention} knows {what}; use grouping.convention=tree (as the model declares), order, "
        "or rules of your own: grouping.depths"
    )
