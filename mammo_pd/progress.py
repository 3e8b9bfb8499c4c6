"""How far a stage is: a bar on a terminal, else one line a minute, as for the log of a job."""

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

from mammo_pd.wording import counted

# Seconds from one line to the next.
_EVERY = 60


class Progress:
    """Counts what is done of a known number.

    Args:
        name: of the stage.
        total: how many there are.
        say: takes one line, where there is no terminal for a bar; None to show nothing at all.
        unit: what is counted.
        done: how many of them were done before.
        leave: leave the bar on the terminal at the end.
    """

    def __init__(
        self,
        name: str,
        total: int,
        say: Callable[[str], None] | None,
        *,
        unit: str = "image",
        done: int = 0,
        leave: bool = True,
    ) -> None:
        self._name, self._total, self._say, self._unit = name, total, say, unit
        self._done = self._before = done
        self._started = self._said = time.monotonic()
        self._note = ""
        self._bar = None
        if total and say is not None and sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=done, unit=unit, desc=name, leave=leave)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def note(self, text: str) -> None:
        """Tell something beside, such as the loss."""
        self._note = text
        if self._bar is not None:
            self._bar.set_postfix_str(text)

    def update(self, count: int = 1) -> None:
        """So many more are done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
            return
        now = time.monotonic()
        if self._say is not None and count and now - self._said >= _EVERY:
            self._said = now
            rate = (self._done - self._before) / (now - self._started)
            left = _in_words(max(0, self._total - self._done) / rate)
            beside = f"; {self._note}" if self._note else ""
            self._say(
                f"{self._name}: {self._done} of {counted(self._total, self._unit)}, {rate:.3g} "
                f"{self._unit}s/s, {left} left{beside}"
            )


def _in_words(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
