"""Records parity cases: a tiny random model, an adapter of PEFT, and what twelve training steps make of it.

Usage: record_case.py OUT NAME...      one folder a case under OUT; a NAME may be a pattern such as 'llama-*'
       record_case.py --list           the names

Each folder holds what `pleach parity` reads: `model/`, `adapter/` (moved off the identity, so that a no-op cannot
pass), `encoder.safetensors` (where a network makes the table of a prompt in training), `io.safetensors` (`eval.*`,
`batch.I.*`), `train.json`, `trained/`, `case.json`. A case is one line of CASES.
"""

import fnmatch
import json
import os
import pathlib
import shutil
import sys
import warnings
import zlib

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")

import peft
import torch
import transformers
from peft import PeftModel, TaskType, get_peft_model
from safetensors.torch import save_file

from record_table import CASES, MODELS, SIZES

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

STEPS, ROWS, WIDTH, SHORT, TARGET = 12, 3, SIZES["width"], SIZES["short"], SIZES["target"]
OPTIMIZER = dict(
    name="AdamW",
    lr=5e-3,
    betas=[0.9, 0.999],
    eps=1e-8,
    weight_decay=0.01,
    clip_grad_norm=1.0,
    steps=STEPS,
    schedule="constant",
)
# The names under which a batch goes to the model; what else a batch holds is for the reader of the case.
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "pixel_values", "input_features", "input_values", "labels")


def build_model(name, overrides, generator):
    """The model with every weight drawn again: larger than a fresh one's, so that each part shows in the logits."""
    model_name, config_name, settings = MODELS[name]
    config = getattr(transformers, config_name)(**{**settings, **overrides})
    config._attn_implementation = "eager"
    model = getattr(transformers, model_name)(config)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() < 2:
                parameter.add_(0.08 * noise)
            else:
                parameter.copy_((0.3 if id(parameter) in embeddings else 0.12) * noise)
    return model.eval(), config


def draw_batch(task, config, generator, options):
    """One batch of the task; where it has tokens its second row is padded on the right."""
    text = getattr(config, "text_config", config)
    vision = getattr(config, "vision_config", config)

    def integers(low, high, *shape):
        return torch.randint(low, high, shape, generator=generator)

    batch = {}
    feed = options["feed"]
    if feed in ("tokens", "both"):
        pad = text.pad_token_id or 0
        ids, mask = integers(4, text.vocab_size - 1, ROWS, WIDTH), torch.ones(ROWS, WIDTH, dtype=torch.int64)
        if feed == "both":  # the text tower reads its vector at the end-of-sequence token
            ids[:, -1] = text.eos_token_id
            ids[1, SHORT - 1] = text.eos_token_id
        ids[1, SHORT:], mask[1, SHORT:] = pad, 0
        batch |= {"input_ids": ids, "attention_mask": mask}
    if feed in ("pixels", "both"):
        shape = (ROWS, vision.num_channels, vision.image_size, vision.image_size)
        batch["pixel_values"] = torch.randn(shape, generator=generator)
    if feed == "features":
        frames = 2 * config.max_source_positions
        batch["input_features"] = torch.randn(ROWS, config.num_mel_bins, frames, generator=generator)
    if feed == "spectrogram":
        batch["input_values"] = torch.randn(ROWS, config.max_length, config.num_mel_bins, generator=generator)

    if task == "CAUSAL_LM":
        batch["labels"] = ids.masked_fill(mask == 0, -100)
    elif task == "SEQ_2_SEQ_LM":
        batch["labels"] = integers(4, config.vocab_size, ROWS, TARGET)
        if options.get("ragged"):
            batch["labels"][2, TARGET - 3 :] = -100
    elif task == "TOKEN_CLS":
        batch["labels"] = integers(0, config.num_labels, ROWS, WIDTH).masked_fill(mask == 0, -100)
    elif task == "MASKED_LM":
        chosen = (torch.rand(ROWS, WIDTH, generator=generator) < 0.3) & (mask == 1)
        chosen[:, 1] = True
        batch["labels"] = ids.masked_fill(~chosen, -100)
        batch["input_ids"] = ids.masked_fill(chosen, 3)
    elif task != "CONTRASTIVE":
        batch["labels"] = integers(0, config.num_labels, ROWS)
    return batch


def run(model, task, batch):
    """(loss, logits)"""
    inputs = {name: batch[name] for name in INPUTS if name in batch}
    if task == "CONTRASTIVE":
        out = model(**inputs, return_loss=True)
        return out.loss, out.logits_per_image
    out = model(**inputs)
    return out.loss, out.logits


def save_adapter(model, folder):
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)


def save_encoder(model, folder):
    """The network that makes a prompt's table, which PEFT's own file leaves out: without it nobody can train on."""
    network = getattr(model, "prompt_encoder", {})
    tensors = dict(network["default"].state_dict()) if network else {}
    if len(tensors) > 1:
        tensors = {f"prompt_encoder.{name}": tensor.contiguous() for name, tensor in tensors.items()}
        save_file(tensors, folder / "encoder.safetensors")


def move_off_identity(model, generator):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def train(model, task, batches, allocates):
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable, lr=OPTIMIZER["lr"], betas=OPTIMIZER["betas"], eps=OPTIMIZER["eps"],
        weight_decay=OPTIMIZER["weight_decay"],
    )
    losses, first_norm = [], None
    for step, batch in enumerate(batches):
        loss, _ = run(model, task, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trainable, OPTIMIZER["clip_grad_norm"]).item()
        first_norm = norm if first_norm is None else first_norm
        optimizer.step()
        if allocates:
            model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        losses.append(loss.item())
    return {"losses": losses, "grad_norm_step0": first_norm}


def peft_config(case):
    arguments = dict(case["adapter"])
    kind = arguments.pop("kind")
    # PEFT's wrapper of sequence-to-sequence models asks for input_ids: audio goes to the bare model.
    if case["task"] in TaskType.__members__ and case["options"]["feed"] == "tokens":
        arguments["task_type"] = case["task"]
    return getattr(peft, kind)(**arguments)


def record(name, case, out):
    seed = zlib.crc32(name.encode())
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    task, options = case["task"], case["options"]
    base, config = build_model(case["model"], case["config"], generator)
    base.save_pretrained(folder / "model")
    evaluated, *batches = [draw_batch(task, config, generator, options) for _ in range(STEPS + 1)]
    with torch.no_grad():
        base_loss, base_logits = run(base, task, evaluated)

    model = get_peft_model(base, peft_config(case)).eval()
    model.peft_config["default"].base_model_name_or_path = "../model"
    move_off_identity(model, generator)
    save_adapter(model, folder / "adapter")
    save_encoder(model, folder)
    with torch.no_grad():
        loss, logits = run(model, task, evaluated)
    if base_logits.shape == logits.shape:
        assert (base_logits - logits).abs().max() > 1e-3, "the adapter changes nothing"
    check_reload(case, config, folder, evaluated, logits)

    io = {f"eval.{key}": value for key, value in evaluated.items()}
    io |= {"eval.base_logits": base_logits, "eval.adapted_logits": logits}
    io |= {f"batch.{step}.{key}": value for step, batch in enumerate(batches) for key, value in batch.items()}
    save_file({key: value.contiguous() for key, value in io.items()}, folder / "io.safetensors")
    allocates = options.get("allocates", False)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    recorded = train(model, task, batches, allocates)
    save_adapter(model, folder / "trained")
    (folder / "train.json").write_text(json.dumps(recorded, indent=1))
    described = {
        "case": name,
        "model_class": MODELS[case["model"]][0],
        "task": task,
        "peft_type": str(model.peft_config["default"].peft_type.value),
        "base_loss": base_loss.item(),
        "adapted_loss": loss.item(),
        "trainable_params": trainable,
        "optimizer": OPTIMIZER,
        "tolerance": {"logits_abs": 2e-4, "loss_rel": 2e-4},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__},
    }
    (folder / "case.json").write_text(json.dumps(described, indent=1))
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def check_reload(case, config, folder, evaluated, logits):
    """What PEFT reads back from the two folders gives the same outputs: the recorded files are the whole truth."""
    kind = getattr(transformers, MODELS[case["model"]][0])
    base = kind.from_pretrained(folder / "model", dtype=torch.float32, attn_implementation="eager").eval()
    trainable = case["adapter"]["kind"] == "AdaLoraConfig"  # which cannot run otherwise
    model = PeftModel.from_pretrained(base, folder / "adapter", is_trainable=trainable).eval()
    with torch.no_grad():
        _, again = run(model, case["task"], evaluated)
    off = (again - logits).abs().max().item()
    assert off < 1e-5, f"reloading moves the logits by {off}"


def main():
    if sys.argv[1:] == ["--list"]:
        print("\n".join(CASES))
        return 0
    if len(sys.argv) < 3:
        print(__doc__, file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    out = pathlib.Path(sys.argv[1])
    failed = 0
    for pattern in sys.argv[2:]:
        names = fnmatch.filter(CASES, pattern)
        if not names:
            print(f"{pattern}: no such case; --list shows them", file=sys.stderr)
            failed += 1
        for name in names:
            try:
                print(f"{name}: {record(name, CASES[name], out) // 1000} kB", flush=True)
            except Exception as error:  # the other cases are still wanted
                print(f"{name}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr, flush=True)
                failed += 1
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
