"""PEFT opens an adapter folder of Pleach and gives the same outputs.

Usage: peft_parity.py MODEL ADAPTER IO.safetensors vectors|tokens
IO holds input_ids, attention_mask [rows, width], and Pleach's outputs: `base` without the adapter and `adapted` with it.
Prints one JSON object; the caller judges it.
"""

import json
import sys
import warnings

import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM


def run(model, kind, io):
    with torch.no_grad():
        out = model(input_ids=io["input_ids"], attention_mask=io["attention_mask"])
    if kind == "tokens":
        return out.logits
    # As the model's own modules.json says: the mean over real tokens, scaled to length one.
    mask = io["attention_mask"].unsqueeze(-1).float()
    mean = (out.last_hidden_state * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(mean, dim=-1)


def distance(a, b, kind, io):
    difference = (a - b).abs()
    if kind == "tokens":
        difference = difference * io["attention_mask"].unsqueeze(-1)
    return difference.max().item()


def main():
    model_dir, adapter_dir, io_path, kind = sys.argv[1:]
    torch.set_num_threads(1)
    io = load_file(io_path)
    build = AutoModelForCausalLM if kind == "tokens" else AutoModel
    base = build.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager").eval()
    base_out = run(base, kind, io)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # low_cpu_mem_usage leaves a tensor that the file does not fill without storage: it could not go unnoticed.
        model = PeftModel.from_pretrained(base, adapter_dir, low_cpu_mem_usage=True).eval()
    adapted_out = run(model, kind, io)

    wanted = {name for name, _ in model.named_parameters() if "lora_" in name}
    with safe_open(f"{adapter_dir}/adapter_model.safetensors", "pt") as file:
        found = {name.replace(".weight", ".default.weight") for name in file.keys()}
    print(
        json.dumps(
            {
                "adapted": distance(adapted_out, io["adapted"], kind, io),
                "base": distance(base_out, io["base"], kind, io),
                "moved": distance(adapted_out, base_out, kind, io),
                "missing": sorted(wanted - found),
                "unexpected": sorted(found - wanted),
                "warnings": [str(w.message) for w in caught if "key" in str(w.message).lower()],
                "trainable_in_file": len(found),
            }
        )
    )


main()
