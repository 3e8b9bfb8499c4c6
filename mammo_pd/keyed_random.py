"""Random numbers as a function of a key: independent of batch, rank, worker, resume and device."""

import hashlib

import torch
from torch import Tensor

# splitmix64's constants as signed 64-bit integers (Steele, Lea, Flood, "Fast splittable
# pseudorandom number generators", OOPSLA 2014): torch has no full uint64 arithmetic.
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def image_key(seed: int, epoch: int, image_id: str, turn: int = 0) -> int:
    """A signed 64-bit key that determines everything random about one image in one epoch.

    ``turn`` counts earlier occurrences of the image in that epoch. So a draw does not depend on
    batch, order, worker or rank, nor on how often a run was resumed.
    """
    text = f"{seed}/{epoch}/{image_id}" + (f"/{turn}" if turn else "")
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
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


def uniform(keys: Tensor, count: int, stream: int) -> Tensor:
    """``count`` pseudorandom numbers for each key: (B, count) float32 in [0, 1)."""
    # 24 bits are what a float32 can hold: the draw never rounds up to 1.
    return (hashed(keys, count, stream) >> 29).float() / (1 << 24)


def _mix(state: Tensor) -> Tensor:
    state = (state ^ _shift_right(state, 30)) * _MIX_1
    state = (state ^ _shift_right(state, 27)) * _MIX_2
    return state ^ _shift_right(state, 31)


def _shift_right(state: Tensor, bits: int) -> Tensor:
    # Logical, where torch's >> on int64 copies the sign bit.
    return (state >> bits) & ((1 << (64 - bits)) - 1)
