"""PEFT opens adapters of Pleach, and makes adapters of the same options for Pleach to open.

Usage: peft_zoo.py CASES.json
Each case names `model`, `adapter` (a folder of Pleach), `io` (a safetensors file: the model's inputs, `adapted` with
Pleach's outputs, `mask` over its positions) and `theirs`, a folder to write to. Prints a JSON list: for each case how far
PEFT's outputs are from Pleach's, keys that are missing or unexpected, or the error that PEFT raised. `theirs` gets an
adapter that PEFT made and `out.safetensors` with its outputs.
"""

import json
import os
import sys
import warnings
import zlib

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")

import torch
import transformers
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
NOT_INPUTS = ("adapted", "mask")


def load(path):
    config = transformers.AutoConfig.from_pretrained(path)
    build = getattr(transformers, config.architectures[0])
    return build.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


def run(model, io):
    inputs = {name: value for name, value in io.items() if name not in NOT_INPUTS}
    adapters = getattr(model, "peft_config", {})
    if any(config.peft_type == "POLY" for config in adapters.values()):
        # Poly asks for the task of every row; the cases have one task. PEFT's plain wrapper does not pass it on.
        model = model.base_model
        inputs["task_ids"] = torch.zeros(len(io["adapted"]), dtype=torch.int64)
    with torch.no_grad():
        out = model(**inputs)
    if hasattr(out, "logits_per_image"):
        # Rows of both towers, as the other side compares them: similarities would couple the batch.
        scale = getattr(model, "base_model", model)
        scale = next(p for n, p in model.named_parameters() if n.endswith("logit_scale")).exp()
        return torch.cat([out.text_embeds, out.image_embeds], -1) * scale
    return out.logits


def distance(found, expected, mask):
    if found.shape != expected.shape:
        return f"shapes differ: {list(found.shape)} and {list(expected.shape)}"
    difference = (found - expected).abs()
    if difference.dim() == 3:
        difference = difference * mask.unsqueeze(-1)
    return difference.max().item()


def opened(case, io):
    """PEFT reads ours."""
    base = load(case["model"])
    plain = run(base, io)
    model, heard = reload(base, case["adapter"])
    found = run(model, io)
    return {
        "off": distance(found, io["adapted"], io["mask"]),
        "moved": distance(found, plain, io["mask"]) if found.shape == plain.shape else 1.0,
        "warnings": heard,
    }


def reload(base, folder):
    """The adapter, and what PEFT says of its keys."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(base, folder).eval()
    return model, [str(w.message) for w in caught if "key" in str(w.message).lower()]


def made(case, io):
    """PEFT makes its own."""
    config = PeftConfig.from_pretrained(case["adapter"])
    config.inference_mode = False
    torch.manual_seed(0)
    model = get_peft_model(load(case["model"]), config).eval()
    generator = torch.Generator().manual_seed(zlib.crc32(case["theirs"].rsplit("/", 1)[-1].encode()))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    # What depends on the weights and is kept, such as the table that a network makes, is made anew.
    model.save_pretrained(case["theirs"])
    again, heard = reload(load(case["model"]), case["theirs"])
    save_file({"adapted": run(again, io).contiguous()}, case["theirs"] + "/out.safetensors")
    return heard


def main():
    torch.set_num_threads(1)
    found = []
    for case in json.load(open(sys.argv[1])):
        io = load_file(case["io"])
        try:
            result = opened(case, io)
            # Some it says of its own files too.
            result["usual_warnings"] = made(case, io)
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        found.append(result)
    print(json.dumps(found))


main()
