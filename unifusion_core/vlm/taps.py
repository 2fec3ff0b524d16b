"""Reads the inputs of the tapped layers: tap k = input of decoder layer k+1 (0 = token embeddings), in every VLM family."""

from __future__ import annotations

from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class _LastTapRead(BaseException):
    """Stops the forward pass after the last tap. A BaseException, so that no `except Exception` catches it."""


class TapReader:
    """Context manager whose hooks copy the inputs of the tapped layers into `states`. They are removed on exit, also on errors.

    whole   True = the pass runs through all layers, False = it stops after the last tap
    """

    def __init__(self, layers: nn.ModuleList, taps: tuple[int, ...], *, whole: bool = False) -> None:
        self.layers = layers
        self.taps = taps
        self.whole = whole
        self.states: Float[Tensor, "B T L D"]
        self.hooks: list[RemovableHandle] = []

    def __enter__(self) -> TapReader:
        for index, tap in enumerate(self.taps):
            read = partial(self._read, index)
            self.hooks.append(self.layers[tap].register_forward_pre_hook(read, with_kwargs=True))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        for hook in self.hooks:
            hook.remove()
        return isinstance(error, _LastTapRead)

    def _read(self, index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # B T D
        hidden = args[0] if args else kwargs["hidden_states"]
        # dtype, device and length are known at the first tap
        if index == 0:
            self.states = hidden.new_empty(*hidden.shape[:2], len(self.taps), hidden.shape[2])
        self.states[:, :, index] = hidden
        if index == len(self.taps) - 1 and not self.whole:
            raise _LastTapRead
