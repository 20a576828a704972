"""What the paper packages share.

Each module says at its top who uses it. Importing `paperkit` imports nothing heavy: `--help` stays fast.
"""

from collections.abc import Iterable

__version__ = "0.1.0"


class UserError(Exception):
    """An expected failure: bad input, a missing file, a device that is not there.

    The message is one line that says what is wrong and what to do. A command prints it to stderr and exits
    with 2, without a traceback; library callers see an ordinary exception.
    """


def suggest(word: str, known: Iterable[str]) -> str:
    """' (did you mean X?)' for the known word nearest to `word`, or '' when none is near."""
    import difflib

    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""


def at_least(least: int, **values: int) -> None:
    """Raise `UserError` with the flag's name when one of `values` is below `least`."""
    for name, value in values.items():
        if value < least:
            bound = f"be at least {least}, not {value}" if least else f"not be negative: {value}"
            raise UserError(f"--{name.replace('_', '-')} must {bound}")
