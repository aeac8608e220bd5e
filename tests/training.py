"""Small training runs for the scripts of e2e/ and fault/: the golden tiny model, rows of token ids, one command line."""
import hashlib, json, os, random, shutil, subprocess, sys, tempfile

DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden", "data")
MODEL = os.path.join(DATA, "models", "llama_tied")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny; bits are the same at any number
NIBBLE = os.environ.get("NIBBLE") or sys.exit("NIBBLE has to name the built program")


def folder():
    return tempfile.mkdtemp(prefix="nibble-test-")


def write_rows(path, count, seed, vocabulary=None):
    """Rows of random ids, with a common beginning so that prefixes are shared."""
    if vocabulary is None:
        vocabulary = json.load(open(os.path.join(MODEL, "config.json")))["vocab_size"]
    rng = random.Random(seed)
    start = [rng.randrange(3, vocabulary) for _ in range(6)]
    with open(path, "w") as file:
        for _ in range(count):
            ids = start + [rng.randrange(3, vocabulary) for _ in range(rng.randrange(4, 24))]
            file.write(json.dumps({"input_ids": ids, "labels": [-100] * 6 + ids[6:]}) + "\n")


def write_config(at, output="run", steps=7, **changes):
    """A config and its data in folder `at`; changes are "section__key"=value. Returns the config's path."""
    write_rows(os.path.join(at, "train.jsonl"), 20, 1)
    write_rows(os.path.join(at, "eval.jsonl"), 6, 2)
    config = {
        "model": MODEL, "output": output, "device": "cpu", "lora": {"r": 4, "lora_alpha": 8},
        "data": {"train": [{"path": "train.jsonl"}], "eval": [{"path": "eval.jsonl"}], "max_length": 64},
        "train": {"max_steps": steps, "batch_size": 6, "micro_batch_tokens": 48, "slots": 3, "learning_rate": 5e-3,
                  "warmup_steps": 2, "compute": "fp32", "seed": 3},
        "evaluate": {"every_steps": 3}, "checkpoint": {"every_steps": 2},
    }
    for key, value in changes.items():
        section, name = key.split("__")
        config[section][name] = value
    path = os.path.join(at, "config.json")
    with open(path, "w") as file:
        json.dump(config, file)
    return path


def train(config, *extra, env=None, timeout=120):
    """(exit code, standard error) of one run."""
    run = subprocess.run([NIBBLE, "train", config, *extra], capture_output=True, text=True, timeout=timeout,
                         env={**os.environ, **(env or {})})
    return run.returncode, run.stderr


def adapter_hash(run):
    with open(os.path.join(run, "adapter", "adapter_model.safetensors"), "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def events(run, kind):
    with open(os.path.join(run, "metrics.jsonl")) as file:
        return [line for line in map(json.loads, file) if line["event"] == kind]


def figures(run):
    """What must be equal, bit for bit, between two runs of the same config."""
    steps = [(e["step"], e["loss"], e["grad_norm"], e["learning_rate"]) for e in events(run, "step")]
    return steps, [(e["step"], e["loss"]) for e in events(run, "eval")], adapter_hash(run)


def check(condition, what):
    if not condition:
        sys.exit(f"{sys.argv[0]}: {what}")


def remove(*paths):
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
