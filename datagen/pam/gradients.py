"""One switch for all of the model's parts: gradients only where a module is in training mode."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


class HasMode(Protocol):
    """What knows whether it is being trained, as every torch module does: `training`."""

    training: bool


S = TypeVar("S", bound=HasMode)


def no_gradients_unless_training(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Run a method in inference mode, unless its object is in training mode: use and training then share one code path."""

    @functools.wraps(method)
    def wrapped(self: S, /, *args: Any, **kwargs: Any) -> R:
        with torch.inference_mode(not self.training):
            return method(self, *args, **kwargs)

    return wrapped
