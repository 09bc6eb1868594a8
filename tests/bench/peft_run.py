"""The baseline: one LoRA adapter trained by PEFT on PyTorch, by one process or, under torchrun, by several that average gradients.

Rows are taken in the file's order and padded to the longest of a process's batch. AdamW with 1e-3, gradients clipped at norm 1,
adapters on every linear map of every block. Rank 0 ends with one line of JSON: loss and real tokens of every step, the unix time at
which each ended, the most GPU memory, and versions.

usage: peft_run.py MODEL DATA --batch 4 --steps 20 [--rank 16] [--dtype float32] [--device cpu] [--threads 2] [--seed 0]
       peft_run.py MODEL DATA --steps 0 --save-init FOLDER      only writes the adapter as it is before the first step
       peft_run.py --floor [--device cpu] [--threads 2]         GFLOP/s of a matrix product, instead of a training
"""
import argparse
import json
import os
import time
import warnings

import torch

warnings.filterwarnings("ignore")


def arguments():
    words = argparse.ArgumentParser()
    words.add_argument("model", nargs="?")
    words.add_argument("data", nargs="?")
    words.add_argument("--batch", type=int, default=4, help="rows of each process")
    words.add_argument("--steps", type=int, default=20)
    words.add_argument("--rank", type=int, default=16)
    words.add_argument("--dtype", default="float32")
    words.add_argument("--device", default="cpu")
    words.add_argument("--threads", type=int, default=0)
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--save-init")
    words.add_argument("--floor", action="store_true")
    return words.parse_args()


def floor(device):
    """Matrix products of a size that fills the machine: the best of several, by dtype."""
    side = 8192 if device.type == "cuda" else 2048
    found = {}
    for name in ("float32", "bfloat16"):
        left, right = (torch.randn(side, side, device=device).to(getattr(torch, name)) for _ in range(2))
        best = float("inf")
        for _ in range(12):
            begun = time.perf_counter()
            left @ right
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - begun)
        found[name] = 2 * side**3 / best / 1e9
    return {"gflops": found, "torch": torch.__version__}


def adapted(words, device):
    """The model with its adapter, and whether it classifies rows."""
    import transformers
    from peft import LoraConfig, get_peft_model

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    config = transformers.AutoConfig.from_pretrained(words.model)
    classifies = "SequenceClassification" in config.architectures[0]
    if classifies:
        kind, task = transformers.AutoModelForSequenceClassification, "SEQ_CLS"
        targets = ["query", "key", "value", "dense"]
    else:
        kind, task = transformers.AutoModelForCausalLM, "CAUSAL_LM"
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = kind.from_pretrained(words.model, dtype=getattr(torch, words.dtype)).to(device)
    lora = LoraConfig(task_type=task, r=words.rank, lora_alpha=2 * words.rank, target_modules=targets)
    return get_peft_model(model, lora).train(), classifies


class Batches:
    """Global step by global step, this process's rows of it."""

    def __init__(self, path, size, rank, world, classifies, device):
        with open(path) as file:
            self.rows = [json.loads(line) for line in file]
        self.size, self.rank, self.world = size, rank, world
        self.classifies, self.device = classifies, device

    def __call__(self, step):
        first = (step * self.world + self.rank) * self.size
        rows = [self.rows[(first + k) % len(self.rows)] for k in range(self.size)]
        longest = max(len(row["input_ids"]) for row in rows)
        ids = torch.zeros(self.size, longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for k, row in enumerate(rows):
            ids[k, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
            mask[k, : len(row["input_ids"])] = 1
        if self.classifies:
            labels = torch.tensor([row["label"] for row in rows])
        else:
            labels = ids.masked_fill(mask == 0, -100)
        tensors = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return {name: tensor.to(self.device) for name, tensor in tensors.items()}, int(mask.sum())


def train(words, device):
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    torch.manual_seed(words.seed)
    if world > 1:
        torch.distributed.init_process_group("gloo" if device.type == "cpu" else "nccl")
    model, classifies = adapted(words, device)
    if words.save_init:
        model.save_pretrained(words.save_init)
    batches = Batches(words.data, words.batch, rank, world, classifies, device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    net = torch.nn.parallel.DistributedDataParallel(model) if world > 1 else model
    losses, tokens, ends = [], [], []
    for step in range(words.steps):
        inputs, count = batches(step)
        loss = net(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if device.type == "cuda":
            torch.cuda.synchronize()
        tokens.append(count)
        ends.append(time.time())
    if world > 1:
        # Only now: a run in earnest does not wait for what is only told.
        told = torch.tensor([losses, tokens], dtype=torch.float64)
        torch.distributed.all_reduce(told)
        losses, tokens = (told[0] / world).tolist(), [int(count) for count in told[1]]
        torch.distributed.destroy_process_group()
    return rank, {"losses": losses, "tokens": tokens, "ends": ends}


def main():
    words = arguments()
    if words.threads:
        torch.set_num_threads(words.threads)
    device = torch.device(words.device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if words.floor:
        print(json.dumps(floor(device)))
        return
    rank, told = train(words, device)
    if rank == 0:
        import peft
        import transformers

        gpu = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
        versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
        print(json.dumps(told | {"gpu_bytes": gpu, "versions": versions}))


main()
