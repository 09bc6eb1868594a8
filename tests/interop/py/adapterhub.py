"""AdapterHub's `adapters` makes adapter folders, and opens those of Pleach.

Usage: adapterhub.py CASES.json
CASES is a list of objects: `model` (folder), `adapter` (folder), `io` (safetensors file), `name`, and
- to make one: `config` (a preset's name and options), `seed`: the adapter with drawn weights is saved to `adapter`; `io`
  gets input_ids, attention_mask, `base` and `adapted` outputs. `fuse`/`stack`/`average`: makes one adapter of each
  `children` entry (name to config) and composes them.
- to open one: `open` true: `adapter` is loaded; `adapted` of `io` is compared with its outputs.
Prints one JSON list of what was found; the caller judges it.
"""

import json
import sys
import warnings

warnings.filterwarnings("ignore")

import adapters
import adapters.composition as compose
import torch
import transformers
from adapters import AdapterConfig, BnConfig, ConfigUnion
from safetensors.torch import load_file, save_file


def base_model(folder):
    config = transformers.AutoConfig.from_pretrained(folder, attn_implementation="eager")
    model = getattr(transformers, config.architectures[0])(config)
    state = load_file(f"{folder}/model.safetensors")
    missing, unexpected = model.load_state_dict(state, strict=False)
    tied = {"lm_head.weight", "lm_head.bias"} | {name for name in missing if "position_ids" in name}
    assert not set(missing) - tied and not unexpected, (missing, unexpected)
    model.tie_weights()
    return model.eval()


def run(model, io):
    with torch.no_grad():
        return model(**{name: io[name] for name in INPUTS if name in io}).logits.contiguous()


INPUTS = ("input_ids", "attention_mask", "decoder_input_ids", "pixel_values")


def invert_before_head(model):
    """As the language model heads of AutoAdapterModel and hooked models do; other classes leave it to their users."""
    head = model.get_output_embeddings()
    native = any(kind.__module__.startswith("adapters.models") for kind in type(model.base_model).__mro__)
    if head is not None and native and hasattr(model.base_model, "invertible_adapters"):
        back = model.base_model.invertible_adapters_forward
        head.register_forward_pre_hook(lambda module, args: (back(args[0], rev=True),) + args[1:])


def draw(model, words, seed):
    """Weights that no part can be left out of unnoticed."""
    torch.manual_seed(seed)
    for name, leaf in sorted(model.named_parameters()):
        if any(word in name for word in words):
            leaf.data += torch.randn_like(leaf) * 0.1


def configuration(config):
    config = dict(config)
    return AdapterConfig.load(config.pop("preset"), **config)


def make(case):
    model = base_model(case["model"])
    io = {name: tensor for name, tensor in load_file(case["io"]).items() if name in INPUTS}
    io["base"] = run(model, io)
    adapters.init(model)
    if "children" in case:
        names = list(case["children"])
        for name, config in case["children"].items():
            model.add_adapter(name, config=configuration(config))
        setup = {
            "stack": lambda: compose.Stack(*names),
            "fuse": lambda: compose.Fuse(*names),
            "average": lambda: compose.Average(*names, weights=case["weights"], normalize_weights=False),
        }[case["composition"]]()
        if case["composition"] == "fuse":
            model.add_adapter_fusion(names, config=case["fusion"])
        words = [f".{name}." for name in names] + ["adapter_fusion_layer", "shared_parameters"]
        draw(model, words, case["seed"])
        for name in names:
            model.save_adapter(f"{case['adapter']}/{name}", name, with_head=False, use_safetensors=True)
        state = model.state_dict()
        fusion = {name: value.contiguous() for name, value in state.items() if "adapter_fusion_layer" in name}
        if fusion:
            save_file(fusion, f"{case['adapter']}/fusion.safetensors")
        model.set_active_adapters(setup)
    else:
        name = case["name"]
        model.add_adapter(name, config=configuration(case["config"]))
        draw(model, [f".{name}.", "classifier"], case["seed"])
        model.save_adapter(case["adapter"], name, use_safetensors=True)
        model.set_active_adapters(name)
    invert_before_head(model)
    io["adapted"] = run(model.eval(), io)
    save_file(io, case["io"])
    return {"moved": (io["adapted"] - io["base"]).abs().max().item()}


def open_one(case):
    model = base_model(case["model"])
    io = load_file(case["io"])
    base = run(model, io)
    adapters.init(model)
    info = {}
    name = model.load_adapter(case["adapter"], use_safetensors=True, set_active=True, loading_info=info)
    invert_before_head(model)
    adapted = run(model.eval(), io)
    real = io["attention_mask"].unsqueeze(-1) if adapted.dim() == 3 and "attention_mask" in io else 1
    return {
        "name": name,
        "off": ((adapted - io["adapted"]) * real).abs().max().item(),
        "moved": (adapted - base).abs().max().item(),
        "missing": sorted(info.get("missing_keys", [])),
        "unexpected": sorted(info.get("unexpected_keys", [])),
    }


def main():
    torch.set_num_threads(1)
    with open(sys.argv[1]) as file:
        cases = json.load(file)
    found = []
    for case in cases:
        try:
            found.append(open_one(case) if case.get("open") else make(case))
        except Exception as error:
            raise RuntimeError(f"case {case}") from error
    print(json.dumps(found))


main()
