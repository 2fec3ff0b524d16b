"""The embedded model: where its three files stand inside the package. Nothing is loaded here."""

from __future__ import annotations

from pathlib import Path

NAME = "unifusion-tiny-1"  # versioned: a workflow that names an older one can be told so
WEIGHTS = Path(__file__).parent / "weights"
GENERATOR = WEIGHTS / f"{NAME}.safetensors"  # LAP, refiner and DiT
VAE = (
    WEIGHTS / "vae" / f"{NAME}-vae.safetensors"
)  # TAESD layout; alone in its folder, which stock VAELoader lists
VLM = WEIGHTS / f"{NAME}-vlm"  # a Hugging Face folder
