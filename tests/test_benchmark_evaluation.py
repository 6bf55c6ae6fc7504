"""The speed comparison runs, and both ways find the same (it raises where they do not)."""

import runpy
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "examples" / "speed" / "benchmark_evaluation.py"


def test_both_ways_agree_and_ratios_are_printed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, "--size", "40", "300", "--repeats", "1"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 40 x 300")]
    assert len(rows) == 2 and all(row.count("x |") == 2 for row in rows)
