"""A model as one ONNX file: a stored image of any size goes in, its scores come out.

Placing the image in the model's input, normalisation, every patch, the transformer and the scores
are all in the graph, so whoever runs it needs nothing of ours but the image as a store has it.
Needs onnx and onnxscript to write, and onnxruntime to read.
"""

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch

from mammo_pd import __version__
from mammo_pd.errors import InputError
from mammo_pd.files import atomic_write
from mammo_pd.inference.trained_model import TrainedModel
from mammo_pd.inference.whole_image import WholeImageModel

# GridSample, by which the image is placed, came with 16, and its 5-D form with 20.
_OPSET = 20
# Of the image that the graph is traced with; it takes any other.
_TRACED = (97, 61)


def export_onnx(model: TrainedModel, file: Path) -> None:
    """Write a model as ONNX.

    The file's metadata hold what a reader must know: the names of the scores, the operating points,
    the settings of preprocessing, and that it is for research only.

    Args:
        model: to be written.
        file: replaced when the new one is complete.

    Raises:
        InputError: onnx is not installed, or the objective reads images in a way of its own.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(
            "--onnx needs onnx and onnxscript; install them with: pip install 'mammo-pd[onnx]'"
        ) from error
    whole = WholeImageModel.of(model).cpu().float()
    image = torch.zeros(2, 1, *_TRACED)
    dynamic = {axis: torch.export.Dim(name) for axis, name in ((0, "B"), (2, "h"), (3, "w"))}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        # Without strict tracing the size of the batch is fixed.
        traced = torch.export.export(whole, (image,), dynamic_shapes=(dynamic,), strict=True)
        program = torch.onnx.export(
            traced,
            dynamo=True,
            opset_version=_OPSET,
            input_names=["image"],
            output_names=["scores"],
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _drop_notes_of(proto.graph)
    onnx.helper.set_model_props(proto, _facts(model))
    with atomic_write(file) as beside:
        onnx.save(proto, beside)


def _drop_notes_of(graph: Any) -> None:
    """Drop what torch noted of each node: stack traces, with this machine's folders in them."""
    for node in graph.node:
        del node.metadata_props[:]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _drop_notes_of(inner)


def _facts(model: TrainedModel) -> dict[str, str]:
    card = model.card
    return {
        "producer": f"mammo-pd {__version__}",
        "research_use_only": "not a medical device",
        "input": "(B, 1, h, w) float32, 0 to 65535: the breast as a mammo-pd store has it",
        "score_names": json.dumps(model.objective.score_columns),
        "model": card.model,
        "img_size": json.dumps(card.img_size),
        "weights_sha256": model.digest,
        "preprocessing": json.dumps(card.preprocessing),
        "trained_on": json.dumps(card.trained_on),
        "operating_points": json.dumps(
            {target: points.dump() for target, points in model.operating_points.items()}
        ),
    }
