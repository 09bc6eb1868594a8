"""Writes what both sides of a benchmark read: a model of random weights as a Hugging Face folder, and rows of token ids.

usage: inputs.py FOLDER NAME [--tiny]

NAME is w1, w2, w3, w5 or w6. FOLDER gets model/, data.jsonl (or data.0.jsonl and so on, one a job), and workload.json, which says
how many weights the linear maps have that every token goes through. --tiny keeps the structure and makes everything small, for a
rehearsal. The same call writes the same bytes.
"""
import argparse
import json
import pathlib

import numpy as np
import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

SEED = 7
#: The smallest id that is drawn: those below are special in many vocabularies.
FIRST_ID = 3

LLAMA_60M = dict(
    hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4,
    vocab_size=8192, max_position_embeddings=2048,
)
LLAMA_1B = dict(
    hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
    vocab_size=32000, max_position_embeddings=4096,
)
LLAMA_TINY = dict(
    hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=512, max_position_embeddings=512,
)
BERT_22M = dict(
    hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=12, vocab_size=30522, num_labels=4,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)
BERT_TINY = BERT_22M | dict(hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=512)

#: Model, files, rows of a file, tokens of a row (none: log-normal), dtype of the weights on disk; then the tiny form.
WORKLOADS = {
    "w1": ((LLAMA_60M, 1, 2048, 256, None), (LLAMA_TINY, 1, 64, 32, None)),
    "w2": ((LLAMA_60M, 8, 512, 256, None), (LLAMA_TINY, 8, 16, 32, None)),
    "w3": ((BERT_22M, 1, 4096, None, None), (BERT_TINY, 1, 128, None, None)),
    "w5": ((LLAMA_1B, 1, 2048, 2048, torch.bfloat16), (LLAMA_TINY, 1, 64, 64, torch.bfloat16)),
    "w6": ((LLAMA_1B, 16, 256, 512, torch.bfloat16), (LLAMA_TINY, 16, 16, 32, torch.bfloat16)),
}


def build(sizes):
    """The model, and the weights of the linear maps that tokens (not whole rows) go through."""
    if "num_labels" in sizes:
        model = BertForSequenceClassification(BertConfig(**sizes))
        per_row = ("pooler", "classifier")
    else:
        model = LlamaForCausalLM(LlamaConfig(**sizes))
        per_row = ()
    linear = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not any(part in name for part in per_row)
    )
    return model, linear


def write_rows(path, draw, lengths, vocabulary, classes):
    with open(path, "w") as file:
        for length in lengths:
            row = {"input_ids": draw.integers(FIRST_ID, vocabulary, int(length)).tolist()}
            if classes:
                row["label"] = int(draw.integers(0, classes))
            file.write(json.dumps(row) + "\n")


def main():
    words = argparse.ArgumentParser()
    words.add_argument("folder", type=pathlib.Path)
    words.add_argument("name", choices=WORKLOADS)
    words.add_argument("--tiny", action="store_true")
    words = words.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    sizes, files, count, length, dtype = WORKLOADS[words.name][words.tiny]
    draw = np.random.default_rng(SEED)
    torch.manual_seed(SEED)
    model, linear = build(sizes)
    words.folder.mkdir(parents=True, exist_ok=True)
    (model.to(dtype) if dtype else model).save_pretrained(words.folder / "model")
    for number in range(files):
        lengths = [length] * count if length else np.clip(draw.lognormal(4.2, 0.8, count), 8, 512)
        name = "data.jsonl" if files == 1 else f"data.{number}.jsonl"
        write_rows(words.folder / name, draw, lengths, sizes["vocab_size"], sizes.get("num_labels", 0))
    (words.folder / "workload.json").write_text(json.dumps({"linear_params": linear, "hidden": sizes["hidden_size"],
                                                            "layers": sizes["num_hidden_layers"]}))


main()
