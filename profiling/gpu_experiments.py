"""What was predicted for one H200 before any GPU was at hand, and what a run of profiling/gpu measured."""


def rows_of(results, op, text=""):
    return [row for row in results["ops"] if row["op"] == op and text in row["shape"]]


def share(rows):
    if not rows:
        return "not measured"
    lowest, highest = (100 * pick(row["of_bound"] for row in rows) for pick in (min, max))
    return f"{lowest:.0f} to {highest:.0f} %" if len(rows) > 1 else f"{lowest:.0f} %"


def milliseconds(row):
    return f"{1e3 * row['seconds']:.3f} ms"


def conformance(results):
    doctor = results.get("doctor")
    if not doctor:
        return "not measured"
    instructions = [check for check in doctor.get("checks", []) if check.get("kind") == "instruction"]
    bad = [check["name"] for check in instructions if check["verdict"] == "disagrees"]
    return f"{len(instructions) - len(bad)} of {len(instructions)} instructions agree" + (": not " + ", ".join(bad) if bad else "")


def sustained(results):
    row = results["sustained"]
    if not row:
        return "not measured"
    best = row["flops_per_second"]
    return f"{best * row['seconds'] / row['mean_seconds'] / 1e12:.3g} TFLOP/s ({best / 1e12:.3g} in the best moment)"


def dequantise(results):
    rows = rows_of(results, "nf4_dequantize")
    return f"{1e6 * rows[0]['seconds']:.1f} us, {100 * rows[0]['of_bound']:.0f} % of a copy" if rows else "not measured"


def adapter(results):
    rows = rows_of(results, "linear_forward", "gate, up")
    if not rows:
        return "not measured"
    return f"{milliseconds(rows[0])} with dequantisation and adapter, the product alone {1e3 * rows[0]['seconds'] * rows[0]['of_bound']:.3f} ms"


def decoded(results):
    texts = []
    for of, op in (("y", "linear"), ("dx", "linear_dx")):
        for row in rows_of(results, op + "_decoded"):
            for other in rows_of(results, op + "_dequantized", row["shape"]):
                texts.append(f"{of} of {row['shape'].split(', T')[0]} {milliseconds(row)}, dequantised {milliseconds(other)}")
    return "; ".join(texts) or "not measured"


def attention(results):
    texts = []
    for op, theirs in (("attention_forward", "attention_forward_seconds"), ("attention_backward", "attention_backward_seconds")):
        for row in rows_of(results, op):
            peer = results["torch"].get(theirs)
            texts.append(f"{op[10:]} {milliseconds(row)}" + (f", cuDNN {1e3 * peer:.3f} ms" if peer else ""))
    return "; ".join(texts) or "not measured"


def layer(results):
    found = results["layer"]
    return f"{1e3 * found['seconds']:.2f} ms for {found['tokens']} tokens" if found else "not measured"


def steps(results):
    texts = [f"{s['model']} {s['batch']} x {s['length']}: {s['tokens_per_second']:.0f} tokens/s, {s['peak_bytes'] / 2**30:.1f} GiB (plan {s['plan_bytes'] / 2**30:.1f})"
             for s in results["steps"] if "tokens_per_second" in s]
    return "; ".join(texts) or "not measured"


def elementwise(results):
    names = ("rmsnorm_forward", "rmsnorm_backward", "rotary", "glu_forward", "glu_backward", "embedding_forward", "adamw")
    return "; ".join(f"{name} {share(rows_of(results, name))}" for name in names)


def float8(results):
    rows = rows_of(results, "linear_forward_fp8")
    return "; ".join(f"{row['shape'].split(', T')[0]} {row['flops_per_second'] / 1e12:.3g} TFLOP/s" for row in rows) or "not measured"


def matvec(results):
    texts = [f"M {M}: {share(rows_of(results, 'linear_few_rows', f', T {M},'))} of a copy" for M in (1, 8, 32)]
    generated = results["generation"]
    return "; ".join(texts) + (f"; {1e3 / generated['decode_tokens_per_second']:.2f} ms a token in all" if generated else "")


EXPERIMENTS = [
    ("every emulated instruction on the chip", "bit-equal but for the order of sums in matrix products", conformance),
    ("cuBLASLt sustained for 60 s", "640 to 720 TFLOP/s", sustained),
    ("NF4 dequantisation, 14336 x 4096", "34 us ideal, 41 accepted", dequantise),
    ("the adapter inside the base product, gate and up", "2.44 ms base for 8192 tokens, +0.04 against +0.22", adapter),
    ("attention, 8 x 2048, 32/8 heads of 128", "forward 1.0 ms (cuDNN 0.57), backward 3.1 (1.6)", attention),
    ("one layer forward and backward, 16k tokens", "24 to 26 ms", layer),
    ("whole steps", "8B: 15,000 to 18,000 tokens/s", steps),
    ("ops bound by bandwidth", "at least 85 % of a copy", elementwise),
    ("linears in fp8, with what stands beside the product", "1,300 to 1,450 TFLOP/s", float8),
    ("NF4 decoded in registers for wgmma, against dequantised for cuBLASLt", "8 to 11 % slower at 8k tokens and more, as fast at 2k", decoded),
    ("matvec of generation", "1.2 ms a token for the linears", matvec),
]


def experiments(results):
    """[{number, experiment, predicted, measured}], each a line for the reader."""
    return [{"number": i + 1, "experiment": what, "predicted": predicted, "measured": measure(results)}
            for i, (what, predicted, measure) in enumerate(EXPERIMENTS)]
