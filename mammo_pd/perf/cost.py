"""What a training step costs: multiply-accumulates, bytes and seconds, before anything is run.

Shapes: N patches of the input, K of them kept, T = prefix tokens + K, D the width, L the depth, P
the patch size. Image sizes are (height, width) in pixels.
"""

from collections.abc import Iterable

from mammo_pd.backbones.base import ModelShape
from mammo_pd.backbones.build import describe_backbone
from mammo_pd.keep_schedule import choose_num_keep, choose_rows_kept

# Bytes per token and unit of width, of compiled blocks in bf16 autocast: what a block stores for
# its backward pass, and its workspace. Fitted to our rows in
# benchmarks/results/train_step_h200_2026-11-25.md, within 2 %.
_STORED_PER_TOKEN, _WORKSPACE = 30.0, 58.0
# The same with activation checkpointing, which stores only the input of a block. Fitted to two
# cases of tests/perf/test_cost.py on the same GPU, within 2 %.
_STORED_CHECKPOINTING, _WORKSPACE_CHECKPOINTING = 4.0, 39.0
# Bytes per parameter. While blocks run backward: weights and AdamW's two moments in float32, the
# block's weights in bf16, the first gradients. At the end, when no activations are left: weights,
# moments and gradients in float32.
_PER_PARAMETER, _PER_PARAMETER_AT_END = 13.0, 16.0
# Scores of attention within windows, after the softmax: in float32, and in bf16 for the product.
_STORED_PER_SCORE = 6.0
# Standardised patches in float32 and bf16; the uint16 pixels of this batch and the next.
_PER_KEPT_PIXEL = 6.0
_PER_IMAGE_PIXEL = 4.0
# Seconds of a training step per multiply-accumulate of an image's forward pass, in weight matrices
# and in attention, and per activation (token outputs of the blocks x width): compiled, bf16. Fitted
# to our rows of uniform draws in benchmarks/results/train_step_h200_2026-11-25.md, within 5 %.
_PER_PRODUCT, _PER_ATTENTION, _PER_ACTIVATION = 7.56e-15, 1.54e-14, 6.83e-11


def shape_of(name: str, global_pool: str | None = None) -> ModelShape:
    """Return the shape of a timm model as we run it, without making its weights.

    Args:
        name: timm's.
        global_pool: timm's ``global_pool``; None takes the model's own.

    Raises:
        mammo_pd.errors.InputError: no such model, or one that cannot drop patches.
    """
    return describe_backbone(name, global_pool=global_pool).shape


def forward_macs(shape: ModelShape, num_keep: int) -> tuple[int, int]:
    """Multiply-accumulates of one image's forward pass; a training step takes three times as many.

    Args:
        shape: of the model, with one input channel.
        num_keep: K.

    Returns:
        Those in weight matrices, and those in attention (quadratic in T). Attention within windows
        is counted as within full ones: at most 10 % too many of both together.

    Source: the same count gives PatchDropout's figures for ViT-B at 896x896 (450 G at keep 1, 80 G
    at .25, with three channels).
    """
    if shape.stages:
        stages = [(num_keep // stage.merged, stage) for stage in shape.stages]
        products = sum(tokens * stage.token_macs for tokens, stage in stages)
        attention = sum(tokens * shape.window**2 * stage.pair_macs for tokens, stage in stages)
        return products + num_keep * shape.patch_size**2 * shape.width, attention
    tokens = num_keep + shape.num_prefix
    products, attention = tokens * shape.token_macs, tokens**2 * shape.pair_macs
    if shape.class_token_alone:
        # In the last block the other tokens are keys and values only. Blocks are alike and plain
        # wherever that holds.
        key_and_value = 2 * shape.width**2
        skipped = tokens - 1
        products -= skipped * (shape.token_macs // shape.depth - key_and_value)
        attention -= skipped * tokens * (shape.pair_macs // shape.depth)
    embedding = num_keep * shape.patch_size**2 * shape.width
    return products + embedding, attention


def token_outputs(shape: ModelShape, num_keep: int) -> int:
    """Token outputs per image, summed over blocks."""
    tokens = num_keep + shape.num_prefix
    # The other tokens of the last block are keys and values only.
    skipped = tokens - 1 if shape.class_token_alone else 0
    return shape.depth * tokens - skipped


def activations(shape: ModelShape, num_keep: int) -> int:
    """Token outputs per image times their width, summed over blocks."""
    if shape.stages:
        return sum(s.depth * s.width * (num_keep // s.merged) for s in shape.stages)
    return token_outputs(shape, num_keep) * shape.width


def keep_of(shape: ModelShape, img_size: tuple[int, int], keep_rate: float) -> int:
    """Return K, the patches kept of an image, as training does.

    Raises:
        InputError: windows that keep a single patch.
        ValueError: ``keep_rate`` is not in (0, 1].
    """
    tokens = img_size[0] * img_size[1] // shape.patch_size**2
    if not shape.window:
        return choose_num_keep(tokens, keep_rate, shape.num_prefix)
    kept = choose_rows_kept(shape.window, keep_rate)
    return tokens if kept == shape.window else tokens // shape.window**2 * kept**2


def window_of(shape: ModelShape, keep_rates: Iterable[float]) -> int | None:
    """The side of the windows of which an image needs a whole number; None for any number."""
    drops = shape.window and min(keep_rates) < 1
    return shape.window if drops else None


def training_flops(shape: ModelShape, num_keep: int) -> int:
    """Floating-point operations of one image's training step: forward, and backward twice that."""
    return 6 * sum(forward_macs(shape, num_keep))


def training_bytes(
    shape: ModelShape,
    img_size: tuple[int, int],
    num_keep: int,
    batch: int,
    *,
    checkpointing: bool = False,
) -> int:
    """Estimate the peak memory of a training step on a GPU, in bytes, within about 15 %.

    For compiled blocks, bf16 autocast and fused AdamW. It is what PyTorch's allocator hands out;
    the CUDA context takes a few hundred MB more.

    Args:
        shape: of the model.
        img_size: of the input.
        num_keep: K.
        batch: images computed at a time.
        checkpointing: whether blocks are recomputed in the backward pass.
    """
    parameters = _parameters(shape, img_size)
    per_image = _per_image(shape, img_size, num_keep, checkpointing)
    in_backward = _PER_PARAMETER * parameters + batch * per_image
    return round(max(in_backward, _PER_PARAMETER_AT_END * parameters))


def estimate_seconds(shape: ModelShape, num_keep: int) -> float:
    """Seconds of a training step per image, on the reference GPU.

    Nothing was fitted to models with windows, whose blocks move tokens into windows and back.
    """
    products, attention = forward_macs(shape, num_keep)
    outputs = activations(shape, num_keep)
    return _PER_PRODUCT * products + _PER_ATTENTION * attention + _PER_ACTIVATION * outputs


def largest_fitting(
    shape: ModelShape,
    img_size: tuple[int, int],
    num_keep: int,
    memory: float,
    *,
    checkpointing: bool = False,
) -> int:
    """How many images fit in ``memory`` bytes by `training_bytes`; 0 if not even one does."""
    parameters = _parameters(shape, img_size)
    if memory < _PER_PARAMETER_AT_END * parameters:
        return 0
    left = memory - _PER_PARAMETER * parameters
    return int(left / _per_image(shape, img_size, num_keep, checkpointing))


def _scores(shape: ModelShape, img_size: tuple[int, int], num_keep: int) -> float:
    """Attention scores of an image that timm's window attention stores, over all blocks."""
    tokens = img_size[0] * img_size[1] / shape.patch_size**2
    in_window = shape.window**2 * num_keep / tokens
    return sum(s.depth * s.heads * in_window * num_keep / s.merged for s in shape.stages)


def _parameters(shape: ModelShape, img_size: tuple[int, int]) -> float:
    if shape.window:
        return shape.parameters
    # The position embedding grows with the input.
    patches = img_size[0] * img_size[1] / shape.patch_size**2
    return shape.parameters + patches * shape.width


def _per_image(
    shape: ModelShape, img_size: tuple[int, int], num_keep: int, checkpointing: bool
) -> float:
    tokens = num_keep + shape.num_prefix
    stored, workspace = (
        (_STORED_CHECKPOINTING, _WORKSPACE_CHECKPOINTING)
        if checkpointing
        else (_STORED_PER_TOKEN, _WORKSPACE)
    )
    in_blocks = activations(shape, num_keep) * stored + shape.width * tokens * workspace
    if not checkpointing:
        in_blocks += _scores(shape, img_size, num_keep) * _STORED_PER_SCORE
    pixels = num_keep * shape.patch_size**2 * _PER_KEPT_PIXEL
    return in_blocks + pixels + img_size[0] * img_size[1] * _PER_IMAGE_PIXEL
