"""How far a stage is: a bar on a terminal, else one line a minute, as for the log of a job."""

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

from mammo_pd.wording import counted

# Seconds from one line to the next.
_EVERY = 60


class Progress:
    """Counts what is done of a known number of images.

    Args:
        name: of the stage.
        total: how many images there are.
        say: takes one line, where there is no terminal for a bar.
    """

    def __init__(self, name: str, total: int, say: Callable[[str], None]) -> None:
        self._name, self._total, self._say = name, total, say
        self._done = 0
        self._started = self._said = time.monotonic()
        self._bar = None
        if total and sys.stderr.isatty():
            self._bar = tqdm(total=total, unit="image", desc=name)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self) -> None:
        """One more is done."""
        self._done += 1
        if self._bar is not None:
            self._bar.update()
            return
        now = time.monotonic()
        if now - self._said >= _EVERY:
            self._said = now
            rate = self._done / (now - self._started)
            left = _in_words((self._total - self._done) / rate)
            self._say(
                f"{self._name}: {self._done} of {counted(self._total, 'image')}, {rate:.3g} "
                f"images/s, {left} left"
            )


def _in_words(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
