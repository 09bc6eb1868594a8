"""transformers opens merged folders of Pleach's and gives the adapters' outputs.

Usage: merged.py CASE MERGED [CASE MERGED ..]
CASE is a recorded parity case; its `case.json` names the model class, `io.safetensors` has the batch and the outputs
with and without the adapter. Prints one JSON object: by case, the largest differences at real tokens.
"""

import json
import sys

import torch
import transformers
from safetensors.torch import load_file


def compare(case_dir, merged_dir):
    with open(f"{case_dir}/case.json") as file:
        case = json.load(file)
    io = load_file(f"{case_dir}/io.safetensors")
    batch = {name[5:]: io[name] for name in io if name.startswith("eval.") and not name.endswith("_logits")}
    if not case["model_class"].endswith("ForConditionalGeneration"):
        batch.pop("labels", None)  # a decoder's inputs are made from them
    build = getattr(transformers, case["model_class"])
    model, info = build.from_pretrained(
        merged_dir, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    mask = batch.get("attention_mask")
    per_token = mask is not None and logits.shape[:2] == mask.shape
    weight = mask.unsqueeze(-1) if per_token else 1

    def off(name):
        return ((logits - io[name]).abs() * weight).max().item()

    return {
        "adapted": off("eval.adapted_logits"),
        "base": off("eval.base_logits"),
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
    }


def main():
    torch.set_num_threads(1)
    pairs = zip(sys.argv[1::2], sys.argv[2::2])
    print(json.dumps({case: compare(case, merged) for case, merged in pairs}))


main()
