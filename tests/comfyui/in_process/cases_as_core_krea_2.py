"""Nodes of others treat the pack's MODEL as ComfyUI's own Krea 2. Each case does so to both, on equal weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.samplers
import comfy_extras.nodes_custom_sampler as custom_sampler
import comfy_extras.nodes_flux as flux
import comfy_extras.nodes_nag as nag
import node_helpers
import torch
from comfy.ldm.flux.math import apply_rope
from comfy.ldm.krea2.model import SingleStreamDiT
from comfy.ldm.modules.attention import optimized_attention_masked
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from .case import PARITY, case, difference
from .small_krea import KREA_LATENT, krea_models, krea_states
from .small_unifusion import CFG, SEED

SIGMAS = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0])
# changes a model; None leaves it as it is
Change = Callable[[Any], Any]
# below this a difference would prove nothing
EFFECT = 1e-2


def _conditions(length: int = 12, negative_length: int = 12) -> list[list[list[Any]]]:
    return [[[krea_states(length), {}]], [[krea_states(negative_length) * -0.7, {}]]]


def _drawn(model: Any, conditions: list[Any], latent: Tensor = KREA_LATENT, cfg: float = CFG) -> Tensor:
    euler = comfy.samplers.sampler_object("euler")
    drawn = custom_sampler.SamplerCustom.execute(
        model, True, SEED, cfg, *conditions, euler, SIGMAS, {"samples": latent}
    )
    return drawn.args[0]["samples"]


def _changed_alike(change: Change, conditions: list[Any] | None = None, **more: Any) -> dict[str, float]:
    """Both models changed in the same way: their difference, and the change's effect on ours."""
    conditions = conditions or _conditions()
    plain, _ = krea_models()
    ours, theirs = (_drawn(change(model), conditions, **more) for model in krea_models())
    return {
        "difference": difference(ours, theirs),
        "effect": difference(ours, _drawn(plain, conditions, **more)),
    }


def _all_alike(found: dict[str, dict[str, float]]) -> None:
    assert found
    for name, each in found.items():
        assert each["difference"] <= PARITY, name
        assert each["effect"] > EFFECT, name


# Surface ------------------------------------------------------------------------------------------


@case(equals=[])
def attributes_of_core_krea_2() -> list[str]:
    """Names that ComfyUI's own module and its parts have and ours lack, or hold with another value."""
    ours, theirs = (model.model.diffusion_model for model in krea_models())
    pairs = {
        "": (ours, theirs),
        "blocks.0.": (ours.blocks[0], theirs.blocks[0]),
        "blocks.0.attn.": (ours.blocks[0].attn, theirs.blocks[0].attn),
        "blocks.0.attn.qknorm.": (ours.blocks[0].attn.qknorm, theirs.blocks[0].attn.qknorm),
        "txtfusion.": (ours.txtfusion, theirs.txtfusion),
        "txtfusion.refiner_blocks.0.attn.": (
            ours.txtfusion.refiner_blocks[0].attn,
            theirs.txtfusion.refiner_blocks[0].attn,
        ),
        "last.": (ours.last, theirs.last),
    }
    missing = []
    for path, (our, their) in pairs.items():
        for name in set(dir(their)) - set(dir(nn.Module)):
            value = getattr(their, name)
            plain = isinstance(value, int | float | str | None)
            if not hasattr(our, name) or (plain and getattr(our, name) != value):
                missing.append(path + name)
    return sorted(missing)


# Attention patches --------------------------------------------------------------------------------


def _with_nag(model: Any) -> Any:
    return nag.NAGuidance.execute(model, 5.0, 0.5, 1.5).args[0]


def _with_attention_patches(calls: list[str]) -> Change:
    """Each patch changes what it is given."""

    def before(
        q: Tensor, k: Tensor, v: Tensor, pe: Any, attn_mask: Any, extra_options: Any
    ) -> dict[str, Any]:
        calls.append(f"before {extra_options['block_index']} of {extra_options['total_blocks']}")
        return {"q": q * 1.5, "k": k.roll(1, 2), "v": v + 0.1 * extra_options["block_index"]}

    def after(out: Tensor, extra_options: dict[str, Any]) -> Tensor:
        start, end = extra_options["img_slice"]
        calls.append(f"after {extra_options['block_index']}: {start} to {end} of {out.shape[1]}")
        return torch.cat([out[:, :start] * 0.5, out[:, start:end] * 1.2], 1)

    def at_input(inputs: dict[str, Any]) -> dict[str, Any]:
        shapes = {name: list(inputs[name].shape) for name in ("img", "txt", "img_ids", "txt_ids")}
        calls.append(f"input {shapes}")
        return inputs | {
            "img": inputs["img"] * 1.1,
            "txt": inputs["txt"].roll(1, 2),
            "txt_ids": inputs["txt_ids"] - 2,
            "img_ids": inputs["img_ids"] + 1,
        }

    def change(model: Any) -> Any:
        model = model.clone()
        model.set_model_attn1_patch(before)
        model.set_model_attn1_output_patch(after)
        model.set_model_post_input_patch(at_input)
        return model

    return change


@case(check=_all_alike)
def attention_patches() -> dict[str, dict[str, float]]:
    calls: list[str] = []
    found = {
        "NAG": _changed_alike(_with_nag),
        "attn1_patch, attn1_output_patch, post_input": _changed_alike(_with_attention_patches(calls)),
        "of unequal lengths": _changed_alike(_with_attention_patches([]), _conditions(9, 14)),
    }
    assert calls[: len(calls) // 2] == calls[len(calls) // 2 :], calls
    return found


# Wrappers, hooks, replacements ----------------------------------------------------------------------


def _wrapped(seen: list[Any], new_context: Callable[[Tensor], Tensor]) -> Change:
    """A wrapper with ComfyUI's own argument order."""

    def wrapper(
        executor: Any,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        attention_mask: Any,
        ref_latents: Any,
        transformer_options: dict[str, Any],
        **kwargs: Any,
    ) -> Tensor:
        seen.append([list(x.shape), timesteps.tolist(), list(context.shape), attention_mask, ref_latents])
        seen.append(sorted(set(kwargs) - {"unifusion_conditions"}))
        context = new_context(context)
        return executor(
            x * 1.1, timesteps, context, attention_mask, ref_latents, transformer_options, **kwargs
        )

    def change(model: Any) -> Any:
        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "a pack", wrapper)
        return model

    return change


@case(check=_all_alike)
def wrappers() -> dict[str, dict[str, float]]:
    def in_place(context: Tensor) -> Tensor:
        return context.mul_(0.5)

    changes = {
        "as it is": lambda context: context,
        "in place": in_place,
        "scaled": lambda context: context * 0.5,
        "shorter": lambda context: context[:, 3:],
        "longer": lambda context: torch.cat([context, context[:, :4].flip(1)], 1),
        "rearranged": lambda context: context.flip(0),
    }
    found = {}
    for name, change in changes.items():
        seen: list[Any] = []
        found[name] = _changed_alike(_wrapped(seen, change))
        assert seen[: len(seen) // 2] == seen[len(seen) // 2 :], seen
    return found


def _function_wrapper(apply: Any, given: dict[str, Any]) -> Tensor:
    of_step = given["c"]
    of_step["c_crossattn"][:, 4:] = 0
    return apply(given["input"], given["timestep"], **of_step)


def _with_function_wrapper(model: Any) -> Any:
    model = model.clone()
    model.set_model_unet_function_wrapper(_function_wrapper)
    return model


@case(check=_all_alike)
def context_changed_by_a_function_wrapper() -> dict[str, dict[str, float]]:
    return {"in place": _changed_alike(_with_function_wrapper)}


def _own_attention(module: Any) -> Callable[..., Tensor]:
    """An attention as packs write it, from the parts of ComfyUI's own."""

    def forward(
        x: Tensor, freqs: Any = None, mask: Any = None, transformer_options: dict[str, Any] | None = None
    ) -> Tensor:
        shape = (*x.shape[:2], -1, module.headdim)
        q, k, v = (part(x).view(shape).transpose(1, 2) for part in (module.wq, module.wk, module.wv))
        q, k = apply_rope(*module.qknorm(q, k), freqs)
        k, v = (each.repeat_interleave(module.heads // module.kvheads, 1) for each in (k, v))
        out = optimized_attention_masked(q * 1.3, k, v, module.heads, mask=mask, skip_reshape=True)
        return module.wo(out * module.gate(x).sigmoid())

    return forward


def _own_block(module: Any) -> Callable[..., Tensor]:
    plain = module.forward

    def forward(
        x: Tensor,
        vec: Tensor,
        freqs: Any,
        mask: Any = None,
        timestep_zero_index: Any = None,
        transformer_options: dict[str, Any] | None = None,
    ) -> Tensor:
        options = transformer_options or {}
        scale = 1 + 0.1 * options["block_index"] * float(options["sigmas"][0])
        return plain(x * scale, vec, freqs, mask, timestep_zero_index, transformer_options=options)

    return forward


def _with_object(path: str, make: Callable[[Any], Any]) -> Change:
    def change(model: Any) -> Any:
        model = model.clone()
        module = model.get_model_object(path.removesuffix(".forward"))
        model.add_object_patch(path, make(module))
        return model

    return change


class _Stretched(nn.Module):
    """Positions scaled before they are embedded."""

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        self.plain = plain

    def forward(self, ids: Tensor) -> Tensor:
        return self.plain(ids * 0.7)


@case(check=_all_alike)
def replaced_objects() -> dict[str, dict[str, float]]:
    prefix = "diffusion_model"
    return {
        "attention": _changed_alike(_with_object(f"{prefix}.blocks.1.attn.forward", _own_attention)),
        "block": _changed_alike(_with_object(f"{prefix}.blocks.1.forward", _own_block)),
        "positions": _changed_alike(_with_object(f"{prefix}.pe_embedder", _Stretched)),
        "refiner": _changed_alike(
            _with_object(
                f"{prefix}.txtfusion.forward",
                lambda module: lambda x, mask=None, transformer_options=None: x.mean(2),
            )
        ),
    }


def _hooked(calls: list[Any]) -> Change:
    """Forward hooks on parts; the outputs change with every call, as with a pack that counts steps."""

    def change(model: Any) -> Any:
        module: SingleStreamDiT = model.model.diffusion_model
        count = 0

        def hook(part: nn.Module, args: Any, output: Tensor) -> Tensor:
            nonlocal count
            count += 1
            shapes = [list(each.shape) if torch.is_tensor(each) else each for each in args]
            calls.append([type(args).__name__, shapes, list(output.shape)])
            return output * (1 + 0.02 * count)

        for part in (
            module.blocks[0].attn,
            module.blocks[1],
            module.blocks[1].mlp,
            module.first,
            module.last,
        ):
            part.register_forward_hook(hook)
        module.txtmlp.register_forward_hook(hook)
        return model

    return change


@case(check=_all_alike)
def forward_hooks() -> dict[str, dict[str, float]]:
    calls: list[Any] = []
    found = {"hooks": _changed_alike(_hooked(calls))}
    half = len(calls) // 2
    assert half > 20
    assert calls[:half] == calls[half:]
    return found


# Reference latents --------------------------------------------------------------------------------


def _with_references(conditions: list[Any], method: str | None, sizes: list[tuple[int, int]]) -> list[Any]:
    random = torch.Generator().manual_seed(8)
    references = [torch.randn(1, 16, 1, *size, generator=random) for size in sizes]
    values = {"reference_latents": references}
    found = [node_helpers.conditioning_set_values(each, values) for each in conditions]
    if method is not None:
        add = flux.FluxKontextMultiReferenceLatentMethod.execute
        found = [add(each, method).args[0] for each in found]
    return found


@case()
def reference_latents() -> dict[str, Any]:
    """Every method that ComfyUI has, one reference and two of other sizes, one on the positive alone, batches, NAG."""
    methods = ("offset", "index", "uxo/uno", "index_timestep_zero")
    one, two = [(8, 14)], [(6, 10), (7, 9)]
    plain, _ = krea_models()
    without = _drawn(plain, _conditions())

    def measured(
        conditions: list[Any], change: Change = lambda model: model, **more: Any
    ) -> dict[str, float]:
        found = _changed_alike(change, conditions, **more)
        if not more:
            found["effect"] = difference(_drawn(change(plain), conditions), without)
        return found

    found = {
        f"{method}, {len(sizes)}": measured(_with_references(_conditions(), method, sizes))
        for method in methods
        for sizes in (one, two)
    }
    positive = _with_references(_conditions()[:1], "index_timestep_zero", two)
    found["on the positive alone"] = measured([*positive, _conditions()[1]])
    found["with NAG"] = measured(_with_references(_conditions(), "index", one), _with_nag)
    kv_cache = flux.FluxKVCache.execute
    found["kept keys and values"] = measured(
        _with_references(_conditions(), None, one), lambda model: kv_cache(model).args[0]
    )
    batch = measured(_with_references(_conditions(), "index", one), latent=torch.zeros(2, 16, 1, 6, 8))
    found["batch"] = batch | {"effect": 1.0}
    return found


@reference_latents.check
def _(found: dict[str, Any]) -> None:
    assert len(found) == 12
    _all_alike(found)
