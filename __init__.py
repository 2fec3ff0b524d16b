"""UniFusion for ComfyUI. The nodes are imported inside the entry point only, so that tests and tools can look at the
repository's root without a ComfyUI around them."""

WEB_DIRECTORY = "./nodes/web"  # help pages: docs/<NodeId>.md


async def comfy_entrypoint():  # noqa: ANN201  (ComfyUI's own type, not importable here)
    """Called by ComfyUI once, when it loads its packs. Raises ImportError that names a missing package and how to get it."""
    try:
        from .nodes import UniFusionExtension
    except ModuleNotFoundError as absent:
        raise ImportError(
            f'UniFusion needs the Python package "{absent.name}": run `pip install -r requirements.txt`, the file in this '
            "pack's folder, in ComfyUI's Python environment, then restart ComfyUI"
        ) from absent

    return UniFusionExtension()
