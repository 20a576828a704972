"""What the paper packages share.

Each module says at its top who uses it. Importing `paperkit` imports nothing heavy: `--help` stays fast.
"""

__version__ = "0.1.0"


class UserError(Exception):
    """An expected failure: bad input, a missing file, a device that is not there.

    The message is one line that says what is wrong and what to do. A command prints it to stderr and exits
    with 2, without a traceback; library callers see an ordinary exception.
    """
