"""Measures of the package: lines, function lengths, `raise` statements, imports inside functions, import circles.

    python examples/speed/measures.py              # a table, with the aim beside each figure
    python examples/speed/measures.py --list       # also names what lies above an aim

Everything is read from the syntax trees: nothing is imported.
"""

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "hycir_hf"
MAX_FILE_LINES = 420

# Every file that the image, its feature or the figure passes through, in order. Not counted: the model files, which
# both ways cross, the command line and `files.py`.
WAYS = {
    "unlabeled image -> loss": (
        "images/sources.py",  # opens the folder or dataset
        "images/encoding.py",  # decodes and encodes each image once
        "images/features.py",  # what is encoded, and how training reads it
        "images/store.py",  # keeps the features
        "training/setup.py",  # joins settings, features and terms
        "training/data/batches.py",  # draws a batch
        "training/objectives.py",  # says which prompts are asked, and against what
        "training/prompts.py",  # runs the text encoder on them
        "training/trainer.py",  # one step
        "losses.py",  # Eq. 1 to 3
    ),
    "benchmark split -> model card": (
        "evaluation/benchmarks/cirr.py",  # specification, folder, reader and protocol
        "evaluation/methods.py",  # encodes images and composes queries
        "evaluation/evaluate.py",  # encode -> compose -> rank -> score
        "retrieval/ranking.py",
        "evaluation/scoring.py",
        "evaluation/results.py",  # writes results.json
        "metrics/intervals.py",  # reads it: the one reader
        "reports/cards.py",
    ),
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def docstring_lines(tree: ast.Module) -> set[int]:
    """The lines of all docstrings, and of the strings that stand below constants."""
    return {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }


def code_lines(text: str, tree: ast.Module) -> set[int]:
    """The lines that are neither blank, nor comments, nor docstrings."""
    lines = {number for number, line in enumerate(text.splitlines(), 1) if line.strip() and line.strip()[0] != "#"}
    return lines - docstring_lines(tree)


def imported_modules(tree: ast.Module, module: str, modules: set[str], is_package: bool) -> Iterator[str]:
    """The package's own modules that a module imports at its top level, `TYPE_CHECKING` left out."""
    statements = list(tree.body)
    while statements:
        node = statements.pop()
        if isinstance(node, ast.Try):
            statements += node.body
        if not isinstance(node, ast.ImportFrom):
            continue
        anchor = module.split(".") if is_package else module.split(".")[:-1]
        anchor = anchor[: len(anchor) - node.level + 1] if node.level else []
        base = ".".join([*anchor, *([node.module] if node.module else [])])
        for alias in node.names:
            for name in (f"{base}.{alias.name}", base):
                if name in modules:
                    yield name
                    break


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        found, waiting = set(), list(graph[start])
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += graph[name]
        reach[start] = found
    groups = {
        frozenset(other for other in reach[name] if name in reach[other]) for name in graph if name in reach[name]
    }
    return sorted(sorted(group) for group in groups)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name what lies above an aim")
    args = parser.parse_args()

    paths = sorted(PACKAGE.rglob("*.py"))
    names = {path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in paths}
    names = {path: name.removesuffix(".__init__") for path, name in names.items()}
    lines, code, raises, raise_lines = {}, 0, 0, 0
    functions: list[tuple[int, str]] = []
    inner: list[str] = []
    graph: dict[str, set[str]] = {}
    for path in paths:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        where = path.relative_to(PACKAGE.parent).as_posix()
        lines[where] = len(text.splitlines())
        own = code_lines(text, tree)
        code += len(own)
        statements = [node for node in ast.walk(tree) if isinstance(node, ast.Raise)]
        raises += len(statements)
        raise_lines += sum((node.end_lineno or node.lineno) - node.lineno + 1 for node in statements)
        graph[names[path]] = set(
            imported_modules(tree, names[path], set(names.values()), path.name == "__init__.py")
        ) - {names[path]}
        for node in ast.walk(tree):
            if isinstance(node, Function):
                first, last = node.lineno, node.end_lineno or node.lineno
                functions.append((last - first + 1, f"{where}:{first} {node.name}"))
                inner += [
                    f"{where}:{one.lineno} in {node.name}"
                    for one in ast.walk(node)
                    if isinstance(one, ast.Import | ast.ImportFrom)
                ]
    inner = sorted(set(inner))
    lengths = sorted(length for length, _ in functions)
    large = {name: count for name, count in lines.items() if count > MAX_FILE_LINES}
    loops = circles(graph)

    rows = [
        ("lines of the package", f"{sum(lines.values()):,}", "14,500"),
        ("files", f"{len(paths)}", ""),
        ("lines of code (no blanks, comments, docstrings)", f"{code:,}", ""),
        ("functions", f"{len(lengths):,}", ""),
        ("lines of a function with its docstring, median", f"{lengths[len(lengths) // 2]}", "9"),
        ("lines of a function with its docstring, 90th percentile", f"{lengths[int(0.9 * len(lengths))]}", "28"),
        (f"files over {MAX_FILE_LINES} lines", f"{len(large)}", "0"),
        ("lines of raise statements / all lines", f"{100 * raise_lines / sum(lines.values()):.1f}%", "4%"),
        ("raise statements / lines of code", f"{100 * raises / code:.1f}%", ""),
        ("imports inside functions", f"{len(inner)}", "15"),
        ("import circles", f"{len(loops)}", "0"),
        *((f"files: {way}", f"{len(files)}", "7") for way, files in WAYS.items()),
    ]
    print("| measure | found | at most |\n|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    for way, files in WAYS.items():
        missing = [name for name in files if not (PACKAGE / name).exists()]
        print(f"\n{way}: {', '.join(files)}" + (f"\n  not there: {', '.join(missing)}" if missing else ""))
    if args.list:
        found = [f"{name}: {count} lines" for name, count in large.items()]
        found += [f"{length} lines: {name}" for length, name in sorted(functions, reverse=True)[:20]]
        found += [f"imports: {name}" for name in inner] + [f"circle: {', '.join(loop)}" for loop in loops]
        print("\n" + "\n".join(found))


if __name__ == "__main__":
    main()
