"""The UniFusion pack for ComfyUI. The nodes are imported inside the entry point, so that tests and tools can import this
folder without ComfyUI."""

# help pages: docs/<NodeId>.md
WEB_DIRECTORY = "./nodes/web"


async def comfy_entrypoint():  # noqa: ANN201  (ComfyUI's own type, not importable here)
    """The pack's extension, which ComfyUI asks for when it loads its packs. Raises ImportError that names a missing package and
    the command that installs it."""
    try:
        from .nodes import UniFusionExtension
    except ModuleNotFoundError as absent:
        raise ImportError(
            f'UniFusion needs the Python package "{absent.name}": run `pip install -r requirements.txt`, the file in this '
            "pack's folder, in ComfyUI's Python environment, then restart ComfyUI"
        ) from absent

    return UniFusionExtension()
