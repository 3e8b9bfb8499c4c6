"""What a backbone is: an encoder that takes any subset of an image's patches, and their positions.

Shapes, here and in the families: B images, N patches of the whole grid in raster order, K of them
kept, P the patch size, T = prefix tokens (class and register tokens, in front) + K, D the width.

A new family is one file with a subclass of `Backbone`, and one line in `mammo_pd.backbones.build`,
or an entry in its ``FAMILIES`` by a program of your own (docs/extending.md).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mammo_pd.backbones.drop_path import draw_paths, replace_drop_paths
from mammo_pd.backbones.weights.report import WeightsReport
from mammo_pd.errors import InputError
from mammo_pd.keep_schedule import choose_num_keep
from mammo_pd.normalization import Normalization

# Each of training and evaluation, batch of one or more, and a few K needs code of its own; of Swin,
# whose sizes are compiled one by one, each stage, shift and size of a last batch does too.
_RECOMPILE_LIMIT = 128


@dataclass(frozen=True)
class StageShape:
    """What determines the cost of one stage of a backbone that merges patches between stages.

    Attributes:
        merged: patches that a token of the stage stands for.
        width: D.
        depth: number of blocks.
        heads: attention heads of each block.
        token_macs: as of `ModelShape`, the merging before the stage included.
        pair_macs: as of `ModelShape`.
    """

    merged: int
    width: int
    depth: int
    heads: int
    token_macs: int
    pair_macs: int


@dataclass(frozen=True)
class ModelShape:
    """What determines the cost of a backbone, for one channel; pooling and head are not counted.

    Width, heads and multiply-accumulates are those of the first stage, where there are several.

    Attributes:
        name: timm's name of the model.
        width: D.
        depth: number of blocks.
        heads: attention heads of each block.
        patch_size: P, in pixels.
        num_prefix: class and register tokens.
        parameters: weights in the blocks.
        token_macs: multiply-accumulates for each token, by the weight matrices of all blocks.
        pair_macs: the same for each pair of tokens, by attention: scores and weighted values.
        class_token_alone: whether the last block computes the class token only
            (`mammo_pd.backbones.last_block`).
        window: side of the windows that attention stays within, in patches; 0 if it sees all.
        stages: of a backbone that merges patches; empty where all blocks have the same tokens.
    """

    name: str
    width: int
    depth: int
    heads: int
    patch_size: int
    num_prefix: int
    parameters: int
    token_macs: int
    pair_macs: int
    class_token_alone: bool
    window: int = 0
    stages: tuple[StageShape, ...] = ()


class Backbone(nn.Module, ABC):
    """A timm model that embeds kept patches instead of whole images, and is otherwise timm's own.

    With all N patches and in evaluation it computes what timm's forward does. In training,
    stochastic depth is keyed by image (`mammo_pd.backbones.drop_path`); nothing else in the model
    is random but timm's dropout, which is off by default.

    Attributes:
        timm_model: holds all weights under timm's names; its ``state_dict`` is what checkpoints
            store and what other tools can load.
        normalization: of the input, that the weights expect.
        weights_report: what became of pretrained weights; None for random ones.
        class_token_alone: whether the last block computes the class token only, because the head
            reads nothing else (`mammo_pd.backbones.last_block`). Set it to False to get every
            token out of `forward_features`.
        plain_attention: whether each block is one softmax self-attention with a residual
            connection followed by an MLP: what attention roll-out assumes.

    Raises:
        InputError: the model cannot work on a subset of its patches, with the reason.
    """

    class_token_alone: bool = False
    plain_attention: bool = False
    # Attribute names of timm's model that hold the prefix tokens, in order.
    _prefix_names: ClassVar[tuple[str, ...]] = ("cls_token", "reg_token")

    def __init__(self, timm_model: nn.Module) -> None:
        super().__init__()
        reason = self.reason_against(timm_model)
        if reason is not None:
            raise InputError(f"this {type(timm_model).__name__} cannot drop patches: it {reason}.")
        # timm ships no annotations, so its models are Any to the type checker.
        self.timm_model: Any = timm_model
        self._drop_paths = replace_drop_paths(timm_model)
        # A plain tensor: a buffer would be a part of every checkpoint.
        self._path_keep = torch.tensor([1 - path.drop_prob for path in self._drop_paths])
        self._embed = self.embed
        self.normalization = Normalization()
        self.weights_report: WeightsReport | None = None
        for token in self._prefix_tokens():
            token.register_hook(_make_contiguous)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_rename_old_prefix)  # type: ignore[no-untyped-call]

    @staticmethod
    @abstractmethod
    def reason_against(timm_model: Any) -> str | None:
        """Say why a model of this family cannot work on a subset of its patches.

        Returns:
            None if it can; else the rest of a sentence that starts with "it".
        """

    @property
    def patch_size(self) -> int:
        """P, in pixels."""
        return int(self.timm_model.patch_embed.patch_size[0])

    @property
    def grid_size(self) -> tuple[int, int]:
        """The grid of patches, (rows, columns)."""
        rows, columns = self.timm_model.patch_embed.grid_size
        return int(rows), int(columns)

    @property
    def num_tokens(self) -> int:
        """N, the patches of the grid; prefix tokens are not counted."""
        rows, columns = self.grid_size
        return rows * columns

    @property
    def num_prefix(self) -> int:
        """Class and register tokens, which are never dropped."""
        return int(self.timm_model.num_prefix_tokens)

    @property
    def embed_dim(self) -> int:
        """D."""
        return int(self.timm_model.embed_dim)

    @property
    def shape(self) -> ModelShape:
        """What determines the cost of the model."""
        blocks = self.timm_model.blocks
        attentions = [module for module in blocks.modules() if hasattr(module, "num_heads")]
        return ModelShape(
            name=str(self.timm_model.pretrained_cfg["architecture"]),
            width=self.embed_dim,
            depth=len(blocks),
            heads=int(attentions[0].num_heads),
            patch_size=self.patch_size,
            num_prefix=self.num_prefix,
            parameters=sum(weight.numel() for weight in blocks.parameters()),
            token_macs=linear_weights(blocks),
            pair_macs=sum(map(_pair_macs, attentions)),
            class_token_alone=self.class_token_alone,
        )

    @property
    def window(self) -> int | None:
        """The side of the windows of which the same rows and columns are kept; None for any K."""
        return None

    def allowed_keep(self, keep_rate: float) -> int:
        """Return K for a keep rate.

        Raises:
            ValueError: ``keep_rate`` is not in (0, 1].
        """
        return choose_num_keep(self.num_tokens, keep_rate, self.num_prefix)

    def describe_keep(self, keep_rate: float) -> str | None:
        """Say what is kept, where that is not the share of the patches that was asked for."""
        return None

    @abstractmethod
    def embed(self, patches: Tensor, positions: Tensor) -> Tensor:
        """Project kept patches, add their position embeddings, and prepend the prefix tokens.

        Args:
            patches: (B, K, P * P) standardised pixels, one channel.
            positions: (B, K) int64 in [0, N).

        Returns:
            (B, T, D).
        """

    @abstractmethod
    def forward_features(
        self, tokens: Tensor, positions: Tensor, keys: Tensor | None = None
    ) -> Tensor:
        """Run the blocks and the final norm, `draw_paths` first.

        Args:
            tokens: (B, T, D), from `embed`.
            positions: (B, K) int64 in [0, N), the positions that were embedded.
            keys: (B,) int64, from `mammo_pd.keyed_random.image_key`; needed in training by a model
                with stochastic depth.

        Returns:
            (B, T, D), or (B, 1, D) where `class_token_alone` is set. A family that merges patches
            returns fewer tokens, wider than those that it embeds.
        """

    def pool(self, tokens: Tensor) -> Tensor:
        """Pool the tokens as timm's model does: (B, T, D) to (B, D), normalised."""
        model = self.timm_model
        return model.fc_norm(model.pool(tokens))  # type: ignore[no-any-return]

    def head(self, pooled: Tensor) -> Tensor:
        """Apply timm's linear head: (B, D) to (B, num_outputs)."""
        model = self.timm_model
        return apply_in_full(model.head, model.head_drop(pooled))

    def encode(self, patches: Tensor, positions: Tensor, keys: Tensor | None = None) -> Tensor:
        """Compute the tokens that kept patches come to: `embed`, then `forward_features`."""
        return self.forward_features(self._embed(patches, positions), positions, keys)

    def forward(self, patches: Tensor, positions: Tensor, keys: Tensor | None = None) -> Tensor:
        """Compute the head's outputs from kept patches.

        Args:
            patches: (B, K, P * P) standardised pixels, one channel.
            positions: (B, K) int64 in [0, N).
            keys: (B,) int64; see `forward_features`.

        Returns:
            (B, num_outputs).
        """
        return self.head(self.pool(self.encode(patches, positions, keys)))

    def narrow_residual(self) -> None:
        """Let blocks take and hand on their tokens in bfloat16, for training in mixed precision.

        Under autocast only the products are in bfloat16; the sum of all blocks' outputs, the
        residual stream, is in float32 by default, twice the memory to read and write. Within a
        block the sums are as wide as their terms. To be called before `compile_blocks`.
        """
        self._embed = self._embed_narrow
        for block in self._each_block():
            # A hook, since it is compiled with the block, and changes neither class nor weights.
            block.register_forward_hook(_hand_on_narrow)

    def _embed_narrow(self, patches: Tensor, positions: Tensor) -> Tensor:
        return self.embed(patches, positions).bfloat16()

    def _each_block(self) -> Iterable[nn.Module]:
        return self.timm_model.blocks  # type: ignore[no-any-return]

    def compile_blocks(self) -> None:
        """Compile the embedding and the blocks; blocks that are built alike share their code.

        Compiling the whole model was no faster (docs/log.md), and takes its time again for each K.
        """
        self._embed = torch.compile(self._embed)
        compile_each(self._each_block())

    def draw_paths(self, keys: Tensor | None) -> None:
        """Draw which residual branches each image skips; `forward_features` begins with it."""
        if not (self.training and self._drop_paths):
            return
        assert keys is not None, "stochastic depth is drawn by image: training needs the keys"
        self._path_keep = self._path_keep.to(keys.device)
        draw_paths(self._drop_paths, self._path_keep, keys)

    def _prefix_tokens(self) -> list[nn.Parameter]:
        tokens = (getattr(self.timm_model, name, None) for name in self._prefix_names)
        return [token for token in tokens if token is not None]


def compile_each(blocks: Iterable[nn.Module], *, dynamic: bool | None = None) -> None:
    """Compile blocks one by one.

    Args:
        blocks: to be compiled in place.
        dynamic: as of `torch.compile`: None gives code for any size once a second one is seen.
    """
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, _RECOMPILE_LIMIT)
    for block in blocks:
        block.compile(dynamic=dynamic)


def apply_in_full(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a layer in its weights' own type, also where autocast would take another for it.

    What a head computes is a score. In bfloat16, logits near -5, as of a rare finding, would come
    in steps of 1/32: many images would share a score, and no threshold lie between them.
    """
    device = x.device.type
    # Asked first, so that an export to ONNX is traced without autocast; meta tensors have none.
    if device == "meta" or not torch.is_autocast_enabled(device):
        return layer(x)  # type: ignore[no-any-return]
    with torch.autocast(device, enabled=False):
        return layer(x.to(next(layer.parameters()).dtype))  # type: ignore[no-any-return]


def linear_weights(module: nn.Module) -> int:
    """How many weights the linear layers in a module have."""
    matrices = (inner for inner in module.modules() if isinstance(inner, nn.Linear))
    return sum(matrix.weight.numel() for matrix in matrices)


def _pair_macs(attention: Any) -> int:
    width = int(attention.num_heads * attention.head_dim)
    # Differential attention has two sets of scores, each of which weighs values of twice the width.
    differential = hasattr(attention, "lambda_q1")
    return 6 * width if differential else 2 * width


def _hand_on_narrow(_module: nn.Module, _given: object, tokens: Tensor) -> Tensor:
    return tokens.bfloat16()


def _make_contiguous(gradient: Tensor) -> Tensor:
    """At batch size 1 a token's gradient is a strided view, which DDP warns about."""
    return gradient.clone(memory_format=torch.contiguous_format)


def _rename_old_prefix(
    _module: nn.Module, state: dict[str, Tensor], prefix: str, *_others: object
) -> None:
    """Read checkpoints from when the attribute `timm_model` was named ``vit``."""
    old = f"{prefix}vit."
    for name in [name for name in state if name.startswith(old)]:
        state[f"{prefix}timm_model.{name.removeprefix(old)}"] = state.pop(name)
