"""The adapter to ComfyUI, and the only code of the pack that imports `comfy.*`.

host          folders, entries of drop-down lists, weight types, progress, interrupts
ops           ComfyUI's layers and attention inside the core's modules
loading       a generator file as a MODEL
model         the generator as a MODEL; pooling and layer inspection on it
clip          the VLM as a CLIP; encoding and rewriting on it
stock_clip    the CLIP of ComfyUI's own Load CLIP (Qwen3-VL, type krea2) as a VLM
conditions    conditionings during one sampling call: pooled and prepared once, padded into batches
sampling      the core's schedules and guidance in ComfyUI's sampling
krea2         ComfyUI's own Krea 2 model: its VLM spec, and features in its format
"""
