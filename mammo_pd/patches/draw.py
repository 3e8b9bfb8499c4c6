"""PatchDropout's draw, which K of an image's N patches are kept: image keys in, positions out.

Shapes: B images, N patch positions on the grid in raster order, K of them kept.

Source: Liu, Matsoukas, Strand, Azizpour, Smith, "PatchDropout: Economizing Vision Transformers
Using Patch Dropout", WACV 2023, arXiv 2208.07220, section 3.
"""

import math

import torch
from torch import Tensor

from mammo_pd.keyed_random import hashed


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
    return take_lowest(hashed(keys, num_tokens, stream=0), num_keep)


def draw_tissue(keys: Tensor, tissue: Tensor, num_keep: int) -> Tensor:
    """Draw K positions for each image, of patches that hold breast first and of air to fill up.

    K is one number for the batch, so attention needs no mask.

    Args:
        keys: (B,) int64, from `image_key`.
        tissue: (B, N) bool, whether each patch holds breast.
        num_keep: K.

    Returns:
        (B, K) int64 positions in [0, N), without repeats, ascending. Among the tissue every subset
        is equally likely, and so it is among the air.
    """
    last = (~tissue).long() << 53
    return take_lowest(hashed(keys, tissue.shape[1], stream=0) + last, num_keep)


def draw_grid(keys: Tensor, grid_size: tuple[int, int], num_keep: int) -> Tensor:
    """Draw K positions for each image that are spread evenly, at a random offset.

    Positions are taken in the order of a Bayer matrix, laid over the grid with an offset drawn for
    each image. A quarter is then every second patch of every second row; any other K is the most
    even pattern of that order.

    Args:
        keys: (B,) int64, from `image_key`.
        grid_size: of patches, (rows, columns); N is their product.
        num_keep: K.

    Returns:
        (B, K) int64 positions in [0, N), without repeats, ascending.

    Source: Bayer, "An optimum method for two-level rendition of continuous-tone pictures", ICC
    1973.
    """
    rows, columns = grid_size
    bits = max(rows - 1, columns - 1, 1).bit_length()
    offset = hashed(keys, 2, stream=3) & ((1 << bits) - 1)
    position = torch.arange(rows * columns, device=keys.device)
    row = (position // columns)[None, :] + offset[:, :1]
    column = (position % columns)[None, :] + offset[:, 1:]
    rank = torch.zeros_like(row)
    for bit in range(bits):
        low = row >> bit & 1
        rank = rank << 2 | ((low ^ column >> bit & 1) << 1 | low)
    return take_lowest(rank, num_keep)


def draw_dropped(keys: Tensor, kept: Tensor, tissue: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Draw some of the positions that a draw has dropped, of patches that hold breast first.

    Args:
        keys: (B,) int64, from `image_key`.
        kept: (B, K) int64, the positions that were kept.
        tissue: (B, N) bool, whether each patch holds breast.
        count: M, how many; at most N - K.

    Returns:
        (B, M) int64 positions in [0, N), without repeats, ascending, none of them kept; and (B, M)
        bool, which of them hold breast. Among the dropped tissue every subset is equally likely.
    """
    rank = hashed(keys, tissue.shape[1], stream=5) + ((~tissue).long() << 53)
    rank = rank.scatter_add(1, kept, torch.full_like(kept, 1 << 55))
    drawn = take_lowest(rank, count)
    return drawn, tissue.gather(1, drawn)


def draw_windows(keys: Tensor, grid_size: tuple[int, int], window: int, num_keep: int) -> Tensor:
    """Draw for each image n rows and n columns, and keep their crossings in every window.

    Args:
        keys: (B,) int64, from `image_key`.
        grid_size: of patches, (rows, columns), multiples of the window's side.
        window: side of the windows, in patches.
        num_keep: K, n * n for each window.

    Returns:
        (B, K) int64 positions in [0, N), without repeats, ascending. Every set of n rows is equally
        likely, and so is every set of n columns, independently.

    Source: the paper's structured sampling for Swin, section 3.
    """
    rows, columns = grid_size
    kept = math.isqrt(num_keep * window**2 // (rows * columns))
    rank = hashed(keys, 2 * window, stream=6)

    def along(length: int, rank: Tensor) -> Tensor:
        first = torch.arange(0, length, window, device=keys.device)
        return (first[None, :, None] + take_lowest(rank, kept)[:, None]).flatten(1)

    row, column = along(rows, rank[:, :window]), along(columns, rank[:, window:])
    return (row[:, :, None] * columns + column[:, None]).flatten(1)


def take_lowest(rank: Tensor, count: int) -> Tensor:
    """Choose the positions of the lowest ranks: (B, N) int64 to (B, count) int64, ascending."""
    # Stable, so that even two equal ranks come out in the same order on every device.
    return rank.argsort(dim=1, stable=True)[:, :count].sort(dim=1).values
