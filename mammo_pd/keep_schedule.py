"""How the keep rate goes over the epochs: from the text of ``--keep`` to each step's number."""

import hashlib
from dataclasses import dataclass

# Compiled code is made for few K.
_LINEAR_STEPS = 8
_FORMS = (
    "a share such as 0.25, 0.5:0.25 (linear over the epochs; in quotes in YAML), or random; each "
    "with +N for N last epochs that keep every patch"
)


@dataclass(frozen=True)
class KeepSchedule:
    """The keep rate of every training step.

    Attributes:
        first: keep rate of the first epoch.
        last: of the last epoch before the full ones; linear in between, in at most 8 steps.
        random: drawn anew for each step instead, as in the paper's code.
        full_epochs: so many last epochs keep every patch, as FLIP's unmasked tuning does.

    Source: random: the official code's ``random_keep_rate``. Unmasked tuning: Li et al. 2023,
    Scaling Language-Image Pre-training via Masking, arXiv 2212.00794, section 3.
    """

    first: float
    last: float
    random: bool = False
    full_epochs: int = 0

    @classmethod
    def parse(cls, text: str | float) -> "KeepSchedule":
        """Read ``0.25``, ``0.5:0.25`` or ``random``, each optionally with ``+N``.

        Raises:
            ValueError: of another form, or a rate that is not in (0, 1].
        """
        rates, plus, tail = str(text).replace(" ", "").partition("+")
        if plus and not tail.isdigit():
            raise ValueError(f"keep_rate {text} is not understood; allowed is {_FORMS}")
        full = int(tail) if plus else 0
        if rates == "random":
            return cls(1.0, 1.0, random=True, full_epochs=full)
        try:
            first, *rest = (float(rate) for rate in rates.split(":"))
        except ValueError:
            raise ValueError(f"keep_rate {text} is not understood; allowed is {_FORMS}") from None
        if len(rest) > 1:
            raise ValueError(f"keep_rate {text} is not understood; allowed is {_FORMS}")
        last = rest[0] if rest else first
        if not (0 < first <= 1 and 0 < last <= 1):
            raise ValueError(f"keep_rate {text} is not in (0, 1]; allowed is {_FORMS}")
        return cls(first, last, full_epochs=full)

    @property
    def base(self) -> float:
        """The largest keep rate but for the full epochs: what a batch must fit in memory at."""
        return max(self.first, self.last)

    def keep_rate(self, epoch: int, epochs: int, step: int, seed: int) -> float:
        """The keep rate of one step, the same in every process.

        Args:
            epoch: from 0.
            epochs: of the whole run.
            step: within the epoch, from 0.
            seed: of the run.
        """
        scheduled = epochs - self.full_epochs
        if epoch >= scheduled:
            return 1.0
        if self.random:
            return _official_random(seed, epoch, step)
        if self.first == self.last:
            return self.first
        stairs = min(_LINEAR_STEPS, scheduled) - 1
        if stairs < 1:
            return self.first
        stair = round(epoch / (scheduled - 1) * stairs)
        if stair == stairs:
            # Exactly: the sum below can round to a little more, and more than 1 is no share.
            return self.last
        return self.first + (self.last - self.first) * stair / stairs


def _official_random(seed: int, epoch: int, step: int) -> float:
    """1 for half of the steps, else one of 0.5, 0.55, ... 1."""
    digest = hashlib.blake2b(f"keep/{seed}/{epoch}/{step}".encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "little")
    return 1.0 if number & 1 else 1 - (number >> 1) % 11 / 20
