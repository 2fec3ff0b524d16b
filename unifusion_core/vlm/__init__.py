"""The frozen vision-language model: requests in, hidden states of chosen layers and rewrites out.

The only place in the package that imports `transformers`. `tiling` cuts pictures, `prompts` lays out chats,
`families` holds what differs between VLMs, `backbone` loads and runs them. Import from these modules:
nothing is imported here, so that what needs no transformers (tiling, templates) does not load it.
"""
