"""Numbers in messages: one image, two images, 12 %."""


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
