"""argparse with this program's manners, for the commands whose words Hydra does not compose."""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from typing import Any, NamedTuple, NoReturn

from ..planning import UserError


class Given(NamedTuple):
    """What the user gave on the command line.

    Args:
        overrides: key=value and group=option, as typed.
        keys: every dotted key, or group, that they set.
    """

    overrides: tuple[str, ...]
    keys: tuple[str, ...]


class Parser(ArgumentParser):
    """argparse whose complaints are one line like all others."""

    def __init__(self, prog: str, description: str, **options: Any) -> None:
        super().__init__(prog, description=description, formatter_class=RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Not the usage and exit code 2 by itself, but what every other mistake gets."""
        raise UserError(f"{message}; {self.prog} --help tells more")
