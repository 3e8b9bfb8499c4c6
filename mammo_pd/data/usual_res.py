"""The input size that a store's next command is advised with."""

from mammo_pd.data.kept_levels import NATIVE, kept_levels
from mammo_pd.data.manifest import read_manifest
from mammo_pd.data.store import StorePaths

_USUAL_RES = 1024
# Of the default model.
_PATCH_SIZE = 16


def usual_res(paths: StorePaths) -> int:
    """The input height to begin with, in pixels: 1024, or less where the images are smaller.

    That is where the store keeps no level for it, and where the long side of every usable image is
    shorter: then it is the longest of them, in whole patches of 16 pixels.

    Raises:
        InputError: the manifest cannot be read.
    """
    largest = kept_levels(paths)[0]
    most = _USUAL_RES if largest == NATIVE else min(_USUAL_RES, int(largest))
    if not paths.manifest.is_file():
        return most
    crops = read_manifest(paths.manifest)[["crop_height", "crop_width"]]
    if crops.empty:
        return most
    longest = int(crops.to_numpy().max())
    return min(most, max(1, longest // _PATCH_SIZE) * _PATCH_SIZE)
