"""PatchDropout's draw, which K of an image's N patches are kept: image keys in, positions out.

Shapes: B images, N patch positions on the grid in raster order, K of them kept.

Source: Liu, Matsoukas, Strand, Azizpour, Smith, "PatchDropout: Economizing Vision Transformers
Using Patch Dropout", WACV 2023, arXiv 2208.07220, section 3.
"""

import torch
from torch import Tensor

from mammo_pd.keyed_random import hashed

# Attention kernels work on tiles of this many tokens: one token more costs a whole tile more.
_TILE = 128


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


def choose_num_keep(num_tokens: int, keep_rate: float, num_prefix: int) -> int:
    """K as training takes it: the paper's, or up to 1 % less where that fills whole tiles.

    A quarter of 1024x1024 at patch 16 is 1024 patches: with the class token 1025 tokens, whose
    attention costs as much as that of 1152. With 1023 patches the whole step is a tenth shorter.

    Args:
        num_tokens: N.
        keep_rate: in (0, 1]; 1 keeps every patch.
        num_prefix: class and register tokens, which go through the blocks too.

    Returns:
        K, such that K + prefix is a multiple of 128 if that takes at most 1 % of it away.

    Raises:
        ValueError: ``keep_rate`` is not in (0, 1].
    """
    kept = count_kept(num_tokens, keep_rate)
    spare = (kept + num_prefix) % _TILE
    return kept - spare if kept < num_tokens and spare * 100 <= kept else kept


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
    return _lowest(hashed(keys, num_tokens, stream=0), num_keep)


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
    return _lowest(hashed(keys, tissue.shape[1], stream=0) + last, num_keep)


def draw_grid(keys: Tensor, grid_size: tuple[int, int], num_keep: int) -> Tensor:
    """Draw K positions for each image that are spread evenly, at a random offset.

    Positions are taken in the order of a Bayer matrix, laid over the grid with an offset drawn for
    each image. A quarter is then every second patch of every second row; any other K is the most
    even pattern of that order.

    Args:
        keys: (B,) int64, from `image_key`.
        grid_size: patches on the canvas, (rows, columns); N is their product.
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
    return _lowest(rank, num_keep)


def _lowest(rank: Tensor, count: int) -> Tensor:
    # Stable, so that even two equal ranks come out in the same order on every device.
    return rank.argsort(dim=1, stable=True)[:, :count].sort(dim=1).values
