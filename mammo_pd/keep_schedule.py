"""The keep rate of every training step, and K, the number of patches that a keep rate keeps."""

import hashlib
from dataclasses import dataclass

from mammo_pd.errors import InputError

# Compiled code is specialised for the number of kept patches, so a linear schedule has few steps.
_LINEAR_STEPS = 8
# Attention kernels work on tiles of this many tokens: one more token costs a whole tile.
_TILE = 128
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
        random: instead draw a new rate for each step, as the paper's code does.
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

    @property
    def drops(self) -> bool:
        """Whether any step drops patches."""
        return self.random or min(self.first, self.last) < 1

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


def count_kept(num_tokens: int, keep_rate: float) -> int:
    """Return K, the number of patches kept out of ``num_tokens``: rounded down, at least 1.

    Raises:
        ValueError: ``keep_rate`` is not in (0, 1].

    Source: the official code's ``int(N * keep_rate)``; timm's ``patch_drop_rate`` takes
    ``int(N * (1 - drop_rate))`` instead, which can be one lower.
    """
    if not 0 < keep_rate <= 1:
        raise ValueError(f"keep_rate {keep_rate} is not in (0, 1]")
    return max(1, int(num_tokens * keep_rate))


def choose_num_keep(num_tokens: int, keep_rate: float, num_prefix: int) -> int:
    """Return K as used in training: `count_kept`, or up to 1 % less if that fills whole tiles.

    At 1024x1024, patch size 16 and keep rate 0.25 there are 1024 patches, 1025 tokens with the
    class token, and attention over them costs as much as over 1152. With 1023 patches the whole
    step takes a tenth less time.

    Args:
        num_tokens: N.
        keep_rate: in (0, 1]; 1 keeps every patch.
        num_prefix: class and register tokens, which pass through the blocks as well.

    Returns:
        K, lowered by at most 1 % so that K + num_prefix is a multiple of 128, if that suffices.

    Raises:
        ValueError: ``keep_rate`` is not in (0, 1].
    """
    kept = count_kept(num_tokens, keep_rate)
    spare = (kept + num_prefix) % _TILE
    return kept - spare if kept < num_tokens and spare * 100 <= kept else kept


def choose_rows_kept(window: int, keep_rate: float) -> int:
    """Return n: n rows and n columns of every window are kept, n x n patches in each.

    Args:
        window: side of the windows, in patches.
        keep_rate: in (0, 1]; n is chosen so that n x n is nearest to this fraction of the patches.

    Raises:
        ValueError: ``keep_rate`` is not in (0, 1].
        InputError: n would be 1, and a window of one token has nothing to attend to.
    """
    count_kept(1, keep_rate)
    kept = min(range(1, window + 1), key=lambda rows: abs(rows**2 / window**2 - keep_rate))
    if kept == 1:
        raise InputError(
            f"a keep rate of {keep_rate:g} leaves one patch in each window of {window}x{window}, "
            f"which then has nothing to attend to; give at least {4 / window**2:.2g}, which keeps "
            "2 rows and 2 columns."
        )
    return kept


def _official_random(seed: int, epoch: int, step: int) -> float:
    """1 for half of the steps, else one of 0.5, 0.55, ... 1."""
    digest = hashlib.blake2b(f"keep/{seed}/{epoch}/{step}".encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "little")
    return 1.0 if number & 1 else 1 - (number >> 1) % 11 / 20
