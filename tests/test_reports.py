"""Templates: what they are given is text, never markup; what they are not given is an error."""

import re
from pathlib import Path
from types import SimpleNamespace

import jinja2
import pytest
from PIL import Image
from test_cli import read_page

import hycir_hf
from hycir_hf.reports.pages import Histogram, PageTable, PageTriplet, render_table, render_triplets_page
from hycir_hf.reports.render import STYLE, image_uri, render

EVIL = "<b>\"x\" & 'y'</b> \udcff"


def triplets_page(triplet, histogram=None):
    recipe = {"source": "images", "generator": "llm", "settings": {"note": EVIL}}
    histogram = histogram or Histogram(EVIL, 0.5, [1, 0, 3], [-0.5, 0.0, 0.5, 1.0])
    samples = {"kept": [triplet], "dropped": []}
    return render_triplets_page(recipe, 0.25, PageTable(EVIL, [EVIL, "n"], [[EVIL, "3"]]), [histogram], samples)


def test_a_page_of_triplets_is_whole_and_escaped():
    image = Image.new("RGB", (20, 30), "teal")
    text = triplets_page(PageTriplet(image, EVIL, EVIL, None, EVIL, [EVIL]))
    assert len(read_page(text).images) == 1 and text.count('class="missing"') == 1
    assert "<b>" not in text and "&lt;b&gt;" in text and "\\udcff" in text and "25.0%" in text
    assert text.encode("utf-8")


def test_a_histogram_has_a_bar_for_each_bin_and_marks_what_is_kept():
    text = triplets_page(PageTriplet(None, "a", None, None, "b"))
    bars = [line for line in text.splitlines() if line.startswith("<rect")]
    assert ['class="in"' in bar for bar in bars] == [False, False, True]
    assert 'height="200.0"' in bars[2] and 'height="0.0"' in bars[1] and "0.50 to 1.00: 3" in bars[2]
    assert 'x1="533.3"' in text  # two thirds of 800
    assert "no query text" in text


def test_an_empty_histogram_is_drawn():
    text = triplets_page(PageTriplet(None, "a", "b", None, "c"), Histogram("similarity", 0.5, [0, 0], [0.0, 0.5, 1.0]))
    assert text.count('height="0.0"') == 2


def test_names_in_the_app_are_text():
    searcher = SimpleNamespace(ids=[EVIL], thumbnail=lambda row: None, has_images=False, describe=lambda: EVIL)
    reference = SimpleNamespace(name=EVIL, uri="data:image/png;base64,")
    answer = SimpleNamespace(reference=reference, query_text=EVIL, method=EVIL, k=3, ranking=((0, 1.25),))
    parts = [
        render("app/header.html", searcher=searcher),
        render("app/reference.html", reference=reference),
        render("app/message.html", message=EVIL, is_error=True),
        render("app/history.html", history=[answer], shown=answer),
        render("app/results.html", answer=answer, searcher=searcher),
        render("app/gallery.html", rows=[0], searcher=searcher),
    ]
    assert all("<b>x" not in part and "<b>&" not in part and "&lt;b&gt;" in part for part in parts)
    assert "width:100.0%" in parts[4] and "aria-current" in parts[3]


def test_a_missing_fact_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="title"):
        render("search_page.html", queries=[], tables=[], closing_tables=[], intro="")


def test_a_markdown_table():
    table = PageTable("Caption", ["", "R@1"], [["mapper", "1.0"], ["slerp", "2.0"]])
    assert render_table(table) == "Caption\n\n|  | R@1 |\n|---|---|\n| mapper | 1.0 |\n| slerp | 2.0 |"


def test_the_style_asks_no_other_host():
    assert "url(" not in STYLE and "@import" not in STYLE and "</" not in STYLE


@pytest.mark.parametrize(("size", "kind"), [((128, 20), "png"), ((129, 20), "jpeg"), ((2000, 10), "jpeg")])
def test_small_images_are_embedded_without_loss(size, kind):
    assert image_uri(Image.new("RGBA", size)).startswith(f"data:image/{kind};base64,")


def test_html_is_made_in_templates_alone():
    package = Path(hycir_hf.__file__).parent
    closing_tag = re.compile(r"</(?!think)[a-z]+[0-9]?>")
    found = [path for path in package.rglob("*.py") if closing_tag.search(path.read_text(encoding="utf-8"))]
    assert found == []
