"""``mammo-pd show``: what a checkpoint records about itself."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from mammo_pd.cli.options import DEFAULT_RUNS, RunsOption, find_run
from mammo_pd.errors import InputError

if TYPE_CHECKING:
    from mammo_pd.training.model_card import CheckpointHeader


def show(
    run: Annotated[Path | None, Parameter(name="RUN|FILE", show_default="the latest run")] = None,
    /,
    *,
    checkpoint: Literal["model", "last"] = "model",
    runs: RunsOption = DEFAULT_RUNS,
    json: bool = False,
) -> None:
    """Show a checkpoint's settings and metrics, as recorded in the file itself.

    For example:

        mammo-pd show runs/RUN
        mammo-pd show model.safetensors --json

    Args:
        run: A run, or a checkpoint file.
        checkpoint: Use the weights of the run's model, or those of its last epoch.
        runs: The folder of runs.
        json: Print it as JSON, for other programs to read.
    """
    if run is not None and (run.is_file() or run.suffix == ".safetensors"):
        path, then = run, f"embed {shlex.quote(str(run))} --store STORE"
    else:
        from mammo_pd.training.runs import weights_in

        folder = find_run(runs, run)
        path = weights_in(folder.path, checkpoint)
        then = f"evaluate {shlex.quote(str(folder.path))}"
    if not path.is_file():
        raise InputError(f"there is no checkpoint at {path}; name a run that has one.")
    from mammo_pd.training.model_card import CheckpointHeader

    header = CheckpointHeader.read(path)
    if json:
        print(_as_json(header))
    else:
        print(_as_text(header))
        print(f"next: mammo-pd {then}")


def _as_json(header: "CheckpointHeader") -> str:
    import json
    from dataclasses import asdict

    return json.dumps(asdict(header), indent=2)


def _as_text(header: "CheckpointHeader") -> str:
    from dataclasses import asdict

    lines = []
    if header.card is None:
        lines.append("made by an earlier version, which recorded only the metrics")
    else:
        card = asdict(header.card)
        height, width = card.pop("img_size")
        keep, tokens = card.pop("num_keep"), card.pop("num_tokens")
        lines += _lines(
            {
                "model": card.pop("model"),
                "image size": f"{height}x{width} pixels",
                "patches kept": f"{keep} of {tokens}",
                **{name.replace("_", " "): value for name, value in card.items()},
            }
        )
    told = {"metrics": header.metrics, "operating points": header.operating_points}
    return "\n".join([*lines, *_lines(told)])


def _lines(values: dict[str, Any], indent: str = "") -> list[str]:
    lines = []
    for name, value in values.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{name}:", *_lines(value, indent + "  ")]
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], dict):
            rows = (", ".join(_shown(cell) for cell in row.values() if cell != "") for row in value)
            lines += [f"{indent}{name}:", *(f"{indent}  {row}" for row in rows)]
        else:
            lines.append(f"{indent}{name}: {_shown(value)}")
    return lines


def _shown(value: Any) -> str:
    """A value as a configuration's YAML has it, but short; one word for all that is missing."""
    if isinstance(value, (list, tuple)) and value:
        return ", ".join(map(_shown, value))
    # A store records "None" as text where it was told no number of bits.
    if value is None or value != value or value in ("None", "", {}, [], ()):
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
