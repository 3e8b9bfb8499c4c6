"""The keep rate over a run's epochs: from the text of ``--keep`` to the rate of each step."""

import hashlib
from dataclasses import dataclass

# Compiled code is specialised by the number of kept patches, so a linear schedule moves in steps.
_LINEAR_STEPS = 8
_FORMS = (
    "give a rate such as 0.25, a linear schedule such as 0.5:0.25 (quoted in YAML), or random, "
    "each with an optional +N to keep every patch in the last N epochs"
)


@dataclass(frozen=True)
class KeepSchedule:
    """The keep rate of every training step.

    Attributes:
        first: keep rate of the first epoch.
        last: keep rate of the last epoch before the full ones; linear in between, in at most 8
            steps.
        random: draw the rate anew for each step instead, as the paper's code does.
        full_epochs: number of final epochs that keep every patch, like FLIP's unmasked tuning.

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
            ValueError: any other form, or a rate outside (0, 1]. The message begins with ``text``,
                so that a caller can put the name of the option before it.
        """
        rates, plus, tail = str(text).replace(" ", "").partition("+")
        if plus and not tail.isdigit():
            raise ValueError(f"{text} is not a keep rate; {_FORMS}")
        full = int(tail) if plus else 0
        if rates == "random":
            return cls(1.0, 1.0, random=True, full_epochs=full)
        try:
            first, *rest = (float(rate) for rate in rates.split(":"))
        except ValueError:
            raise ValueError(f"{text} is not a keep rate; {_FORMS}") from None
        if len(rest) > 1:
            raise ValueError(f"{text} is not a keep rate; {_FORMS}")
        last = rest[0] if rest else first
        # Written so that NaN is refused too.
        if not (0 < first <= 1 and 0 < last <= 1):
            raise ValueError(f"{text} is not in (0, 1]; {_FORMS}")
        return cls(first, last, full_epochs=full)

    @property
    def base(self) -> float:
        """The largest keep rate outside the full epochs: what the batch size must fit."""
        return max(self.first, self.last)

    def keep_rate(self, epoch: int, epochs: int, step: int, seed: int) -> float:
        """The keep rate of one step, the same in every process.

        Args:
            epoch: counted from 0.
            epochs: of the whole run.
            step: within the epoch, counted from 0.
            seed: of the run.
        """
        scheduled = epochs - self.full_epochs
        if epoch >= scheduled:
            return 1.0
        if self.random:
            return _official_random(seed, epoch, step)
        if self.first == self.last:
            return self.first
        last_stair = min(_LINEAR_STEPS, scheduled) - 1
        if last_stair < 1:
            return self.first
        stair = round(epoch / (scheduled - 1) * last_stair)
        if stair == last_stair:
            # The sum below can round to slightly more than `last`, and a rate above 1 is invalid.
            return self.last
        return self.first + (self.last - self.first) * stair / last_stair


def _official_random(seed: int, epoch: int, step: int) -> float:
    """1 for half of the steps, else one of 0.5, 0.55, ... 1."""
    digest = hashlib.blake2b(f"keep/{seed}/{epoch}/{step}".encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "little")
    return 1.0 if number & 1 else 1 - (number >> 1) % 11 / 20
