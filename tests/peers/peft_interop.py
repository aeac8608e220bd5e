"""Adapters and merged models, from Nibble to the real PEFT and transformers and back; all in fp32 over 16-bit weights:

  trained    `nibble train`'s adapter (plain, DoRA, with rows of the embedding) loads in PEFT, no key missing or left over,
             with the loss of `nibble score`
  foreign    adapters saved by PEFT (random values; plain, rslora, patterns, few targets, DoRA, rows of the embedding) have
             PEFT's loss in `nibble score`
  merged     `nibble export --to merged` loads in transformers with the weights of PEFT's own merge and its loss

  python=$(tests/peers/environment peft)
  $python tests/peers/peft_interop.py [--model SMOLLM2.gguf] [--out profiling/results/peft_interop.json]

Prints the figures and exits with 1 if one is beyond its tolerance. Without --model only the tiny models are used."""
import argparse
import copy
import json
import os
import random
import subprocess
import sys
import tempfile
import warnings

import peft
import torch
import transformers
from gguf_model import load
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DATA = os.path.join(ROOT, "tests/golden/data")
NIBBLE = os.environ.get("NIBBLE", os.path.join(ROOT, "build/release/nibble"))
# Both sides sum in fp32 in different orders: one rounding is 6e-8, a loss is the mean of some hundred values that each
# went through sums of up to 1,536 products. An adapter has to change the loss by far more than that, or its loss would
# tell nothing.
LOSS_TOLERANCE, LEAST_EFFECT = 1e-5, 1e-3
# Both sides add in fp32 and round once to bf16. A sum that lies next to the middle of two bf16 values can fall to either
# side, one step (at most 2^-7 of the value) apart; that is rare. Where weight and adapter cancel, what is left of fp32's
# rounding is small against the tensor, not against the value.
MERGED_STEP, MERGED_FLOOR, MERGED_SHARE = 2.0**-7, 1e-6, 1e-3
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FOREIGN = {
    "plain": dict(r=4, lora_alpha=8, target_modules="all-linear"),
    "rslora": dict(r=4, lora_alpha=8, target_modules="all-linear", use_rslora=True),
    "patterns": dict(r=4, lora_alpha=8, target_modules=TARGETS,
                     rank_pattern={"q_proj": 6, "layers.1.mlp.down_proj": 2}, alpha_pattern={"v_proj": 32}),
    "few_targets": dict(r=3, lora_alpha=5, target_modules=["q_proj", "v_proj"]),
    "one_layer": dict(r=4, lora_alpha=8, target_modules=TARGETS, layers_to_transform=[1]),
    "dora": dict(r=4, lora_alpha=8, target_modules="all-linear", use_dora=True),
    "dora_patterns": dict(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], rank_pattern={"q_proj": 6}, use_dora=True),
    "token_rows": dict(r=4, lora_alpha=8, target_modules="all-linear", trainable_token_indices=True),
    "dora_token_rows": dict(r=4, lora_alpha=8, target_modules="all-linear", use_dora=True, trainable_token_indices=True),
}
# By the names of a config's "lora" and of PEFT alike. Token rows: which ones is the case's.
TRAINED = {"": {}, "_dora": {"use_dora": True}, "_token_rows": {"trainable_token_indices": True},
           "_dora_token_rows": {"use_dora": True, "trainable_token_indices": True}}


def nibble(*arguments):
    done = subprocess.run([NIBBLE, *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"nibble {' '.join(arguments)}: exit {done.returncode}\n{done.stderr}")


def random_rows(vocabulary):
    order = random.Random(1)
    for _ in range(8):
        ids = [order.randrange(3, vocabulary) for _ in range(order.randrange(12, 48))]
        yield {"input_ids": ids, "labels": [-100] * 5 + ids[5:]}


def round_weights(model):
    """To bf16 and back. Weights alone: model.to(bfloat16) would round the rotary frequencies too."""
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    return model


def torch_loss(model, rows):
    nll, tokens = 0.0, 0
    with torch.no_grad():
        for row in rows:
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
            labels = torch.tensor(row["labels"][1:])
            nll += torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum").item()
            tokens += (labels != -100).sum().item()
    return nll / tokens


class Case:
    """A base model on both sides, and rows."""

    def __init__(self, name, path, folder, rows=None):
        self.name, self.path, self.folder = name, path, folder
        os.mkdir(folder)
        if path.endswith(".gguf"):
            self.model = round_weights(load(path, torch.float32))  # as Nibble does with a GGUF's values
        else:
            self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        self.model.eval()
        self.rows = rows or list(random_rows(self.model.config.vocab_size))
        self.data = os.path.join(folder, "rows.jsonl")
        with open(self.data, "w") as f:
            f.writelines(json.dumps(row) + "\n" for row in self.rows)
        self.base_loss = torch_loss(self.model, self.rows)

    def score(self, model=None, adapter=None):
        out = os.path.join(self.folder, "scores.jsonl")
        nibble("score", "--model", model or self.path, "--quant", "none", "--compute", "fp32", "--data", self.data, "--out",
               out, *(["--adapter", adapter] if adapter else []))
        with open(out) as f:
            lines = [json.loads(line) for line in f]
        return sum(line["nll"] for line in lines) / sum(line["tokens"] for line in lines)

    def compare(self, theirs, ours):
        difference, effect = abs(theirs - ours) / theirs, abs(theirs - self.base_loss) / self.base_loss
        return {"base_loss": self.base_loss, "torch_loss": theirs, "nibble_loss": ours, "relative_difference": difference,
                "within": difference <= LOSS_TOLERANCE and effect >= LEAST_EFFECT}

    def options(self, options):
        """With the tokens of the first row in place of True."""
        tokens = sorted(set(self.rows[0]["input_ids"]))
        return {key: tokens if key == "trainable_token_indices" else value for key, value in options.items()}

    def train(self, name, options):
        config = {"model": self.path, "output": os.path.join(self.folder, "run" + name),
                  "lora": {"r": 4, "lora_alpha": 8, **self.options(options)},
                  "data": {"train": [{"path": self.data}], "max_length": 1024},
                  "train": {"max_steps": 4, "batch_size": 4, "learning_rate": 1e-2, "compute": "fp32"}}
        path = os.path.join(self.folder, f"config{name}.json")
        with open(path, "w") as f:
            json.dump(config, f)
        nibble("train", path)
        return os.path.join(config["output"], "adapter")

    def trained(self, name, options):
        adapter = self.train(name, options)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            model = PeftModel.from_pretrained(self.model, adapter)
        loaded = model.load_adapter(adapter, "again")
        missing = [key for key in loaded.missing_keys if ("lora_" in key or "trainable_tokens" in key) and ".again" in key]
        result = self.compare(torch_loss(model.eval(), self.rows), self.score(adapter=adapter))
        result.update(missing_keys=missing, unexpected_keys=list(loaded.unexpected_keys))
        result["within"] = result["within"] and not missing and not loaded.unexpected_keys
        model.delete_adapter("again")
        self.model = model.unload()
        return adapter, result

    def foreign(self, options):
        torch.manual_seed(2)
        model = get_peft_model(self.model, LoraConfig(task_type="CAUSAL_LM", **self.options(options)))
        for name, parameter in model.named_parameters():
            if "lora_magnitude" in name:
                parameter.data *= 1 + 0.2 * torch.randn_like(parameter)
            elif "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.2)
            elif "trainable_tokens_delta" in name:
                parameter.data += 0.5 * parameter.data.std() * torch.randn_like(parameter)
        folder = tempfile.mkdtemp(dir=self.folder)
        model.save_pretrained(folder)
        result = self.compare(torch_loss(model.eval(), self.rows), self.score(adapter=folder))
        self.model = model.unload()
        return result

    def merged(self, name, adapter):
        folder = os.path.join(self.folder, "merged" + name)
        nibble("export", "--model", self.path, "--adapter", adapter, "--to", "merged", "--out", folder)
        ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        theirs = round_weights(PeftModel.from_pretrained(copy.deepcopy(self.model), adapter).merge_and_unload())
        far, different, count = 0, 0, 0
        for (name, a), (_, b) in zip(sorted(ours.state_dict().items()), sorted(theirs.state_dict().items()), strict=True):
            apart = (a - b).abs()
            allowed = MERGED_STEP * torch.maximum(a.abs(), b.abs()) + MERGED_FLOOR * b.abs().max()
            far += (apart > allowed).sum().item()
            different += (apart > 0).sum().item()
            count += a.numel()
        result = self.compare(torch_loss(ours, self.rows), self.score(model=folder))
        result.update(peft_merged_loss=torch_loss(theirs, self.rows), weights=count, weights_that_differ=different,
                      weights_more_than_one_step_apart=far)
        result["within"] = result["within"] and far == 0 and different <= MERGED_SHARE * count
        return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--out", help="also write the figures there")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    results = {"peft": peft.__version__, "transformers": transformers.__version__, "torch": torch.__version__,
               "nibble": subprocess.run([NIBBLE, "--version"], capture_output=True, text=True).stdout.strip(),
               "command": "tests/peers/peft_interop.py" + (" --model " + os.path.basename(arguments.model) if arguments.model else "")}
    with tempfile.TemporaryDirectory() as folder:
        cases = [Case(name, os.path.join(DATA, "models", name), os.path.join(folder, name))
                 for name in ("llama_tied", "llama3_gqa")]
        if arguments.model:
            with open(os.path.join(DATA, "real/smollm2_135m/train_tokens.jsonl")) as f:
                rows = [{key: row[key] for key in ("input_ids", "labels")} for row in map(json.loads, list(f)[:4])]
            cases.append(Case("smollm2_135m", os.path.abspath(arguments.model), os.path.join(folder, "smollm2"), rows))
        for case in cases:
            result = results[case.name] = {}
            for name, options in FOREIGN.items():
                result["foreign_" + name] = case.foreign(options)
            for name, options in TRAINED.items():
                adapter, result["trained" + name] = case.trained(name, options)
                result["merged" + name] = case.merged(name, adapter)
    text = json.dumps(results, indent=1)
    print(text)
    if arguments.out:
        with open(arguments.out, "w") as f:
            f.write(text + "\n")
    return 0 if all(r["within"] for case in cases for r in results[case.name].values()) else 1


sys.exit(main())
