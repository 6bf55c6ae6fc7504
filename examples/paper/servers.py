"""Reads what the test servers of CIRR and CIRCO answer, from files that hold the copied page or its JSON."""

import re
from collections.abc import Sequence
from pathlib import Path

SERVERS = {"cirr": "https://cirr.cecs.anu.edu.au", "circo": "https://circo.micc.unifi.it"}
METRICS = {
    "cirr": [*(f"R@{k}" for k in (1, 5, 10, 50)), *(f"R_subset@{k}" for k in (1, 2, 3))],
    "circo": [f"mAP@{k}" for k in (5, 10, 25, 50)],
}
"""Benchmark -> what its server's answer must hold."""

_NAMES = {
    "R_subset": r"(?:group|subset)[ _]?recall|recall[ _]?subset|r[ _]?s(?:ubset)?",
    "mAP": r"mean average precision|m?ap",
    "R": r"recall|r",
}
_TOKEN = re.compile(
    r"(?P<semantic>semantic[ _]*)?(?<![a-z])(?:"
    + "|".join(f"(?P<{name}>{pattern})" for name, pattern in _NAMES.items())
    + r")[ _]*(?:@|at)[ _]*(?:k[ _]*=[ _]*)?(?P<k>\d+)(?:\s*for aspect\s*['\"]?(?P<aspect>\w+)['\"]?)?"
    r"|(?<![\w.@])(?P<number>\d+(?:\.\d+)?)(?![\w.]*\w)",
    re.IGNORECASE,
)


def read_server_answer(paths: Sequence[Path], benchmark: str) -> dict[str, float]:
    """Read a server's answer.

    A name (`mAP@5`, `recall_at1`, `R_subset@2`, ...) is followed by its figure; or a row of names by a row of figures,
    as in a table. The servers' exact pages are not documented, so anything else in the file is passed over.

    Args:
        paths (`Sequence[Path]`): Text, HTML or JSON. CIRR answers its two files one at a time.
        benchmark (`str`): "cirr" or "circo".

    Returns:
        `dict[str, float]`: Metric -> figure in percent.

    Raises:
        ValueError: If a figure is missing, is not in [0, 100], or is given twice with different values.
    """
    shown, found = ", ".join(map(str, paths)), {}
    for path in paths:
        for metric, value in _read(path.read_text(encoding="utf-8")).items():
            if found.setdefault(metric, value) != value:
                raise ValueError(f"{shown} give {metric} twice: {found[metric]} and {value}. Keep one answer.")
    missing = [metric for metric in METRICS[benchmark] if metric not in found]
    if missing:
        raise ValueError(f"{shown} lack {', '.join(missing)}. Copy the whole answer of {SERVERS[benchmark]}.")
    wrong = [metric for metric, value in found.items() if not 0 <= value <= 100]
    if wrong:
        raise ValueError(f"{shown} give {wrong[0]} as {found[wrong[0]]}, which is no percentage. Correct the file.")
    is_fraction = all(value <= 1 for value in found.values())
    return {metric: value * 100 if is_fraction else value for metric, value in found.items()}


def _read(text: str) -> dict[str, float]:
    """Give each name the next figure that no name before it has taken."""
    waiting: list[str] = []
    found: dict[str, float] = {}
    for token in _TOKEN.finditer(re.sub(r"<[^>]*>", " ", text)):
        if token["number"] is None:
            name = next(name for name in _NAMES if token[name])
            aspect = token["aspect"] or ("of an aspect" if token["semantic"] else "")
            waiting.append(f"{name}@{token['k']} {aspect}".strip())
        elif waiting:
            found[waiting.pop(0)] = float(token["number"])
    return found
