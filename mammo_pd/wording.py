"""Numbers in messages: one image, two images, 12 %; and texts of others, on one line."""

import re

# Those of ASCII and Latin-1, by which a terminal is steered and a line of a log ended.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


def on_one_line(text: str) -> str:
    """A text in which each run of control characters, line ends among them, is a space.

    What others wrote is read through this before it can be printed: it might otherwise hide or
    forge lines on a terminal and in logs.
    """
    return _CONTROL.sub(" ", text)


def counted(count: int, one: str, many: str | None = None) -> str:
    """A count and what is counted, in the singular or the plural.

    Args:
        count: how many.
        one: what stands after 1; with a verb, if the verb has to agree.
        many: what stands after any other number; ``one`` plus an s by default.

    Returns:
        Such as ``1 image`` or ``2 images``; ``0 images`` for none.
    """
    return f"{count} {one if count == 1 else many or one + 's'}"


def percent(share: float, digits: int = 0) -> str:
    """A share in percent, as written everywhere in this project: ``0.12`` is ``12 %``.

    Args:
        share: 1 for all.
        digits: after the decimal point.
    """
    return f"{100 * share:.{digits}f} %"
