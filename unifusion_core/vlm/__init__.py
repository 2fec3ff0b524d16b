"""The frozen vision-language model (VLM): requests in, hidden states of the tapped layers and rewrites out.

tiling           image -> tiles and thumbnail
chat             requests -> token ids, roles and positions
families/        what differs between VLM families
folder           loads a VLM folder
base, backbone   the interface of a VLM, and its implementation with transformers
taps             reads the inputs of the tapped layers
decoding         picks the next token
prefix_cache     keeps tiles and states of images for other prompts about them
features         selects the tokens that become the condition
rewrite          VERIFI
styles           text prepended to the prompt
image_strength   per-image conditioning strength

Of the inference code, only this package imports `transformers`. Import from the modules: this file imports nothing, so that
modules that do not need transformers (tiling, styles) do not load it.
"""
