import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
from phantom_images import SMALL, images, shown
from scipy import stats

from mammo_pd.errors import InputError
from mammo_pd.phantoms import LesionKind, PhantomSettings, make_phantom
from mammo_pd.phantoms.women import draw_woman
from mammo_pd.terms import Laterality


class TestSettings:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("patients", 0),
            ("seed", -1),
            ("scale", 0.05),
            ("scale", 1.5),
            ("prevalence", -0.1),
            ("prevalence", 1.1),
            ("vendors", ()),
        ],
    )
    def test_names_the_value_out_of_range(self, field: str, value: object) -> None:
        with pytest.raises(InputError, match=re.escape(f"{field} is {value}")):
            PhantomSettings(**{field: value})

    def test_view_and_patient_are_checked(self) -> None:
        with pytest.raises(ValueError, match="'ML'"):
            make_phantom(SMALL, 0, Laterality.LEFT, "ML")
        with pytest.raises(ValueError, match="patient is 6"):
            make_phantom(SMALL, 6, Laterality.LEFT, "CC")


class TestDeterminism:
    def test_a_woman_does_not_depend_on_how_many_there_are(self) -> None:
        more = dataclasses.replace(SMALL, patients=100)
        one = make_phantom(SMALL, 3, Laterality.LEFT, "CC")
        assert np.array_equal(one.pixels, make_phantom(more, 3, Laterality.LEFT, "CC").pixels)

    def test_every_image_is_another(self) -> None:
        seeds = [SMALL, dataclasses.replace(SMALL, seed=1)]
        pixels = [phantom.pixels.tobytes() for settings in seeds for phantom in images(settings)]
        assert len(set(pixels)) == len(pixels)


class TestNoLeak:
    """The label shows in the lesion's pixels and nowhere else."""

    def test_nothing_else_about_a_woman_depends_on_the_label(self) -> None:
        settings = PhantomSettings(patients=3000)
        women = [draw_woman(settings, patient) for patient in range(settings.patients)]
        table = pd.DataFrame(
            {
                "case": [woman.case_laterality is not None for woman in women],
                "vendor": [woman.vendor.name for woman in women],
                "density": [woman.density for woman in women],
                "age": [woman.age // 10 for woman in women],
                "size": [woman.depth // 10 for woman in women],
            }
        )
        for column in ("vendor", "density", "age", "size"):
            counts = pd.crosstab(table[column], table["case"])
            assert counts.to_numpy().min() > 20
            assert stats.chi2_contingency(counts).pvalue > 0.01, column

    def test_without_lesions_no_simple_statistic_tells_cases(self) -> None:
        settings = PhantomSettings(patients=120, scale=0.1)
        healthy = dataclasses.replace(settings, prevalence=0)
        rows = []
        for patient in range(settings.patients):
            case = draw_woman(settings, patient).case_laterality
            phantom = make_phantom(healthy, patient, case or Laterality.LEFT, "CC")
            grey = stats.zscore(shown(healthy, phantom).ravel())
            rows.append((case is not None, grey.max(), (grey > 1).mean(), stats.skew(grey)))
        case, *statistics = np.array(rows).T
        for statistic in statistics:
            assert stats.mannwhitneyu(statistic[case == 1], statistic[case == 0]).pvalue > 0.01

    def test_the_same_woman_with_and_without_lesion_differs_only_there(self) -> None:
        settings = dataclasses.replace(SMALL, patients=12, prevalence=1)
        healthy = dataclasses.replace(settings, prevalence=0)
        kinds = set()
        for phantom in images(settings):
            twin = make_phantom(healthy, phantom.patient, phantom.laterality, phantom.view)
            assert twin.label == 0
            assert twin.lesions == ()
            changed = phantom.pixels != twin.pixels
            assert changed.any() == bool(phantom.label) == bool(phantom.lesions)
            for lesion in phantom.lesions:
                rows, columns = np.nonzero(changed)
                reach = np.hypot(rows - lesion.row, columns - lesion.column)
                assert reach.max() < 2 * np.sqrt(2) * lesion.radius + 5
                kinds.add(lesion.kind)
        assert kinds == set(LesionKind)
