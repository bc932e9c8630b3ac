"""PyTorch's optimizers, and two more."""

from __future__ import annotations

from typing import Any

import torch

from steepest import optim
from steepest._arguments import check_option
from steepest.torch._steps import Steps


def _check_numbers(**options: Any) -> None:
    for name, value in options.items():
        check_option(name, value.item() if isinstance(value, torch.Tensor) else value, ())


class SGD(Steps, torch.optim.SGD):
    """`torch.optim.SGD`: stochastic gradient descent, with momentum if `momentum` > 0; see `steepest.SGD`."""

    _rule, _scalars = optim.SGD, {}


class RMSprop(Steps, torch.optim.RMSprop):
    """`torch.optim.RMSprop`: steps divided by the root of the averaged squared gradients; see `steepest.RMSprop`."""

    _rule = optim.RMSprop


class Adagrad(Steps, torch.optim.Adagrad):
    """`torch.optim.Adagrad`: steps divided by the root of the summed squared gradients; see `steepest.Adagrad`."""

    _rule = optim.Adagrad


class Adam(Steps, torch.optim.Adam):
    """`torch.optim.Adam`: averages of the gradient and of its square, with bias correction; see `steepest.Adam`."""

    _rule = optim.Adam

    def _rule_of(self, group: dict[str, Any]) -> type[optim.Optimizer]:
        return optim.AdamW if group.get("decoupled_weight_decay") else optim.Adam


class AdamW(Adam, torch.optim.AdamW):
    """`torch.optim.AdamW`: Adam with decoupled weight decay; see `steepest.AdamW`."""


class NAdam(Steps, torch.optim.NAdam):
    """`torch.optim.NAdam`: Adam with Nesterov's momentum and a momentum schedule; see `steepest.NAdam`."""

    _rule, _scalars = optim.NAdam, {"step": 0.0, "mu_product": 1.0}


class Lion(Steps, torch.optim.Optimizer):
    """Steps of one length in every coordinate, the sign of an interpolated momentum; see `steepest.Lion`."""

    _rule, _scalars = optim.Lion, {}

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        max_norm: float | None = None,
        state_dtype: optim.StateDtype = None,
    ) -> None:
        _check_numbers(lr=lr, betas=betas, weight_decay=weight_decay)
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults, max_norm=max_norm, state_dtype=state_dtype)


class Momentum(Steps, torch.optim.Optimizer):
    """Gradient descent along a moving average of the gradients; see `steepest.Momentum`."""

    _rule, _scalars = optim.Momentum, {}

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        beta: float = 0.9,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        max_norm: float | None = None,
        state_dtype: optim.StateDtype = None,
    ) -> None:
        _check_numbers(lr=lr, beta=beta, weight_decay=weight_decay)
        defaults = {"lr": lr, "beta": beta, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults, max_norm=max_norm, state_dtype=state_dtype)
