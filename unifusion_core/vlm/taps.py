"""Reading what tapped layers read: tap k is what decoder layer k+1 reads, whatever the family."""

from __future__ import annotations

from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class _LastTapRead(BaseException):
    """Ends a forward pass whose rest nobody needs: no error, so no `except Exception` may swallow it."""


class TapReader:
    """Hooks that copy what the tapped layers read into one tensor and, unless the pass is `whole`, end it after the last of them.

    A context: it swallows the end of the pass, and its hooks are gone afterwards, also on errors.
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
        hidden = args[0] if args else kwargs["hidden_states"]  # B T D
        if index == 0:  # the first layer that is read tells dtype and device
            self.states = hidden.new_empty(*hidden.shape[:2], len(self.taps), hidden.shape[2])
        self.states[:, :, index] = hidden
        if index == len(self.taps) - 1 and not self.whole:
            raise _LastTapRead
