"""PatchDropout's draw, which K of an image's N patches are kept: image keys in, positions out.

Shapes: B images, N patch positions on the grid in raster order, K of them kept.

Source: Liu, Matsoukas, Strand, Azizpour, Smith, "PatchDropout: Economizing Vision Transformers
Using Patch Dropout", WACV 2023, arXiv 2208.07220, section 3.
"""

import hashlib

import torch
from torch import Tensor

# splitmix64's constants as signed 64-bit integers (Steele, Lea, Flood, "Fast splittable
# pseudorandom number generators", OOPSLA 2014): torch has no full uint64 arithmetic.
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def count_kept(num_tokens: int, keep_rate: float) -> int:
    """K, the number of patches kept out of ``num_tokens``, by the paper's rounding, at least 1.

    Raises:
        ValueError: ``keep_rate`` is not in (0, 1].

    Source: the official code's ``int(N * keep_rate)``; timm's ``patch_drop_rate`` counts
    ``int(N * (1 - drop_rate))`` instead and can come out one lower.
    """
    if not 0 < keep_rate <= 1:
        raise ValueError(f"keep_rate {keep_rate} is not in (0, 1]")
    return max(1, int(num_tokens * keep_rate))


def image_key(seed: int, epoch: int, image_id: str) -> int:
    """A signed 64-bit key from which everything random about one image in one epoch follows.

    So a draw depends on neither batch, order, worker, rank nor on how often a run was resumed.
    """
    digest = hashlib.blake2b(f"{seed}/{epoch}/{image_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def hashed(keys: Tensor, count: int, stream: int) -> Tensor:
    """``count`` pseudorandom integers for each key, the same on every device.

    Args:
        keys: (B,) int64.
        count: how many for each key.
        stream: numbers of different streams are independent.

    Returns:
        (B, count) int64 in [0, 2**53).
    """
    counter = torch.arange(count, device=keys.device, dtype=torch.int64)
    start = _mix(_mix(keys) + stream)
    state = start[:, None] + (counter + 1)[None, :] * _GOLDEN_GAMMA
    return _shift_right(_mix(state), 11)


def draw_uniform(keys: Tensor, num_tokens: int, num_keep: int) -> Tensor:
    """Draw K of N patch positions for each image, every subset equally likely.

    Args:
        keys: (B,) int64, from `image_key`.
        num_tokens: N.
        num_keep: K, from `count_kept`.

    Returns:
        (B, K) int64 positions in [0, N), without repeats, ascending (raster order, as the
        official code sorts them).
    """
    if num_keep == num_tokens:
        return torch.arange(num_tokens, device=keys.device).expand(len(keys), -1)
    # Stable, so that even two equal hashes come out in the same order on every device.
    order = hashed(keys, num_tokens, stream=0).argsort(dim=1, stable=True)
    return order[:, :num_keep].sort(dim=1).values


def _mix(state: Tensor) -> Tensor:
    state = (state ^ _shift_right(state, 30)) * _MIX_1
    state = (state ^ _shift_right(state, 27)) * _MIX_2
    return state ^ _shift_right(state, 31)


def _shift_right(state: Tensor, bits: int) -> Tensor:
    # Logical, where torch's >> on int64 copies the sign bit.
    return (state >> bits) & ((1 << (64 - bits)) - 1)
