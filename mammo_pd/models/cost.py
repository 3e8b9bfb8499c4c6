"""What a training step costs, in multiply-accumulates and bytes, before anything is run.

Shapes: N patches of the canvas, K of them kept, T = prefix tokens + K through the blocks, D the
width, L the depth, P the patch's side.
"""

from dataclasses import dataclass
from functools import cache

from mammo_pd.models.vit import build_plain

# Bytes that a compiled block keeps for its backward pass for each token and unit of width, and what
# a block needs beside that while it runs; in bf16 autocast. Within 2 % of the rows of ours in
# benchmarks/results/train_step_h200_2026-11-24.md.
_KEPT_PER_BLOCK, _WORK = 30.0, 50.0
# The same where blocks are computed anew: the block's input alone is kept.
_INPUT_PER_BLOCK, _WORK_ANEW = 4.0, 45.0
# Weights, gradients and AdamW's two moments in float32, and the weights in bf16.
_PER_PARAMETER = 18.0
# Standardised patches in float32, their bf16 copy, and the uint16 image in two batches.
_PER_KEPT_PIXEL = 6.0
_PER_IMAGE_PIXEL = 4.0


@dataclass(frozen=True)
class ModelShape:
    """What of a vision transformer decides its cost.

    Attributes:
        name: timm's.
        width: D.
        depth: L.
        mlp_width: of the hidden layer of each block's MLP.
        patch_size: P, in pixels.
        num_prefix: class and register tokens.
        parameters: how many in the blocks and the head; the position embedding is not counted.
    """

    name: str
    width: int
    depth: int
    mlp_width: int
    patch_size: int
    num_prefix: int
    parameters: int


@cache
def shape_of(name: str) -> ModelShape:
    """The shape of a timm vision transformer, without making its weights.

    Raises:
        mammo_pd.errors.InputError: no such model, or not a plain vision transformer.
    """
    vit = build_plain(name).vit
    parameters = sum(weight.numel() for weight in vit.blocks.parameters())
    return ModelShape(
        name=name,
        width=vit.embed_dim,
        depth=len(vit.blocks),
        mlp_width=vit.blocks[0].mlp.fc1.out_features,
        patch_size=int(vit.patch_embed.patch_size[0]),
        num_prefix=int(vit.num_prefix_tokens),
        parameters=parameters,
    )


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
    block = 4 * shape.width**2 + 2 * shape.width * shape.mlp_width
    embedding = num_keep * shape.patch_size**2 * shape.width
    products = shape.depth * tokens * block + embedding
    return products, shape.depth * 2 * tokens**2 * shape.width


def training_flops(shape: ModelShape, num_keep: int) -> int:
    """Floating-point operations of one image's training step: forward, and backward twice that."""
    return 6 * sum(forward_macs(shape, num_keep))


def training_bytes(
    shape: ModelShape,
    canvas: tuple[int, int],
    num_keep: int,
    batch: int,
    *,
    checkpointing: bool = False,
) -> int:
    """The most memory that a training step on a GPU holds, in bytes, within about 15 %.

    Args:
        shape: of the model.
        canvas: (height, width) in pixels.
        num_keep: K.
        batch: images on the device at a time.
        checkpointing: whether blocks are computed anew in the backward pass.

    Returns:
        For compiled blocks, bf16 autocast and fused AdamW; what PyTorch's allocator gives out, not
        the few hundred MB of the CUDA context.
    """
    fixed, per_image = _bytes(shape, canvas, num_keep, checkpointing)
    return round(fixed + batch * per_image)


def largest_fitting(
    shape: ModelShape,
    canvas: tuple[int, int],
    num_keep: int,
    memory: float,
    *,
    checkpointing: bool = False,
) -> int:
    """How many images fit in so many bytes by `training_bytes`; 0 if not even one does."""
    fixed, per_image = _bytes(shape, canvas, num_keep, checkpointing)
    return max(0, int((memory - fixed) / per_image))


def _bytes(
    shape: ModelShape, canvas: tuple[int, int], num_keep: int, checkpointing: bool
) -> tuple[float, float]:
    patches = canvas[0] * canvas[1] / shape.patch_size**2
    parameters = shape.parameters + patches * shape.width
    tokens = num_keep + shape.num_prefix
    kept, work = (_INPUT_PER_BLOCK, _WORK_ANEW) if checkpointing else (_KEPT_PER_BLOCK, _WORK)
    activations = tokens * shape.width * (shape.depth * kept + work)
    pixels = num_keep * shape.patch_size**2 * _PER_KEPT_PIXEL
    return _PER_PARAMETER * parameters, (
        activations + pixels + canvas[0] * canvas[1] * _PER_IMAGE_PIXEL
    )
