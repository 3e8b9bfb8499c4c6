"""What a training step costs, in multiply-accumulates and bytes, before anything is run.

Shapes: N patches of the canvas, K of them kept, T = prefix tokens + K through the blocks, D the
width, L the depth, P the patch's side.
"""

from mammo_pd.backbones.base import ModelShape
from mammo_pd.backbones.build import describe_backbone

# Bytes that a compiled block keeps for its backward pass for each token that it makes and unit of
# width, and what a block needs beside that while it runs, for each token; in bf16 autocast. Within
# 2 % of the rows of ours in benchmarks/results/train_step_h200_2026-11-25.md.
_KEPT_PER_TOKEN, _WORK = 30.0, 58.0
# The same where blocks are computed anew: a block's input alone is kept. Within 2 % of two cases
# that tests/models/test_cost.py measured on the same GPU.
_INPUT_PER_TOKEN, _WORK_ANEW = 4.0, 39.0
# Weights and AdamW's two moments in float32, weights of a block in bf16, first gradients; and at
# the end of the backward pass, when nothing else is held, all gradients.
_PER_PARAMETER, _PER_PARAMETER_AT_END = 13.0, 16.0
# Standardised patches in float32, their bf16 copy, and the uint16 image in two batches.
_PER_KEPT_PIXEL = 6.0
_PER_IMAGE_PIXEL = 4.0


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
    """Multiply-accumulates of one image's forward pass; a training step takes three times them.

    Args:
        shape: of the model, with one channel in.
        num_keep: K.

    Returns:
        Those of the matrix products with weights, and those of attention (which grow with the
        square of T).

    Source: PatchDropout's figures at 896x896 (450 G at keep 1, 80 G at .25 with ViT-B and three
    channels) come out of the same count.
    """
    tokens = num_keep + shape.num_prefix
    products, attention = tokens * shape.token_macs, tokens**2 * shape.pair_macs
    if shape.class_token_alone:
        # In the last block only the class token is more than a key and a value to others. Blocks
        # are alike and plain where that holds.
        key_and_value = 2 * shape.width**2
        left_out = tokens - 1
        products -= left_out * (shape.token_macs // shape.depth - key_and_value)
        attention -= left_out * tokens * (shape.pair_macs // shape.depth)
    embedding = num_keep * shape.patch_size**2 * shape.width
    return products + embedding, attention


def tokens_made(shape: ModelShape, num_keep: int) -> int:
    """How many tokens all blocks together make, of one image; of each T have a key and a value."""
    tokens = num_keep + shape.num_prefix
    left_out = tokens - 1 if shape.class_token_alone else 0
    return shape.depth * tokens - left_out


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
    """The most memory that a training step on a GPU holds, in bytes, within about 15 %.

    Args:
        shape: of the model.
        img_size: (height, width) in pixels.
        num_keep: K.
        batch: images on the device at a time.
        checkpointing: whether blocks are computed anew in the backward pass.

    Returns:
        For compiled blocks, bf16 autocast and fused AdamW; what PyTorch's allocator gives out, not
        the few hundred MB of the CUDA context.
    """
    parameters = _parameters(shape, img_size)
    per_image = _per_image(shape, img_size, num_keep, checkpointing)
    held = _PER_PARAMETER * parameters + batch * per_image
    return round(max(held, _PER_PARAMETER_AT_END * parameters))


def largest_fitting(
    shape: ModelShape,
    img_size: tuple[int, int],
    num_keep: int,
    memory: float,
    *,
    checkpointing: bool = False,
) -> int:
    """How many images fit in so many bytes by `training_bytes`; 0 if not even one does."""
    parameters = _parameters(shape, img_size)
    if memory < _PER_PARAMETER_AT_END * parameters:
        return 0
    left = memory - _PER_PARAMETER * parameters
    return int(left / _per_image(shape, img_size, num_keep, checkpointing))


def _parameters(shape: ModelShape, img_size: tuple[int, int]) -> float:
    patches = img_size[0] * img_size[1] / shape.patch_size**2
    return shape.parameters + patches * shape.width


def _per_image(
    shape: ModelShape, img_size: tuple[int, int], num_keep: int, checkpointing: bool
) -> float:
    tokens, made = num_keep + shape.num_prefix, tokens_made(shape, num_keep)
    kept, work = (_INPUT_PER_TOKEN, _WORK_ANEW) if checkpointing else (_KEPT_PER_TOKEN, _WORK)
    activations = shape.width * (made * kept + tokens * work)
    pixels = num_keep * shape.patch_size**2 * _PER_KEPT_PIXEL
    return activations + pixels + img_size[0] * img_size[1] * _PER_IMAGE_PIXEL
