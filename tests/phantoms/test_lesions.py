import dataclasses

import numpy as np
import pytest
from phantom_images import shown
from scipy import ndimage

from mammo_pd.phantoms import VIEWS, LesionKind, Phantom, PhantomSettings, make_phantom
from mammo_pd.phantoms.women import draw_woman
from mammo_pd.terms import Laterality

Pairs = list[tuple[Phantom, np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    """Images with a lesion, what it adds to the grey scale, and the grey scale without it."""
    settings = PhantomSettings(patients=16, scale=0.3, prevalence=1)
    healthy = dataclasses.replace(settings, prevalence=0)
    pairs = []
    for patient in range(settings.patients):
        case = draw_woman(settings, patient).case_laterality
        assert case is not None
        for view in VIEWS:
            phantom = make_phantom(settings, patient, case, view)
            before = shown(healthy, make_phantom(healthy, patient, case, view))
            pairs.append((phantom, shown(settings, phantom) - before, before))
    return pairs


class TestLesions:
    def test_lies_in_the_breast_and_clear_of_the_muscle(self, pairs: Pairs) -> None:
        for phantom, _, before in pairs:
            lesion = phantom.lesions[0]
            rows, columns = np.indices(before.shape)
            inside = np.hypot(rows - lesion.row, columns - lesion.column) < lesion.radius
            assert inside.sum() > 0.9 * np.pi * lesion.radius**2  # not cut off by the image's edge
            assert ndimage.gaussian_filter(before, 2)[inside].min() > 0.1

    def test_masses_are_8_to_20_mm_wide_and_seen_in_both_views(self, pairs: Pairs) -> None:
        masses = [pair for pair in pairs if pair[0].lesions[0].kind is LesionKind.MASS]
        assert len(masses) >= 10
        for phantom, added, _ in masses:
            lesion = phantom.lesions[0]
            core = (slice(round(lesion.row) - 3, round(lesion.row) + 4),)
            core += (slice(round(lesion.column) - 3, round(lesion.column) + 4),)
            assert added[core].mean() > 0.2
            width = 2 * np.sqrt((added > added[core].mean() / 2).sum() / np.pi)
            width_mm = width * phantom.imager_pixel_spacing[0]
            assert width_mm == pytest.approx(
                2 * lesion.radius * phantom.imager_pixel_spacing[0], rel=0.25
            )
            assert 8 * 0.75 < width_mm < 20 * 1.25

    def test_calcifications_are_a_few_pixels_wide_within_10_mm(self, pairs: Pairs) -> None:
        clusters = [pair for pair in pairs if pair[0].lesions[0].kind is LesionKind.CALCIFICATION]
        assert len(clusters) >= 4
        for phantom, added, _ in clusters:
            specks, number = ndimage.label(added > 0.15)
            assert 3 <= number <= 15  # of 5 to 15 some touch
            areas = ndimage.sum_labels(np.ones_like(added), specks, range(1, number + 1))
            assert 2 <= np.median(areas) <= 25
            rows, columns = np.nonzero(specks)
            spread = max(np.ptp(rows), np.ptp(columns)) * phantom.imager_pixel_spacing[0]
            assert spread < 10 + 5 * phantom.imager_pixel_spacing[0]

    def test_lies_as_far_behind_the_nipple_in_both_views(self, pairs: Pairs) -> None:
        for (cc, _, before_cc), (mlo, _, before_mlo) in zip(pairs[::2], pairs[1::2], strict=True):
            distances = []
            for phantom, before in ((cc, before_cc), (mlo, before_mlo)):
                breast, _ = ndimage.label(ndimage.gaussian_filter(before, 2) > 0.12)
                lesion = phantom.lesions[0]
                inside = breast == breast[round(lesion.row), round(lesion.column)]
                columns = np.flatnonzero(inside.any(axis=0))
                wall_right = (phantom.laterality is Laterality.RIGHT) != phantom.vendor.mirrored
                nipple = columns.min() if wall_right else columns.max()
                distances.append(abs(lesion.column - nipple) * phantom.imager_pixel_spacing[1])
            assert distances[0] == pytest.approx(distances[1], abs=2)
