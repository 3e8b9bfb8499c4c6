"""The pixels of the kept patches, and of nothing else: a dropped patch is never read.

Shapes: B images, N patches on the grid, K of them kept, P the patch's side in pixels.
"""

import torch
from torch import Tensor

from mammo_pd.batch import ImageBatch

# A patch is probed at so many pixels along each side.
_PROBES = 4


def sample_patches(
    images: ImageBatch,
    matrix: Tensor,
    positions: Tensor,
    grid_width: int,
    patch_size: int,
) -> Tensor:
    """Read the kept patches' pixels through an affine map, bilinearly; outside the image is air.

    Args:
        images: B stored images.
        matrix: (B, 2, 3) float32, input to stored image.
        positions: (B, K) int64, raster order on the patch grid.
        grid_width: patches in one row of the grid.
        patch_size: P.

    Returns:
        (B, K, P * P) float32 in [0, 65535], each patch's pixels in raster order.
    """
    side = torch.arange(patch_size, device=positions.device, dtype=torch.float32) + 0.5
    row = (positions // grid_width * patch_size)[:, :, None] + side
    column = (positions % grid_width * patch_size)[:, :, None] + side
    return read_squares(images, matrix, row, column)


def read_squares(images: ImageBatch, matrix: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Read squares of points through an affine map, bilinearly; outside the image is air.

    Args:
        images: B stored images.
        matrix: (B, 2, 3) float32, input to stored image.
        row: (B, K, P) float32, of each square's rows of points, in pixels of the input.
        column: (B, K, P) float32, of its columns.

    Returns:
        (B, K, P * P) float32 in [0, 65535], each square's points in raster order.
    """
    # (B, K, P, 1) and (B, K, 1, P): the map is linear, so the two parts are added at the end.
    row, column = row[:, :, :, None], column[:, :, None, :]
    m = matrix[:, :, :, None, None, None]
    source_row = m[:, 0, 0] * row + m[:, 0, 1] * column + (m[:, 0, 2] - 0.5)
    source_column = m[:, 1, 0] * row + m[:, 1, 1] * column + (m[:, 1, 2] - 0.5)

    top, left = torch.floor(source_row), torch.floor(source_column)
    down, right = source_row - top, source_column - left
    top, left = top.long(), left.long()
    height = images.heights[:, None, None, None]
    width = images.widths[:, None, None, None]
    offset = images.offsets[:, None, None, None]

    def read(row: Tensor, column: Tensor) -> Tensor:
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        index = torch.where(inside, offset + row * width + column, 0)
        value = (images.pixels[index].to(torch.int32) & 0xFFFF).float()
        return torch.where(inside, value, 0.0)

    above = read(top, left) * (1 - right) + read(top, left + 1) * right
    below = read(top + 1, left) * (1 - right) + read(top + 1, left + 1) * right
    return (above * (1 - down) + below * down).flatten(2)


def probe_tissue(
    images: ImageBatch, matrix: Tensor, grid_size: tuple[int, int], patch_size: int
) -> Tensor:
    """Tell which patches hold breast, from a few pixels of each: air is 0 in the store.

    Args:
        images: B stored images.
        matrix: (B, 2, 3) float32, input to stored image.
        grid_size: of patches, (rows, columns); N is their product.
        patch_size: P.

    Returns:
        (B, N) bool: whether any of the pixels that `probe` reads of the patch is above 0.
    """
    return (probe(images, matrix, grid_size, patch_size) != 0).any(dim=2)


def probe(
    images: ImageBatch, matrix: Tensor, grid_size: tuple[int, int], patch_size: int
) -> Tensor:
    """Read a few pixels of every patch, kept or not: 4x4, evenly spaced.

    Args:
        images: B stored images.
        matrix: (B, 2, 3) float32, input to stored image.
        grid_size: of patches, (rows, columns); N is their product.
        patch_size: P.

    Returns:
        (B, N, 16) int32 in [0, 65535], each the nearest pixel of the image; 0 outside it.
    """
    device = matrix.device
    step = patch_size / _PROBES

    def along(count: int) -> Tensor:
        return (torch.arange(count * _PROBES, device=device, dtype=torch.float32) + 0.5) * step

    row, column = along(grid_size[0])[None, :, None], along(grid_size[1])[None, None, :]
    m = matrix[:, :, :, None, None]
    source_row = torch.floor(m[:, 0, 0] * row + m[:, 0, 1] * column + m[:, 0, 2]).long()
    source_column = torch.floor(m[:, 1, 0] * row + m[:, 1, 1] * column + m[:, 1, 2]).long()
    height, width = images.heights[:, None, None], images.widths[:, None, None]
    inside = (source_row >= 0) & (source_row < height)
    inside &= (source_column >= 0) & (source_column < width)
    index = images.offsets[:, None, None] + source_row * width + source_column
    value = images.pixels[torch.where(inside, index, 0)].to(torch.int32) & 0xFFFF
    probes = torch.where(inside, value, 0)
    probes = probes.view(-1, grid_size[0], _PROBES, grid_size[1], _PROBES)
    return probes.transpose(2, 3).flatten(3).flatten(1, 2)
