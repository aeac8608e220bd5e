#!/usr/bin/env python3
"""Eight steps of a full fine-tune by bitsandbytes' AdamW8bit, for tests/golden/test_model_adamw_8bit.c:

  $(tests/peers/environment peft) tests/peers/adamw_8bit_model.py tests/golden/data/models/llama3_gqa OUT.safetensors

fp32 on the CPU, from the model's bf16 weights, on the documents, two a step, and at the rates of its expected.safetensors; betas
0.9 and 0.999, epsilon 1e-8, decay 0.01, clipped to norm 1; tensors below 4,096 values have 32-bit moments, as is bitsandbytes' way.
bitsandbytes on a CPU looks codes up in a table of 65,536 steps over [-1, 1], which lifts all second moments below 1.5e-5 of their
block's largest to that. Under "exact." are the values of the same optimizer with codes found by the definition: the nearest of the
map, and for second moments above 0 not its 0. Under "wide." is torch's AdamW."""
import sys

import bitsandbytes.backends.cpu.ops as cpu
import torch
from bitsandbytes.optim import AdamW8bit
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

STEPS = 8
KEPT = ("model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.k_proj.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.weight")
golden = load_file(f"{sys.argv[1]}/expected.safetensors")


def mean_loss(model, documents):
    sums, targets = 0, 0
    for ids, labels in documents:
        logits = model(input_ids=ids[None]).logits[0]
        sums = sums + torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum")
        targets += int((labels[1:] != -100).sum())
    return sums / targets


def train(make):
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, attn_implementation="eager")
    parameters = list(model.parameters())
    optimizer = make(parameters)
    losses, norms = [], []
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = float(golden["train.learning_rates"][step])
        documents = [[golden[f"train.step{step}.doc{d}.{key}"].long() for key in ("input_ids", "labels")] for d in range(2)]
        optimizer.zero_grad()
        loss = mean_loss(model, documents)
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, 1.0).item())
        optimizer.step()
    return losses, norms, {name: p.detach().clone() for name, p in model.named_parameters()}, optimizer, model


def quantise_exactly(values, code, absmax_out, out, blocksize):
    padded = torch.nn.functional.pad(values.flatten(), (0, -values.numel() % blocksize)).view(-1, blocksize)
    absmax = padded.abs().amax(1)
    scaled = padded / absmax.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    codes = torch.cat([(row[:, None] - code).abs().argmin(1) for row in scaled])[:values.numel()]  # of equals the lower
    if code[0] == 0:
        codes = torch.where(values.flatten() > 0, codes.clamp(min=1), codes)
    out.copy_(codes.view(values.shape).to(torch.uint8))
    absmax_out.copy_(absmax)


options = dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
out = {}
for way in ("", "exact.", "wide."):
    if way == "exact.":
        cpu._quant_blockwise_fp32_direct = quantise_exactly
    losses, norms, final, optimizer, model = train(lambda p: torch.optim.AdamW(p, **options) if way == "wide." else AdamW8bit(p, **options))
    out[way + "losses"] = torch.tensor(losses, dtype=torch.float64)
    out[way + "grad_norms"] = torch.tensor(norms, dtype=torch.float64)
    if way == "exact.":
        for name, p in model.named_parameters():
            out[f"narrow.{name}"] = torch.tensor([optimizer.state[p]["state1"].dtype == torch.uint8], dtype=torch.uint8)
        for name in KEPT:
            out[f"final.{name}"] = final[name]
    print(way, losses, norms)
save_file(out, sys.argv[2])
