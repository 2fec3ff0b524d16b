"""The generator's module with the surface of ComfyUI's own Krea 2.

Nodes of others take a MODEL with Krea 2's parameter names for ComfyUI's own. So calls, their arguments and their order,
attributes, attention patches, wrappers and hooks are those of `comfy.ldm.krea2.model.SingleStreamDiT`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import comfy.patcher_extension
import comfy.utils
import torch
from comfy.ldm.flux.layers import EmbedND
from comfy.ldm.krea2.model import SingleStreamDiT
from torch import Tensor, nn

from ...unifusion_core.models.dit import DiTBlock, from_patches
from ...unifusion_core.models.layers import Attention, LayerFactory, Rope, key_bias, rotary_axes
from ...unifusion_core.models.unifusion import PreparedCondition, UniFusion, UniFusionConfig
from .conditions import Rows, rows_of, to_batch
from .ops import HostAttention, Options

_F = TypeVar("_F", bound=Callable[..., Any])
# keyword argument of a step that holds its conditions
CONDITIONS = "unifusion_conditions"
# entry of transformer_options that identifies the present state of hooked weights
WEIGHTS = "unifusion_weights"
# patches that ComfyUI's own Krea 2 calls
PATCHES = ("post_input", "attn1_patch", "attn1_output_patch")


def _outside_of_graphs(function: _F) -> _F:
    """`torch.compiler.disable`, with the function's type."""
    return cast(_F, torch.compiler.disable(function))


class HostedBlock(DiTBlock):
    """A block of the DiT with the call signature of ComfyUI's own."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: Tensor,
        vec: Tensor,
        freqs: Rope,
        mask: Tensor | None = None,
        timestep_zero_index: int | None = None,
        transformer_options: Options = {},  # noqa: B006  (ComfyUI's convention)
        **more: Any,
    ) -> Tensor:
        """From token `timestep_zero_index` on, the tokens take the second half of the rows of `vec`."""
        if timestep_zero_index is not None:
            lengths = (timestep_zero_index, x.shape[1] - timestep_zero_index)
            halves = zip(vec.chunk(2), lengths, strict=True)
            vec = torch.cat([half.expand(-1, length, -1) for half, length in halves], 1)
        return super().forward(x, vec, freqs, mask, transformer_options=transformer_options, **more)


class HostedUniFusion(UniFusion):
    """UniFusion as ComfyUI's diffusion model."""

    def __init__(
        self,
        *,
        unifusion: UniFusionConfig,
        operations: Any,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **for_comfyui: Any,
    ) -> None:
        attention = HostAttention()
        super().__init__(
            unifusion, LayerFactory(operations=operations, attend=attention, device=device, dtype=dtype)
        )
        self.attention = attention
        self._set_attributes_of_krea2()
        # ComfyUI asks the module for the type of its weights
        self.dtype = dtype
        if dtype is not None and dtype.itemsize == 1:
            for name, parameter in self.named_parameters():
                # vectors of scales and shifts are small and need more than 8 bits
                if not name.endswith("weight"):
                    parameter.data = parameter.data.to(torch.bfloat16)

    def _set_attributes_of_krea2(self) -> None:
        dit, vlm = self.config.dit, self.config.vlm
        self.patch, self.channels, self.tdim = dit.patch_size, dit.latent_channels, dit.time_size
        # RenormCFG asks for them, by the name that other models have
        self.in_channels = self.out_channels = dit.latent_channels
        self.heads, self.txtdim, self.txtlayers = dit.num_heads, vlm.hidden_size, len(vlm.taps)
        # how reference latents enter, unless a conditioning says it; nodes such as FluxKVCache set it
        self.default_ref_method: str | None = None
        self.pe_embedder = EmbedND(
            dim=dit.head_size, theta=dit.rope_theta, axes_dim=list(rotary_axes(dit.head_size))
        )
        for block in self.blocks:
            block.__class__ = HostedBlock
        for attention in self.modules():
            if isinstance(attention, Attention):
                sizes: Any = attention
                sizes.headdim = attention.head_size
                sizes.heads = attention.wq.out_features // attention.head_size
                sizes.kvheads = attention.wk.out_features // attention.head_size

    # calls `_forward` through the wrappers
    forward: Any = SingleStreamDiT.forward
    process_img: Any = SingleStreamDiT.process_img
    _unpack_context: Any = SingleStreamDiT._unpack_context

    def _forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        attention_mask: Tensor | None = None,
        ref_latents: list[Tensor] | None = None,
        transformer_options: Options = {},  # noqa: B006  (ComfyUI's convention)
        **kwargs: Any,
    ) -> Tensor:
        """The velocity of latents B C h w, or B C 1 h w where the latent format has a time axis, at times in 0..1.

        `context`: flattened VLM features B T LD or pooled tokens B T E. In prefix form their keys and values are computed once,
        unless a patch or a hook may change them.
        """
        options, temporal = transformer_options.copy(), x.ndim == 5
        flat = x[:, :, 0] if temporal else x
        joint = self.config.condition_attention == "joint"
        img, img_ids, rows, columns = self.process_img(flat)
        num_latent = img.shape[1]
        method = kwargs.get("ref_latents_method", self.default_ref_method)
        references_at_zero = False
        if method is not None and ref_latents and joint:
            img, img_ids, options["reference_image_num_tokens"] = self._with_references(
                img, img_ids, ref_latents
            )
            references_at_zero = method == "index_timestep_zero"
        img = self.first(img)
        time, vec = self._time(timesteps, img.dtype)
        reuse = not (joint or _patched(options) or _watched(self.blocks))
        if references_at_zero or not (joint or reuse):
            at_zero = self._time(torch.zeros_like(timesteps), img.dtype)[1]
            vec = torch.cat([vec, at_zero] if joint else [at_zero, vec])
        condition = self._condition(
            context,
            attention_mask,
            kwargs.get(CONDITIONS),
            img,
            (rows, columns),
            options=options,
            reuse=reuse,
        )
        txt, mask = condition.conditioning.tokens, condition.conditioning.mask
        txt_ids = self._condition_positions(condition.conditioning, (rows, columns))
        for patch in options.get("patches", {}).get("post_input", ()):
            given = {"img": img, "txt": txt, "img_ids": img_ids, "txt_ids": txt_ids}
            out = patch(given | {"transformer_options": options})
            img, txt, img_ids, txt_ids = out["img"], out["txt"], out["img_ids"], out["txt_ids"]
        if txt.shape[1] != mask.shape[1]:
            mask = mask.new_ones(txt.shape[:2])

        zero_index: int | None = None
        prefixes: Iterable[Any] = [None] * len(self.blocks)
        bias = None
        if condition.keys_values is not None:
            stream, ids, start = img, img_ids, 0
            prefixes = condition.keys_values
        else:
            stream, ids, start = torch.cat([txt, img], 1), torch.cat([txt_ids, img_ids], 1), txt.shape[1]
            if not joint:
                zero_index = start
            elif references_at_zero:
                zero_index = start + num_latent
        if condition.has_padding:
            bias = key_bias(torch.cat([mask, mask.new_ones(img.shape[:2])], 1), img.dtype)
        if condition.keys_values is None and not joint:
            bias = _hide_latents_from_condition(bias, start, stream)
        freqs = self.pe_embedder(ids)
        options |= {
            "total_blocks": len(self.blocks),
            "block_type": "single",
            "img_slice": [start, stream.shape[1]],
        }
        for index, (block, prefix) in enumerate(zip(self.blocks, prefixes, strict=True)):
            options["block_index"] = index
            more = {} if prefix is None else {"prefix": prefix}
            stream = _replaced(options, index, block)(
                stream, vec, freqs, bias, timestep_zero_index=zero_index, transformer_options=options, **more
            )
        patches = self.last(stream, time)[:, start : start + num_latent]
        velocity = from_patches(patches, self.patch, rows, columns)[..., : x.shape[-2], : x.shape[-1]]
        return velocity[:, :, None] if temporal else velocity

    def _with_references(
        self, img: Tensor, img_ids: Tensor, references: list[Tensor]
    ) -> tuple[Tensor, Tensor, list[int]]:
        """Patches and positions with those of the reference latents behind them, and the number of patches of each reference,
        whose index counts from 1."""
        tokens, ids = [img], [img_ids]
        for index, reference in enumerate(references, 1):
            flat = reference[:, :, 0] if reference.ndim == 5 else reference
            of_one, its_ids, _, _ = self.process_img(
                comfy.utils.repeat_to_batch_size(flat, len(img)), index=index
            )
            tokens.append(of_one)
            ids.append(its_ids)
        return torch.cat(tokens, 1), torch.cat(ids, 1), [each.shape[1] for each in tokens[1:]]

    # the checks of contents would break a compiled graph
    @_outside_of_graphs
    def _condition(
        self,
        context: Tensor,
        attention_mask: Tensor | None,
        rows: list[Rows] | None,
        like: Tensor,
        grid: tuple[int, int],
        *,
        options: Options,
        reuse: bool,
    ) -> PreparedCondition:
        """The pooled condition of a batch; with `reuse`, its keys and values, too.

        What has been computed for a condition is reused in later steps, unless a wrapper has changed `context`, or hooks on LAP,
        refiner or projection may change it from step to step.
        """
        changed = _watched([self.txtfusion, self.txtmlp])
        known = rows_of(rows, context, attention_mask, self.config, like, changed=changed)
        state = options.get(WEIGHTS)
        with self.attention.during(options):
            parts = []
            for each in known:
                if reuse:
                    prepared = each.condition.prepared_for(self, like, grid, state)
                else:
                    prepared = PreparedCondition(
                        conditioning=each.condition.pooled_for(self, like, state),
                        grid=grid,
                        has_padding=each.condition.has_padding,
                    )
                parts.append((prepared, each.count))
        return to_batch(parts)


def _patched(options: Options) -> bool:
    """Whether patches may change condition tokens inside the DiT."""
    return any(options.get("patches", {}).get(name) for name in PATCHES)


def _watched(modules: Iterable[nn.Module]) -> bool:
    """Whether hooks, or a forward in place of the class's own, may see or change what these modules compute."""
    return any(
        each._forward_hooks or each._forward_pre_hooks or "forward" in vars(each)
        for module in modules
        for each in module.modules()
    )


def _hide_latents_from_condition(bias: Tensor | None, num_condition: int, stream: Tensor) -> Tensor:
    """The bias of the prefix form in one stream: condition tokens attend to condition tokens only."""
    length = stream.shape[1]
    hidden = stream.new_zeros(1, 1, length, length)
    hidden[..., :num_condition, num_condition:] = torch.finfo(stream.dtype).min
    return hidden if bias is None else torch.minimum(bias, hidden)


def _replaced(options: Options, index: int, block: nn.Module) -> Callable[..., Tensor]:
    """A block of the DiT, or its replacement by a node such as SkipLayerGuidanceDiT. A replacement applies to the stream; the
    keys and values of a condition in prefix form are computed without it."""
    patches = options.get("patches_replace", {}).get("dit", {})
    patch = patches.get(("single_block", index)) or patches.get(("double_block", index))
    if patch is None:
        return block

    def call(x: Tensor, vec: Tensor, freqs: Rope, mask: Tensor | None, **rest: Any) -> Tensor:
        def original(args: dict[str, Any]) -> dict[str, Any]:
            return args | {"img": block(args["img"], args["vec"], args["pe"], args["attn_mask"], **rest)}

        args = {"img": x, "vec": vec, "pe": freqs, "attn_mask": mask, "transformer_options": options}
        return cast(Tensor, patch(args, {"original_block": original})["img"])

    return call
