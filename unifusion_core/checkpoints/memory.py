"""How much memory a generator takes, from its numbers alone: what `unifusion inspect` says about it."""

from __future__ import annotations

from ..models.unifusion import UniFusionConfig
from ..vlm.families import find_family

CARDS = (8, 12, 16, 24, 48)  # GB of memory on graphics cards
WEIGHT_TYPES = {"16 bit": 2, "8 bit": 1}  # bytes of a weight
TILES = (1, 5, 10)
PROMPT_TOKENS = 512
SIZE = (1024, 1024)  # pixels, of the picture whose drawing is estimated
PIXELS_PER_CELL = 8


def gigabytes(count: float) -> str:
    """Bytes for people: MB below a GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def taps_of_tiles(config: UniFusionConfig) -> str:
    """What the VLM's states at all tapped layers take, in 32 bit, as they travel from the VLM to LAP. Raises VLMError for a
    family that this version does not know."""
    spec = config.vlm
    per_token = 4 * len(spec.taps) * spec.hidden_size
    text = f"{per_token / 1e3:.1f} kB per token"
    if spec.fingerprint:  # the embedded VLM has tiles of its own
        return text
    tokens = find_family(spec.family).tokens_per_tile
    each = (f"{tiles}: {gigabytes(tiles * tokens * per_token)}" for tiles in TILES)
    return f"{text}; for pictures in {', '.join(each)} (tiles of {tokens} tokens)"


def working_bytes(config: UniFusionConfig) -> int:
    """About what one step needs beside the weights, in 16 bit, for a picture of `SIZE` and a long prompt: the stream, what
    attention is made of, and the hidden layer of one block's MLP (gate, up, their product)."""
    dit = config.dit
    cells = SIZE[0] * SIZE[1] // (PIXELS_PER_CELL * dit.patch_size) ** 2
    per_token = 8 * dit.hidden_size + 3 * dit.mlp_size
    return 2 * (cells + PROMPT_TOKENS) * per_token


def fits(config: UniFusionConfig, parameters: int) -> dict[str, str]:
    """For each size of card and type of weights: whether all weights fit beside one step, or what share of them."""
    found = {}
    for card in CARDS:
        room = card * 1e9 - working_bytes(config)
        shares = {name: max(0.0, room / (width * parameters)) for name, width in WEIGHT_TYPES.items()}
        found[f"on {card} GB"] = ", ".join(
            f"{name} whole" if share >= 1 else f"{name} {share:.0%}" for name, share in shares.items()
        )
    return found
