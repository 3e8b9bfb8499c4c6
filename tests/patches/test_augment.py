import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import adjust_gamma

from mammo_pd.batch import ImageBatch
from mammo_pd.config import AugmentSettings
from mammo_pd.keyed_random import image_key
from mammo_pd.normalization import Normalization
from mammo_pd.patches.affine import affine_of, compose, draw_augmentation, fit_to_image_size
from mammo_pd.patches.draw import draw_grid, draw_tissue, draw_uniform, draw_windows
from mammo_pd.patches.intensity import change_intensity, intensity_of
from mammo_pd.patches.sample import probe, probe_tissue, sample_patches
from mammo_pd.patches.sampler import Kept, PatchSampler
from mammo_pd.terms import Draw

STILL = AugmentSettings.none()
PATCH = 8


def ragged(*images: Tensor) -> ImageBatch:
    """Images of float values 0 to 65535 as the stored uint16, viewed as int16."""
    return ImageBatch.from_images([image.numpy().astype(np.uint16) for image in images])


def random_image(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 65536, (height, width), generator=generator).float()


def patchify(image: Tensor, patch: int = PATCH) -> Tensor:
    """(H, W) to (N, P * P), by torch's own unfold."""
    return F.unfold(image[None, None], patch, stride=patch)[0].T


def keys_of(count: int) -> Tensor:
    return torch.tensor([image_key(0, 0, str(i)) for i in range(count)])


def warp_whole(image: Tensor, matrix: Tensor, img_size: tuple[int, int]) -> Tensor:
    """The whole image through the same map by torch's grid_sample, the oracle."""
    row, column = torch.meshgrid(
        torch.arange(img_size[0]) + 0.5, torch.arange(img_size[1]) + 0.5, indexing="ij"
    )
    at = torch.stack([row, column, torch.ones_like(row)], -1) @ matrix.T
    grid = torch.stack([at[..., 1] / image.shape[1], at[..., 0] / image.shape[0]], -1) * 2 - 1
    return F.grid_sample(
        image[None, None].double(), grid[None].double(), padding_mode="zeros", align_corners=False
    )[0, 0].float()


def test_identity_equals_patchify() -> None:
    img_size = (48, 40)
    images = [random_image(*img_size, seed=seed) for seed in range(3)]
    batch = ragged(*images)
    positions = draw_uniform(keys_of(3), 30, 7)
    matrix = compose(
        fit_to_image_size(batch.heights, batch.widths, img_size),
        affine_of(draw_augmentation(keys_of(3)), img_size, STILL),
    )
    sampled = sample_patches(batch, matrix, positions, img_size[1] // PATCH, PATCH)
    for index, image in enumerate(images):
        assert torch.equal(sampled[index], patchify(image)[positions[index]])


@pytest.mark.parametrize(
    "settings",
    [
        STILL.replace(vertical_flip=1),
        STILL.replace(horizontal_flip=1),
        STILL.replace(rotation_degrees=45),
        STILL.replace(scale=0.5),
        STILL.replace(shift=0.3),
        STILL.replace(
            horizontal_flip=0.5, vertical_flip=0.5, rotation_degrees=30, scale=0.2, shift=0.1
        ),
    ],
    ids=["vertical", "horizontal", "rotation", "scale", "shift", "all"],
)
def test_kept_patches_equal_warping_the_whole_image_first(settings: AugmentSettings) -> None:
    img_size = (64, 48)
    images = [random_image(90, 50, 1), random_image(61, 77, 2), random_image(64, 48, 3)]
    batch, keys = ragged(*images), keys_of(3)
    matrix = compose(
        fit_to_image_size(batch.heights, batch.widths, img_size),
        affine_of(draw_augmentation(keys), img_size, settings),
    )
    positions = draw_uniform(keys, 48, 12)
    sampled = sample_patches(batch, matrix, positions, img_size[1] // PATCH, PATCH)
    for index, image in enumerate(images):
        whole = patchify(warp_whole(image, matrix[index], img_size))
        # Grey values of up to 65535: float32 coordinates are good to a few of them.
        torch.testing.assert_close(sampled[index], whole[positions[index]], atol=8.0, rtol=0)


def test_flip_twice_is_the_identity() -> None:
    img_size = (32, 24)
    flip = affine_of(
        draw_augmentation(keys_of(1)), img_size, STILL.replace(horizontal_flip=1, vertical_flip=1)
    )
    still = affine_of(draw_augmentation(keys_of(1)), img_size, STILL)
    torch.testing.assert_close(compose(flip, flip), still)
    image = random_image(*img_size)
    every = torch.arange(12)[None]
    flipped = sample_patches(ragged(image), flip, every, 3, PATCH)
    assert torch.equal(flipped[0], patchify(image.flip(0, 1)))


@pytest.mark.parametrize("number", [0.0, 1 - 2**-24])
def test_a_rate_of_nought_never_flips_and_one_always_does(number: float) -> None:
    """Also at the least and the greatest number that may be drawn."""
    drawn = torch.full((1, 8), number)
    still = affine_of(drawn, (32, 24), STILL)
    torch.testing.assert_close(still, torch.eye(3)[None, :2])
    flips = affine_of(drawn, (32, 24), STILL.replace(vertical_flip=1, horizontal_flip=1))
    torch.testing.assert_close(flips[:, :, :2], -torch.eye(2)[None])


def test_fit_keeps_the_aspect_ratio_and_the_chest_wall_at_the_left() -> None:
    matrix = fit_to_image_size(torch.tensor([200, 100]), torch.tensor([50, 100]), (100, 80))
    assert matrix[:, 0, 0].tolist() == [2.0, 1.25]
    assert torch.equal(matrix[:, 0, 0], matrix[:, 1, 1])
    assert matrix[:, 1, 2].tolist() == [0.0, 0.0]
    # The image's middle row lies in the canvas's middle row.
    assert (matrix[:, 0, 0] * 50 + matrix[:, 0, 2]).tolist() == [100.0, 50.0]


def test_outside_the_image_is_air() -> None:
    image = torch.full((64, 16), 65535.0)
    batch = ragged(image)
    matrix = fit_to_image_size(batch.heights, batch.widths, (64, 64))
    sampled = sample_patches(batch, matrix, torch.arange(64)[None], 8, PATCH)
    img_size = F.fold(sampled[0].T[None], (64, 64), PATCH, stride=PATCH)[0, 0]
    assert (img_size[:, :16] == 65535).all()
    assert (img_size[:, 16:] == 0).all()


def test_every_affine_draw_lies_within_its_settings() -> None:
    settings = STILL.replace(
        horizontal_flip=0.5, vertical_flip=0.5, rotation_degrees=15, scale=0.1, shift=0.05
    )
    linear = affine_of(draw_augmentation(keys_of(2000)), (100, 80), settings)[:, :, :2]
    zoom = torch.linalg.det(linear).abs().rsqrt()
    assert zoom.min() > 0.8999
    assert zoom.max() < 1.1001
    assert zoom.std() > 0.05
    mirrored = (torch.linalg.det(linear) < 0).float().mean()
    assert abs(mirrored - 0.5) < 0.06
    tilt = torch.atan2(linear[:, 0, 1].abs(), linear[:, 0, 0].abs()) * 180 / math.pi
    assert tilt.max() < 15.001
    assert tilt.max() > 14


def test_every_number_drawn_is_uniform_and_knows_nothing_of_the_others() -> None:
    """Flips, angle, zoom, shifts, gamma and contrast, read back out of what they make."""
    img_size, rate, most = (100, 80), 0.3, 15 * math.pi / 180
    settings = AugmentSettings(
        vertical_flip=rate,
        horizontal_flip=rate,
        rotation_degrees=15,
        scale=0.1,
        shift=0.05,
        gamma=0.2,
        contrast=0.3,
    )
    drawn = draw_augmentation(keys_of(4000))
    matrix = affine_of(drawn, img_size, settings).double()
    intensity = intensity_of(drawn, settings)
    linear, offset = matrix[:, :, :2], matrix[:, :, 2]
    flips = torch.sign(torch.stack([linear[:, 0, 0], linear[:, 1, 1]], 1))
    assert torch.allclose((flips < 0).double().mean(0), torch.tensor(rate).double(), atol=0.03)
    size = torch.tensor(img_size).double()
    # Where the input's point is that reads the image's centre.
    centre = torch.linalg.solve(linear, size / 2 - offset)
    uniform = torch.stack(
        [
            torch.atan2(flips[:, 1] * linear[:, 1, 0], flips[:, 1] * linear[:, 1, 1]) / most,
            (torch.linalg.det(linear).abs().rsqrt() - 1) / 0.1,
            *((centre / size - 0.5) / 0.05).T,
            intensity[:, 0].log() / math.log1p(0.2),
            (intensity[:, 1] - 1) / 0.3,
        ],
        dim=1,
    )
    assert uniform.abs().max() < 1.0001
    quarters = torch.histc(uniform, 4, -1.0001, 1.0001) / uniform.numel()
    torch.testing.assert_close(quarters, torch.full((4,), 0.25).double(), atol=0.02, rtol=0)
    assert uniform.mean(0).abs().max() < 0.05
    assert (uniform.std(0) - 3**-0.5).abs().max() < 0.02
    together = torch.corrcoef(torch.cat([flips, uniform], 1).T) - torch.eye(8)
    assert together.abs().max() < 0.06


def test_intensity_leaves_air_and_changes_each_image_by_its_own_draw() -> None:
    pixels = torch.linspace(0, 1, 64).expand(5, 2, 64)
    keys = keys_of(5)
    changed = change_intensity(pixels, intensity_of(draw_augmentation(keys), AugmentSettings()))
    assert (changed[:, :, 0] == 0).all()
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert len(changed[:, 0, 20].unique()) == 5
    assert torch.equal(
        change_intensity(pixels, intensity_of(draw_augmentation(keys), STILL)), pixels
    )


def test_intensity_is_torchvisions_gamma_and_gain() -> None:
    pixels = torch.rand(4, 3, 64, generator=torch.Generator().manual_seed(0))
    change = torch.tensor([[1.2, 0.8], [0.85, 1.2], [1.1, 1.1], [1.0, 1.0]])
    for one, (gamma, gain), found in zip(
        pixels, change.tolist(), change_intensity(pixels, change), strict=True
    ):
        torch.testing.assert_close(found, adjust_gamma(one[None], gamma, gain)[0])


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="vertical_flip"):
        AugmentSettings(vertical_flip=1.5)
    with pytest.raises(ValueError, match="rotation_degrees"):
        AugmentSettings(rotation_degrees=-1)
    with pytest.raises(ValueError, match="scale"):
        AugmentSettings(scale=1.0)


@pytest.mark.parametrize("grey", [1, 500, 65535])
def test_probed_tissue_is_where_a_patch_holds_breast(grey: int) -> None:
    """Against every pixel of each patch, for breast in blocks that no probe can miss."""
    img_size = (64, 48)
    blocks = torch.rand(3, 16, 12, generator=torch.Generator().manual_seed(0)) < 0.15
    images = [one.repeat_interleave(4, 0).repeat_interleave(4, 1) * float(grey) for one in blocks]
    batch = ragged(*images)
    matrix = fit_to_image_size(batch.heights, batch.widths, img_size)
    tissue = probe_tissue(batch, matrix, (8, 6), PATCH)
    expected = torch.stack([patchify(image).amax(1) > 0 for image in images])
    assert torch.equal(tissue, expected)
    assert 0.2 < expected.float().mean() < 0.8


def test_probes_are_every_pixel_of_a_patch_that_has_no_more() -> None:
    img_size = (24, 20)
    images = [random_image(*img_size, seed=seed) for seed in range(2)]
    batch = ragged(*images)
    matrix = fit_to_image_size(batch.heights, batch.widths, img_size)
    found = probe(batch, matrix, (6, 5), 4)
    assert torch.equal(found.float(), torch.stack([patchify(image, 4) for image in images]))


def test_probes_are_the_nearest_pixels_and_never_another_images() -> None:
    """By grid_sample; images lie one behind the other, and each is asked for beyond its edges."""
    size, grid = (64, 48), (8, 6)
    images = [random_image(h, w, n) for n, (h, w) in enumerate(((90, 50), (61, 77), (30, 30)) * 4)]
    batch = ragged(*images)
    settings = STILL.replace(vertical_flip=0.5, rotation_degrees=40, scale=0.4, shift=0.4)
    matrix = compose(
        fit_to_image_size(batch.heights, batch.widths, size),
        affine_of(draw_augmentation(keys_of(len(images))), size, settings),
    )
    found = probe(batch, matrix, grid, PATCH).view(-1, *grid, 4, 4).transpose(2, 3).flatten(3)
    found = found.flatten(1, 2).view(len(images), 32, 24)
    row, column = torch.meshgrid(2 * torch.arange(32) + 1, 2 * torch.arange(24) + 1, indexing="ij")
    points = torch.stack([row, column, torch.ones_like(row)], -1).double()
    for image, one, nearest in zip(images, matrix.double(), found, strict=True):
        at = points @ one.T
        where = torch.stack([at[..., 1] / image.shape[1], at[..., 0] / image.shape[0]], -1) * 2 - 1
        expected = F.grid_sample(
            image[None, None].double(), where[None], "nearest", "zeros", align_corners=False
        )[0, 0]
        # Between two pixels it may be either.
        between = ((at - at.round()).abs() < 1e-3).any(-1)
        assert between.float().mean() < 0.05
        assert torch.equal(nearest[~between].double(), expected[~between])


def test_probes_go_through_the_augmentation_and_call_the_outside_air() -> None:
    img_size = (64, 48)
    settings = STILL.replace(
        horizontal_flip=0.5, vertical_flip=0.5, rotation_degrees=30, scale=0.2, shift=0.3
    )
    batch = ragged(*[torch.full((90, 50), 9.0)] * 20)
    drawn = draw_augmentation(keys_of(20))
    matrix = compose(
        fit_to_image_size(batch.heights, batch.widths, img_size),
        affine_of(drawn, img_size, settings),
    )
    tissue = probe_tissue(batch, matrix, (8, 6), PATCH)
    every = torch.arange(48).expand(20, -1)
    maximum_intensity_projection = sample_patches(batch, matrix, every, 6, PATCH).amax(-1)
    assert not tissue[maximum_intensity_projection == 0].any()
    # A patch that only the image's edge touches may be missed.
    assert tissue[maximum_intensity_projection == 9].float().mean() > 0.97


MOVED = AugmentSettings(horizontal_flip=0.5, rotation_degrees=30, scale=0.3, shift=0.2, gamma=0.5)


def half_air() -> tuple[list[Tensor], ImageBatch]:
    """Images of unequal sizes, taller, wider and of the input's own, whose right half is air."""
    images = [random_image(90, 50, 1), random_image(61, 77, 2), random_image(64, 48, 3)]
    for image in images:
        image[:, image.shape[1] // 2 :] = 0
    return images, ragged(*images)


def expected_patches(
    images: list[Tensor], matrix: Tensor, change: Tensor, positions: Tensor
) -> Tensor:
    """By grid_sample, torchvision's gamma and torch's unfold, of the whole images."""
    return torch.stack(
        [
            patchify(
                (adjust_gamma(warp_whole(image, one, (64, 48))[None] / 65535, *how)[0] - 0.3) / 0.2
            )[place]
            for image, one, how, place in zip(
                images, matrix, change.tolist(), positions, strict=True
            )
        ]
    )


@pytest.mark.parametrize("num_keep", [7, 48])
@pytest.mark.parametrize("draw", Draw)
def test_sampler_gives_the_patches_of_whole_images_moved_changed_and_normalised(
    draw: Draw, num_keep: int
) -> None:
    """The grey values that dropout leaves are those that a model without it would see."""
    images, batch = half_air()
    keys, size, grid = keys_of(3), (64, 48), (8, 6)
    sampler = PatchSampler(
        size, PATCH, draw=draw, augment=MOVED, normalization=Normalization(0.3, 0.2)
    )
    fit = fit_to_image_size(batch.heights, batch.widths, size)
    drawn = draw_augmentation(keys)
    moved = compose(fit, affine_of(drawn, size, MOVED))
    change = intensity_of(drawn, MOVED)

    def drawn_on(matrix: Tensor) -> Tensor:
        return {
            Draw.UNIFORM: draw_uniform(keys, 48, num_keep),
            Draw.TISSUE: draw_tissue(keys, probe_tissue(batch, matrix, grid, PATCH), num_keep),
            Draw.GRID: draw_grid(keys, grid, num_keep),
        }[draw]

    patches, positions = sampler.for_training(batch, keys, num_keep)
    assert torch.equal(positions, drawn_on(moved))
    expected = expected_patches(images, moved, change, positions)
    torch.testing.assert_close(patches, expected, atol=2e-3, rtol=0)

    # Scored are images as they are, whatever draws the patches.
    still = torch.ones(3, 2)
    for kept, chosen in (
        (None, torch.arange(48).expand(3, -1)),
        (Kept(num_keep, keys), drawn_on(fit)),
        (
            Kept(num_keep, keys, tissue_first=True),
            draw_tissue(keys, probe_tissue(batch, fit, grid, PATCH), num_keep),
        ),
    ):
        patches, positions = sampler.for_evaluation(batch, kept)
        assert torch.equal(positions, chosen)
        expected = expected_patches(images, fit, still, positions)
        torch.testing.assert_close(patches, expected, atol=2e-3, rtol=0)


def test_white_is_the_highest_grey_value_and_air_is_nought() -> None:
    image = torch.tensor([[65535.0, 0.0]]).repeat_interleave(8, 0).repeat_interleave(8, 1)
    sampler = PatchSampler((8, 16), PATCH, normalization=Normalization(0.25, 0.5))
    patches, _ = sampler.for_evaluation(ragged(image))
    assert patches[0].unique(dim=1).tolist() == [[1.5], [-0.5]]


def test_windows_are_drawn_where_the_model_has_some_and_all_is_all() -> None:
    batch, keys = ragged(random_image(56, 84), random_image(50, 90)), keys_of(2)
    sampler = PatchSampler((56, 84), 4, window=7)
    assert torch.equal(
        sampler.for_training(batch, keys, 54)[1], draw_windows(keys, (14, 21), 7, 54)
    )
    every = torch.arange(14 * 21).expand(2, -1)
    assert torch.equal(sampler.for_training(batch, keys, 14 * 21)[1], every)
