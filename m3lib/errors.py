"""The one exception meant for a person to read."""


class InputError(Exception):
    """Something a person gave is wrong: one sentence that says what, where, and what to do.

    The notebook runner prints this sentence alone, without a traceback.
    """
