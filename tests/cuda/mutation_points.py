"""The places of a kernel's source at which something that only concurrency or an awkward shape needs can be taken away:

  barriers      __syncthreads, __syncwarp, bar.sync and bar.arrive, mbarriers        deleted
  waits         cp.async and its relatives                                          deleted; weakened: one group more may be missing
  commits, fences                                                                   deleted
  bounds        every comparison < <= > >= in device code                           off by one; dropped: true for <, false for >

Loops lose no bound (they would not end) and are only off by one; a loop that is unrolled, and what is decided when the
kernel is compiled, is no bound. A point is named by its file, function, text and number among its likes there, never by
its line, so an unrelated change does not touch it.

Reading C++ by regular expressions: comments and literals are blanked first, and clang-format puts blanks around a
comparison and none inside the brackets of a template."""
import collections
import re

# Functions of cuda/intrinsics*.cuh, CUDA's own, and the kernels' waits (wait_filled, ...), whose whole call is the point.
STATEMENT = re.compile(r"(?:\b\w+\.)?\b(wait_\w+|__syncthreads|__syncwarp|named_barrier_sync|named_barrier_arrive|__threadfence(?:_block|_system)?|"
                       r"cp_async_commit|cluster_\w*(?:sync|arrive|wait)\w*|mbarrier_\w+|\w*fence\w*|tma_\w*(?:commit|wait)\w*|"
                       r"wgmma_(?:fence|commit|wait)\w*|cp_async_wait|\w*_wait_group)\s*(<[^;()]*>)?\(")
VOTE = re.compile(r"\b__syncthreads_(?:and|or|count)\(")
COMPARISON = re.compile(r"(?<=\s)(<=|>=|<|>)(?=\s)")
OFF_BY_ONE = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
WITHOUT = {"<": "true", "<=": "true", ">": "false", ">=": "false"}

# One way to change the source: `begin`..`end` of the text becomes `changed`.
Mutant = collections.namedtuple("Mutant", "key begin end changed")


def blanked(text):
    """The text with comments, literals and preprocessor lines as blanks, every character where it was."""
    blank = lambda match: re.sub(r"[^\n]", " ", match.group())
    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|^[ \t]*#(?:\\\n|[^\n])*', blank, text, flags=re.S | re.M)


def closing(code, at, pairs="(){}[]"):
    """Where the bracket that opens at `at` closes."""
    depth = 0
    for i in range(at, len(code)):
        if code[i] in pairs:
            depth += 1 if pairs.index(code[i]) % 2 == 0 else -1
            if depth == 0:
                return i
    raise ValueError("unbalanced")


def device_functions(code):
    """(name, begin, end) of every body behind __global__ or __device__."""
    found, end = [], 0
    for match in re.finditer(r"__(?:global|device)__\b", code):
        if match.start() < end:
            continue
        at = match.end()
        while code[at] not in ";{":  # over attributes, parameters and initialisers
            at = closing(code, at) + 1 if code[at] == "(" else at + 1
        head = re.sub(r"__launch_bounds__\([^()]*(?:\([^()]*\)[^()]*)*\)", "", code[match.end():at])
        name = re.search(r"(\w+)\s*\(", head)
        if code[at] == "{" and name:
            end = closing(code, at) + 1
            found.append((name.group(1), at, end))
    return found


def operand(code, at, step):
    """The end of the operand that starts beside a comparison, in direction `step`."""
    opens, closes = ("([{", ")]}") if step > 0 else (")]}", "([{")
    depth, i = 0, at
    while True:
        if depth == 0:
            if code[i] in closes or code[i] in ",;?:{}" and code[i:i + 2] != "::" and code[i - 1:i + 1] != "::":
                break
            if code[i] in "&|" and code[i + 1] == code[i] or code[i] in "&|" and code[i - 1] == code[i]:
                break
            if code[i] == "=" and code[i + 1] != "=" and code[i - 1] not in "=<>!":
                break
            if step < 0 and re.match(r"return\b", code[i - 5:i + 2]):
                i += 1
                break
        depth += (code[i] in opens) - (code[i] in closes)
        i += step
    return i if step > 0 else i + 1


def statement_of(code, at):
    """The text from the last statement's end to `at`."""
    return code[max(code.rfind(c, 0, at) for c in ";{}") + 1:at]


def loop_condition(code, at):
    """Whether `at` stands in the head of a for or while."""
    depth = 0
    for i in range(at, max(at - 600, 0), -1):
        depth += (code[i] == ")") - (code[i] == "(")
        if depth < 0:
            return re.search(r"\b(for|while)\s*$", code[:i]) is not None
        if code[i] in "{}" and depth == 0:
            return False
    return False


def unrolled(text, code, at):
    """Whether the loop whose head holds `at` is unrolled."""
    head = code.rfind("for (", 0, at)
    return "#pragma unroll" in text[text.rfind("\n", 0, max(text.rfind("\n", 0, head), 0)):head]


def calls(code, begin, end):
    """(operator, begin, end, changed) of barriers, waits, commits and fences."""
    for match in STATEMENT.finditer(code, begin, end):
        stop = closing(code, match.end() - 1) + 1
        if re.match(r"\s*;", code[stop:]) is None:
            continue
        yield "delete", match.start(), stop, "(void)0"
        if match.group(2):
            weaker = f"{match.group(1)}<({match.group(2)[1:-1]}) + 1>{code[match.end() - 1:stop]}"
            yield "weaken", match.start(), stop, weaker
    for match in VOTE.finditer(code, begin, end):
        stop = closing(code, match.end() - 1) + 1
        yield "delete", match.start(), stop, f"({code[match.end():stop - 1]})"


def bounds(text, code, begin, end):
    for match in COMPARISON.finditer(code, begin, end):
        sign = match.group(1)
        if re.search(r"\bconstexpr\b|\bstatic_assert\b|\btemplate\b", statement_of(code, match.start())):
            continue
        first = operand(code, match.start() - 1, -1)
        last = operand(code, match.end(), 1)
        first += len(code[first:]) - len(code[first:].lstrip())
        last = first + len(code[first:last].rstrip())
        left, right = code[first:match.start()].rstrip(), code[match.end():last].lstrip()
        loop = loop_condition(code, match.start())
        if loop and (right.isdigit() or unrolled(text, code, match.start())):
            continue
        if all(re.fullmatch(r"[A-Z][A-Z_]+|\d+|HD|N|M", word) for word in re.findall(r"\w+", left + " " + right)):
            continue  # known to the compiler
        yield "off by one", first, last, f"{left} {OFF_BY_ONE[sign]} {right}"
        if not loop:
            yield "drop", first, last, WITHOUT[sign]


def mutants(name, text):
    """All mutants of the file `name` whose content is `text`, in order."""
    code, found, seen = blanked(text), [], collections.Counter()
    for function, begin, end in device_functions(code):
        points = sorted([*calls(code, begin, end), *bounds(text, code, begin, end)], key=lambda p: (p[1], p[0]))
        for operator, first, last, changed in points:
            key = f"{function}: {operator} {' '.join(code[first:last].split())}"
            seen[key] += 1
            number = f" #{seen[key]}" if seen[key] > 1 else ""
            found.append(Mutant(f"{name}: {key}{number}", first, last, " ".join(changed.split())))
    return found


def instrumented(name, text, number_of):
    """The text in which mutant `key` takes effect while nib_mutant(number_of[key]) is true."""
    by_place = collections.defaultdict(list)
    for mutant in mutants(name, text):
        by_place[mutant.begin, mutant.end].append(mutant)
    inserted = []  # (position, what): inserted from the last on, so that one place may lie in another
    for (begin, end), here in by_place.items():
        choice = "".join(f"nib_mutant({number_of[m.key]}) ? {m.changed} : " for m in here)
        inserted += [(begin, -end, "(" + choice), (end, 1, ")")]
    for position, _, what in sorted(inserted, reverse=True):
        text = text[:position] + what + text[position:]
    return text
