"""Records what transformers computes with the tiny model of every family.

Usage: record_families.py TINY OUT      TINY is the folder that the example `tiny` of pleach-nn wrote

A tiny model is a function of its family, its head and a seed, so that only inputs and outputs are recorded, in one
file: `FAMILY-HEAD.ids` and `.mask` `[3, 9]` and `.outputs`: logits of real tokens, one row a token; of classes, one row
a sequence; or the mean of the bare model's hidden states over real tokens. A model whose tensors have
other names than transformers expects is not recorded.
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

import record_towers

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()


def record(folder):
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    wrong = {key: value for key, value in info.items() if value}
    assert not wrong, f"{folder.name}: {wrong}"
    generator = torch.Generator().manual_seed(11)
    ids = torch.randint(6, 250, (3, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 6:], mask[2, 3:] = 0, 0
    pad = model.config.pad_token_id
    ids = ids.masked_fill(mask == 0, pad or 0)
    if pad is None:
        model.config.pad_token_id = 0  # asked for where classes come from the last token
    else:
        ids[1, 2] = pad  # a real token, which some families do not count
    with torch.no_grad():
        found = model.eval()(input_ids=ids, attention_mask=mask)
    if "logits" in found:
        outputs = found.logits if found.logits.dim() == 2 else found.logits[mask == 1]
    else:
        weights = mask.unsqueeze(-1).float()
        outputs = (found.last_hidden_state * weights).sum(1) / weights.sum(1)
    print(f"{folder.name}: {name}")
    found = dict(ids=ids, mask=mask, outputs=outputs.contiguous())
    return {f"{folder.name}.{key}": tensor for key, tensor in found.items()}


if __name__ == "__main__":
    tiny, out = map(pathlib.Path, sys.argv[1:])
    tensors = {}
    for folder in sorted(tiny.iterdir()):
        if not any(fnmatch.fnmatch(folder.name, pattern) for pattern in record_towers.WANTED):
            tensors |= record(folder)
    save_file(tensors, out)
