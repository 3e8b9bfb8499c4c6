"""Which weights are trained, and at which rates: weight decay, layer decay, frozen backbones."""

import warnings
from typing import Any

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn

from mammo_pd.training.checkpoint import prefix_of


def make_optimizer(
    groups: list[dict[str, Any]], lr: float, *, fused: bool, captured_on: torch.device | None
) -> torch.optim.AdamW:
    """AdamW over a model's parameter groups.

    Args:
        groups: from `parameter_groups`.
        lr: peak learning rate.
        fused: whether one kernel updates many weights.
        captured_on: the GPU, if steps are captured as CUDA graphs: learning rates are then stored
            there and read in every step. A rate on the host would be frozen at its value during the
            capture.
    """
    optimizer = torch.optim.AdamW(
        groups, lr=lr, betas=(0.9, 0.95), fused=fused, capturable=captured_on is not None
    )
    if captured_on is not None:
        # The steps before the capture, and those of odd shapes.
        warnings.filterwarnings("ignore", message="This instance was constructed with capturable")
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(lr, device=captured_on)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group, times the group's own scale."""
    for group in optimizer.param_groups:
        scaled = rate * group.get("lr_scale", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(scaled)
        else:
            group["lr"] = scaled


def parameter_groups(
    model: nn.Module, timm_model: Any, *, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Group a model's parameters for AdamW, by timm's own rules.

    Biases, norms, tokens and embeddings get no weight decay. With a layer decay, a group's learning
    rate is multiplied by its ``lr_scale``: 1 for the head and anything around timm's model, the
    decay for the last block, its square for the block before, and so on.

    Args:
        model: what is trained.
        timm_model: within it.
        weight_decay: of matrices.
        layer_decay: in (0, 1]; 1 for the same rate everywhere.
    """
    spared = set(timm_model.no_weight_decay())
    embeddings = {
        f"{name}.weight" for name, module in model.named_modules() if type(module) is nn.Embedding
    }
    if layer_decay == 1:
        prefix = prefix_of(timm_model, model)
        every = {prefix + name for name in spared} | embeddings
        groups: list[dict[str, Any]] = param_groups_weight_decay(
            model, weight_decay, no_weight_decay_list=every
        )
        return groups
    groups = param_groups_layer_decay(
        timm_model, weight_decay, no_weight_decay_list=spared, layer_decay=layer_decay
    )
    inside = {id(parameter) for parameter in timm_model.parameters()}
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if id(parameter) not in inside:
            is_matrix = parameter.ndim > 1 and name not in embeddings
            (matrices if is_matrix else others).append(parameter)
    for decay, of_kind in ((weight_decay, matrices), (0.0, others)):
        if of_kind:
            groups.append({"params": of_kind, "weight_decay": decay, "lr_scale": 1.0})
    return groups


def backbone_parameters(timm_model: Any) -> list[nn.Parameter]:
    """The weights that a frozen phase holds fixed: timm's, up to the pooled features."""
    head = [getattr(timm_model, name, None) for name in ("attn_pool", "fc_norm", "head")]
    learning = {id(weight) for module in head if module for weight in module.parameters()}
    return [
        weight
        for weight in timm_model.parameters()
        if weight.requires_grad and id(weight) not in learning
    ]
