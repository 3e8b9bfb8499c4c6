"""A timm vision transformer that is given kept patches instead of an image, else as timm's own.

Shapes: B images, N patches on the grid, K of them kept, P the patch's side, D the embedding width.
"""

import difflib
import pickle
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from timm.models import VisionTransformer, checkpoint_seq
from torch import Tensor, nn
from torch.nn import functional as F

from mammo_pd.backbones.drop_path import draw_paths, replace_drop_paths
from mammo_pd.backbones.last_block import forward_class_token, reads_class_token_alone
from mammo_pd.errors import InputError

_MOST_VARIANTS = 32


class PatchViT(nn.Module):
    """A timm `VisionTransformer` behind an embedding that takes any subset of patches.

    The weights are timm's, under timm's names, in ``self.vit``; so is everything after the
    embedding (blocks, norm, pooling, head), but for two things. Stochastic depth is drawn by image
    (`mammo_pd.backbones.drop_path`), so that a run does not depend on how many devices
    share it. And where the head reads the class token alone, the last block makes that token alone
    (`mammo_pd.backbones.last_block`).

    Raises:
        InputError: the model is not a plain vision transformer with absolute position embeddings.
    """

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        if not _is_plain(vit):
            raise InputError(
                f"{type(vit).__name__} is not a plain vision transformer with an absolute position "
                "embedding, so patches cannot be dropped from it; choose one of timm's vit_*, "
                "deit_*, deit3_* or *_dinov2 models."
            )
        self.vit = vit
        self._drop_paths = replace_drop_paths(vit.blocks)
        # No buffer: DDP broadcasts buffers, and waits for a process that has nothing to validate.
        self._path_keep = torch.tensor([1 - path.drop_prob for path in self._drop_paths])
        self._embed_with = self.embed
        self._last_with = forward_class_token
        for token in (vit.cls_token, vit.reg_token):
            if token is not None:
                token.register_hook(_lie_as_weights_do)

    @property
    def patch_size(self) -> int:
        """P, in pixels."""
        return int(self.vit.patch_embed.patch_size[0])

    @property
    def timm_model(self) -> Any:
        """Timm's."""
        return self.vit

    def allowed_keep(self, rate: float) -> int:
        """K."""
        from mammo_pd.patches.draw import choose_num_keep

        return choose_num_keep(self.num_tokens, rate, self.num_prefix)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches on the canvas, (rows, columns)."""
        rows, columns = self.vit.patch_embed.grid_size
        return int(rows), int(columns)

    @property
    def num_tokens(self) -> int:
        """N, the patches of the whole canvas; class and register tokens are not counted."""
        rows, columns = self.grid_size
        return rows * columns

    @property
    def class_token_alone(self) -> bool:
        """Whether the last block makes the class token alone."""
        return reads_class_token_alone(self.vit)

    @property
    def num_prefix(self) -> int:
        """Class and register tokens, which go through the blocks beside the patches."""
        return int(self.vit.num_prefix_tokens)

    def compile_blocks(self) -> None:
        """Compile the embedding and the blocks, each block by the code of the first.

        A last block that makes the class token alone has code of its own.

        Whole-model compilation was no faster (docs/log.md), and takes its time again for each new
        number of patches.
        """
        # Training and evaluation, few images and many, a few K: each has code of its own.
        from torch._dynamo import config

        config.recompile_limit = max(config.recompile_limit, _MOST_VARIANTS)
        self._embed_with = torch.compile(self.embed)
        self._last_with = torch.compile(forward_class_token)
        for block in self.vit.blocks:
            block.compile()

    def forward(self, patches: Tensor, positions: Tensor, keys: Tensor | None = None) -> Tensor:
        """Score images by their kept patches.

        Args:
            patches: (B, K, P * P) standardised pixels, one channel.
            positions: (B, K) int64 in [0, N).
            keys: (B,) int64, which stochastic depth is drawn from; needed only in training, and
                only of a model that has it.

        Returns:
            (B, classes) logits. With all N patches this is timm's own forward.
        """
        if self.training and self._drop_paths:
            assert keys is not None, "stochastic depth is drawn by image: training needs the keys"
            self._path_keep = self._path_keep.to(keys.device)
            draw_paths(self._drop_paths, self._path_keep, keys)
        vit = self.vit
        x = self._embed_with(patches, positions)
        x = vit.norm_pre(x)
        alone = self.class_token_alone
        blocks = vit.blocks[:-1] if alone else vit.blocks
        x = checkpoint_seq(blocks, x) if vit.grad_checkpointing else blocks(x)
        if alone:
            # Keeps too little for the backward pass to be worth computing anew.
            x = self._last_with(vit.blocks[-1], x)
        x = vit.norm(x)
        return vit.forward_head(x)  # type: ignore[no-any-return]

    def embed(self, patches: Tensor, positions: Tensor) -> Tensor:
        """Project kept patches and add the position embedding of where each one lies.

        Class and register tokens are put in front as timm does; they are never dropped.

        Args:
            patches: (B, K, P * P) standardised pixels, one channel.
            positions: (B, K) int64 in [0, N).

        Returns:
            (B, prefix tokens + K, D).
        """
        vit = self.vit
        projection = vit.patch_embed.proj
        x = F.linear(patches, projection.weight.flatten(1), projection.bias)
        x = vit.patch_embed.norm(x)

        in_prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
        x = x + vit.pos_embed[0, in_prefix:][positions]
        prefix = [token for token in (vit.cls_token, vit.reg_token) if token is not None]
        if prefix:
            front = torch.cat(prefix, dim=1)
            if in_prefix:
                front = front + vit.pos_embed[:, :in_prefix]
            x = torch.cat([front.expand(len(x), -1, -1), x], dim=1)
        return vit.pos_drop(x)  # type: ignore[no-any-return]


def _lie_as_weights_do(gradient: Tensor) -> Tensor:
    """Of a single image a token's gradient is a view of all tokens' one, which DDP warns of."""
    return gradient.clone(memory_format=torch.contiguous_format)


def _is_plain(vit: nn.Module) -> bool:
    """Whether patches are embedded one by one and have an absolute position embedding."""
    # A hybrid's convolutional stem, or a distilled model's second head, is no plain ViT.
    if type(vit) is not VisionTransformer:
        return False
    embed: Any = vit.patch_embed
    return (
        type(embed) is PatchEmbed
        and vit.pos_embed is not None
        and not vit.dynamic_img_size
        and embed.patch_size[0] == embed.patch_size[1]
        and embed.proj.kernel_size == embed.proj.stride == tuple(embed.patch_size)
        and embed.proj.padding == (0, 0)
    )


def build_vit(
    name: str,
    img_size: tuple[int, int],
    *,
    weights: str | None = None,
    drop_path_rate: float = 0.0,
    global_pool: str | None = None,
    checkpointing: bool = False,
) -> PatchViT:
    """Build a timm vision transformer for one-channel images of any canvas, with one logit.

    Args:
        name: timm's name of the model, such as ``vit_small_patch16_224``.
        img_size: (height, width) in pixels, multiples of the patch size.
        weights: None for random weights; a local file (safetensors, or a PyTorch state dict, read
            without unpickling code); or ``"timm"`` for the weights that timm's hub has under
            ``name``. The position embedding is resampled to the canvas, three input channels are
            summed to one.
        drop_path_rate: stochastic depth.
        global_pool: timm's ``global_pool``; None takes the model's own.
        checkpointing: compute each block anew in the backward pass instead of keeping what it
            made: about a third more time for a fraction of the memory. A last block that makes the
            class token alone is not, since it keeps little.

    Raises:
        InputError: no such model, not a plain vision transformer, a canvas that is no multiple of
            the patch size, or weights that cannot be had or do not fit.
    """
    _check_name(name)
    # The canvas is fixed here, so the position embedding is resampled once, not at every step.
    options: dict[str, Any] = {"drop_path_rate": drop_path_rate, "dynamic_img_size": False}
    if global_pool is not None:
        options["global_pool"] = global_pool
    if weights not in (None, "timm"):
        options["pretrained_cfg_overlay"] = _local_weights(Path(str(weights)))
    try:
        vit = timm.create_model(
            name,
            pretrained=weights is not None,
            img_size=img_size,
            in_chans=1,
            num_classes=1,
            **options,
        )
    except (TypeError, AssertionError) as error:
        raise InputError(
            f"timm cannot build {name!r} for a canvas of {img_size[0]}x{img_size[1]}: {error}. "
            "Choose a plain vision transformer (vit_*, deit_*, deit3_*) and a canvas that is a "
            "multiple of its patch size."
        ) from error
    except (RuntimeError, OSError, pickle.UnpicklingError) as error:
        if weights is None:
            raise
        raise InputError(
            f"the weights {weights!r} cannot be loaded into {name!r}: "
            f"{str(error).splitlines()[0][:300]}. Give a file saved from the same architecture, "
            "or, where there is no network, download it elsewhere and name the file."
        ) from error
    vit.set_grad_checkpointing(checkpointing)
    return PatchViT(vit)


def build_plain(name: str, *, global_pool: str | None = None) -> PatchViT:
    """A timm model as it comes, without memory for its weights: to look at its shape.

    Args:
        name: timm's.
        global_pool: timm's ``global_pool``; None takes the model's own.

    Raises:
        InputError: no such model, or not a plain vision transformer.
    """
    _check_name(name)
    pool = {} if global_pool is None else {"global_pool": global_pool}
    try:
        with torch.device("meta"):
            return PatchViT(timm.create_model(name, dynamic_img_size=False, **pool))
    except (TypeError, AssertionError) as error:
        raise InputError(
            f"{name!r} is not a plain vision transformer; choose one of timm's vit_*, deit_*, "
            "deit3_* or *_dinov2 models."
        ) from error


def _check_name(name: str) -> None:
    if not timm.is_model(name):
        plain = timm.list_models(["vit_*", "deit_*", "deit3_*"], exclude_filters="*distilled*")
        near = difflib.get_close_matches(name, plain, n=4)
        raise InputError(
            f"timm {timm.__version__} has no model {name!r}; "
            + (f"near it are {', '.join(near)}." if near else "try vit_small_patch16_224.")
        )


def _local_weights(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InputError(
            f"the weights file {file} does not exist; give a local file, or 'timm' for the weights "
            "of timm's hub where there is a network."
        )
    # Google's .npz checkpoints have a loader of their own in timm.
    return {"file": str(file), "custom_load": file.suffix == ".npz"}
