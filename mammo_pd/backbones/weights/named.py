"""What ``--weights`` may name, told apart without torch: a hub, a timm name, or a local file."""

from pathlib import Path

from mammo_pd.errors import InputError

HUB = "timm"
HUB_PREFIXES = ("hf-hub:", "hf_hub:")
# A timm name may hold a dot, so that not every ending is a file's.
_FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".npz", ".pkl")


def refuse_missing_file(weights: str) -> None:
    """Refuse what can only be a local file, and is none.

    Raises:
        InputError: there is no such file.
    """
    if weights == HUB or weights.startswith(HUB_PREFIXES) or Path(weights).is_file():
        return
    if not weights or Path(weights).name != weights or weights.lower().endswith(_FILE_SUFFIXES):
        raise no_such_weights(weights)


def no_such_weights(weights: str) -> InputError:
    """The error for weights that are neither a file nor known to timm."""
    problem = "is a folder" if weights and Path(weights).is_dir() else "does not exist"
    return InputError(
        f"the weights file {weights or repr(weights)} {problem}; give a local file (.safetensors, "
        ".pth, .npz) or, with a network, 'timm', a timm name or hf-hub:OWNER/NAME."
    )
