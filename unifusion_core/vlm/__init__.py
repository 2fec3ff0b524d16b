"""The frozen vision-language model: requests in, hidden states of chosen layers and rewrites out.

The only place in the package that imports `transformers`. `tiling` cuts pictures, `prompts` lays out chats,
`families` holds what differs between VLMs, `base` what they do alike, `folder` loads and `backbone` runs them. Import from these
modules: nothing is imported here, so that what needs no transformers (tiling, templates) does not load it.
"""
