"""Records what transformers computes with the tiny models of two stacks, of images and of sound.

Usage: record_towers.py TINY OUT      TINY is the folder that the example `tiny` of pleach-nn wrote

As record_families.py, for models that read more than token ids. One file: `FAMILY-HEAD.INPUT` for every input (rows of
text are padded on the right, `lengths` says how far; `labels` are a decoder's, unshifted) and `FAMILY-HEAD.outputs`:
logits of all of the decoder's positions `[rows, width, vocab]`, of classes, similarities per image, or the mean of the
bare model's hidden states over real tokens.
"""

import fnmatch
import json
import os
import pathlib
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from safetensors.torch import save_file

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

ROWS, LENGTHS = 4, torch.tensor([9, 6, 9, 3])
WANTED = ("t5-*", "bart-*", "vit-*", "clip-*", "audio-*", "whisper-*")


def text(config, generator):
    """Ids and mask; every row ends in the end token, as some heads ask."""
    config = getattr(config, "text_config", config)
    ids = torch.randint(6, 250, (ROWS, 9), generator=generator)
    mask = (torch.arange(9) < LENGTHS[:, None]).long()
    ids[torch.arange(ROWS), LENGTHS - 1] = config.eos_token_id
    return {"input_ids": ids.masked_fill(mask == 0, config.pad_token_id), "attention_mask": mask}


def batch(config, generator):
    def normal(*shape):
        return torch.randn(ROWS, *shape, generator=generator)

    vision = getattr(config, "vision_config", config)
    kind = config.model_type
    inputs = {}
    if kind in ("t5", "bart") or "CLIPModel" in config.architectures:
        inputs |= text(config, generator)
    if kind in ("vit", "clip"):
        inputs["pixel_values"] = normal(vision.num_channels, vision.image_size, vision.image_size)
    if kind == "whisper":
        inputs["input_features"] = normal(config.num_mel_bins, 2 * config.max_source_positions)
    if kind.startswith("audio"):
        inputs["input_values"] = normal(config.max_length, config.num_mel_bins)
    if config.architectures[0].endswith("ForConditionalGeneration"):
        inputs["labels"] = torch.randint(6, 250, (ROWS, 5), generator=generator)
        inputs["labels"][1, 3:] = -100
    return inputs


def record(folder):
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    wrong = {key: value for key, value in info.items() if value}
    assert not wrong, f"{folder.name}: {wrong}"
    inputs = batch(model.config, torch.Generator().manual_seed(11))
    with torch.no_grad():
        found = model.eval()(**inputs)
    if "logits_per_image" in found:
        outputs = found.logits_per_image
    elif "logits" in found:
        outputs = found.logits
    else:
        hidden = found.last_hidden_state
        weights = inputs.get("attention_mask", torch.ones(hidden.shape[:2])).unsqueeze(-1).float()
        outputs = (hidden * weights).sum(1) / weights.sum(1)
    print(f"{folder.name}: {name} {tuple(outputs.shape)}")
    if inputs.pop("attention_mask", None) is not None:
        inputs["lengths"] = LENGTHS.clone()
    found = dict(inputs, outputs=outputs.contiguous())
    return {f"{folder.name}.{key}": tensor for key, tensor in found.items()}


if __name__ == "__main__":
    tiny, out = map(pathlib.Path, sys.argv[1:])
    tensors = {}
    for folder in sorted(tiny.iterdir()):
        if any(fnmatch.fnmatch(folder.name, pattern) for pattern in WANTED):
            tensors |= record(folder)
    save_file(tensors, out)
