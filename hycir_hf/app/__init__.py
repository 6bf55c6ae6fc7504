"""The search page in a browser (extra `app`): what `hycir app` and the Space in `examples/space` show.

answering.py   GallerySearcher: references, methods and answers, without a page
session.py     one visitor's state, and what each action makes of it
rendering.py   the parts of the page that are HTML
page.py        build_app and launch_app: the parts wired together with Gradio
"""

from .answering import METHODS, Answer, GallerySearcher, Reference
from .page import build_app, launch_app, wait_for_interrupt

__all__ = ["METHODS", "Answer", "GallerySearcher", "Reference", "build_app", "launch_app", "wait_for_interrupt"]
