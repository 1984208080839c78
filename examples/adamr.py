"""AdamR: Adam with decay toward the weights that training began from (DAREx-L2; Deng et al., arXiv 2410.09344).

The delta between fine-tuned and base weights stays small, so that more of it can be dropped afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class AdamR(torch.optim.Optimizer):
    """theta -= lr * (m^ / (sqrt(v^) + eps) + lambda / sqrt(mean v^) * (theta - theta_base)), for each tensor.

    The mean of v^ over the tensor puts the penalty on the scale of Adam's own step, without dividing each element by
    its own v^, which is why Adam's L2 penalty does little. theta_base are the parameters as they are when the optimiser
    is made. decay: lambda; 0 gives Adam. A step never goes beyond theta_base.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        decay: float = 0.01,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "decay": decay})
        for group in self.param_groups:
            for theta in group["params"]:
                self.state[theta] = {
                    "step": 0,
                    "m": torch.zeros_like(theta),
                    "v": torch.zeros_like(theta),
                    "base": theta.detach().clone() if group["decay"] else None,
                }

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for theta in group["params"]:
                if theta.grad is None:
                    continue
                state = self.state[theta]
                state["step"] += 1
                m, v = state["m"], state["v"]
                m.lerp_(theta.grad, 1 - beta1)
                v.mul_(beta2).addcmul_(theta.grad, theta.grad, value=1 - beta2)
                correction1 = 1 - beta1 ** state["step"]
                correction2 = 1 - beta2 ** state["step"]
                if group["decay"]:
                    mean = float(v.mean()) / correction2
                    rate = group["lr"] * group["decay"] / (math.sqrt(mean) + group["eps"])
                    theta.lerp_(state["base"], min(1.0, rate))
                denominator = (v.sqrt() / math.sqrt(correction2)).add_(group["eps"])
                theta.addcdiv_(m, denominator, value=-group["lr"] / correction1)
        return loss
