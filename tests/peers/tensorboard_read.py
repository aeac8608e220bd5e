#!/usr/bin/env python3
"""A run folder read with TensorBoard's own EventAccumulator: every scalar of metrics.jsonl is there, once, with its step and time.

usage: $(tests/peers/environment tensorboard) tests/peers/tensorboard_read.py RUN
"""
import json, os, struct, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator, SCALARS

EVALUATION = ["loss", "perplexity", "exact_match"]
TAGS = {"step": ("train", ["loss", "grad_norm", "learning_rate", "tokens_per_second"]), "before": ("eval", EVALUATION), "eval": ("eval", EVALUATION)}

run = sys.argv[1]
want = {}
with open(os.path.join(run, "metrics.jsonl")) as file:
    for line in map(json.loads, file):
        group, keys = TAGS.get(line["event"], ("", []))
        for key in keys:
            if line.get(key) is not None:
                single = struct.unpack("f", struct.pack("f", line[key]))[0]
                want.setdefault(f"{group}/{key}", []).append((line["step"], float(line["time"]), single))

events = EventAccumulator(run, size_guidance={SCALARS: 0})
events.Reload()
found = {tag: [(e.step, e.wall_time, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
if found != want:
    sys.exit(f"{run}: TensorBoard reads {found}\nmetrics.jsonl has {want}")
print(f"ok: {', '.join(f'{len(v)} {k}' for k, v in found.items())}")
