"""Estimates of a generator's memory from its configuration, for `unifusion inspect`."""

from __future__ import annotations

from ..models.unifusion import UniFusionConfig
from ..vlm.families import find_family

# memory of common graphics cards, in GB
CARDS = (8, 12, 16, 24, 48)
# bytes per weight
WEIGHT_TYPES = {"16 bit": 2, "8 bit": 1}
# numbers of tiles of an input image
TILES = (1, 5, 10)
# tokens of a long prompt
PROMPT_TOKENS = 512
# (width, height) in pixels of the generated image
SIZE = (1024, 1024)
# pixels per latent cell of the VAE and axis
PIXELS_PER_CELL = 8


def gigabytes(count: float) -> str:
    """A number of bytes as text, in GB (1e9 bytes) or, below 1 GB, in MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def taps_of_tiles(config: UniFusionConfig) -> str:
    """The memory of the VLM's states at all taps, in 32 bits, per token and for input images of `TILES` tiles.

    Raises VLMError for an unknown VLM family.
    """
    spec = config.vlm
    per_token = 4 * len(spec.taps) * spec.hidden_size
    text = f"{per_token / 1e3:.1f} kB per token"
    # the embedded VLM has tiles of another size than its family
    if spec.fingerprint:
        return text
    tokens = find_family(spec.family).tokens_per_tile
    each = (f"{tiles}: {gigabytes(tiles * tokens * per_token)}" for tiles in TILES)
    return f"{text}; per image, by number of tiles ({tokens} tokens each): {', '.join(each)}"


def working_bytes(config: UniFusionConfig) -> int:
    """Approximate bytes of one step without the weights, in 16 bits, for an image of `SIZE` and a long prompt.

    Per token: 8 vectors of the stream's width (stream and attention) and 3 of the MLP's (gate, up and their product).
    """
    dit = config.dit
    cells = SIZE[0] * SIZE[1] // (PIXELS_PER_CELL * dit.patch_size) ** 2
    per_token = 8 * dit.hidden_size + 3 * dit.mlp_size
    return 2 * (cells + PROMPT_TOKENS) * per_token


def fits(config: UniFusionConfig, parameters: int) -> dict[str, str]:
    """For each card and weight type: "whole" if all weights fit in addition to one step, else the share that fits.

    `parameters`: number of parameters of the generator.
    """
    found = {}
    for card in CARDS:
        room = card * 1e9 - working_bytes(config)
        shares = {name: max(0.0, room / (width * parameters)) for name, width in WEIGHT_TYPES.items()}
        found[f"on {card} GB"] = ", ".join(
            f"{name} whole" if share >= 1 else f"{name} {share:.0%}" for name, share in shares.items()
        )
    return found
