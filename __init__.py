"""UniFusion for ComfyUI. The nodes are imported inside the entry point only, so that tests and tools can look at the
repository's root without a ComfyUI around them."""

WEB_DIRECTORY = "./nodes/web"  # help pages: docs/<NodeId>.md


async def comfy_entrypoint():  # noqa: ANN201  (ComfyUI's own type, not importable here)
    """Called by ComfyUI once, when it loads its packs."""
    from .nodes import UniFusionExtension

    return UniFusionExtension()
