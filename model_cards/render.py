"""Render the cards of this folder anew: `python model_cards/render.py`. Each `NAME.json` holds a card's facts."""

import json
from pathlib import Path

from hycir_hf.model_card import BenchmarkResult, ModelCardFacts


def render(path: Path) -> str:
    """Render the card of one facts file."""
    facts = json.loads(path.read_text(encoding="utf-8"))
    facts["results"] = [BenchmarkResult(**result) for result in facts["results"]]
    return ModelCardFacts(**facts).render()


if __name__ == "__main__":
    for facts_path in sorted(Path(__file__).parent.glob("*.json")):
        facts_path.with_suffix(".md").write_text(render(facts_path), encoding="utf-8")
