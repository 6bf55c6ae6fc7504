"""The lines of an answer that say something, without what models put around them: labels, prefaces, bullets, quotes."""

import re
from dataclasses import dataclass

_ADJECTIVES = (
    r"short|brief|concise|simple|possible|suggested|proposed|final|best|edit(?:ing|ed)?|modif(?:ied|ying|ication)|"
    r"image|"
    r"picture|search|retrieval|query|relative|new|revised|updated|generated|corresponding|following|required|resulting|"
    r"difference|transformation|change|clear|minimal|shortest|appropriate|suitable|natural|language|answer|output|task"
)
_NOUN = (
    rf"(?!(?:change|edit)\s+(?:text|answer|output|result|image|picture)\b)"
    rf"(?:(?:the|an?|my|your|this|one)\s+)?(?:(?:{_ADJECTIVES})\s+){{0,4}}"
    r"(?:instructions?|quer(?:y|ies)|(?:query|modification|output)\s+text|modification|answer|response|output|result|"
    r"solution|prompt|command|request|edit|change|text|assistant|ai|bot|conclusion|difference|action|suggestion|task)"
)
_PURPOSE = (
    r"(?:\s+(?:for|to|that|which|from|of|based on|describing|between|you)\b[^:.!?\n\"“]{0,80}?"
    r"\b(?:source|target|reference|images?|pictures?|captions?|sentences?|differences?|change|edit|task|you|use|"
    r"transform\w*|retrieve|retrieving|retrieval|this|it)\b[^:.!?\n\"“]{0,40}?)?"
)
_VERB = r"(?:is|are|would be|could be|might be|can be|should be|will be|reads)(?:\s+(?:as follows|simply|just|likely))?"
_LABEL = re.compile(
    rf"^[\W_]*(?:(?:so|thus|therefore|hence|then|and),?\s+)?"
    rf"(?:(?:here(?:'s| is| are)|below is|this is|i(?: would|'d)? (?:suggest|propose|recommend)|use|try|"
    rf"you (?:can|could|should|may|might) (?:use|say|ask|try))\s+)?"
    rf"{_NOUN}(?:\s*\(\d{{1,2}}\)|\s+#?\d{{1,2}}(?=:\s))?{_PURPOSE}"
    rf"(?:\s*[\])>】]\s*:?|\s*[*_]{{0,3}}\s*(?:\s{_VERB})?\s*[*_]{{0,3}}(?:\s*(?::(?!\d)|=>|→|=)|\s+[-–—]\s)|"
    rf"\s+{_VERB},?\s+(?=[\"“'])|"
    rf"\s*(?:\*\*|__)\s)[*_]*\s*",
    re.IGNORECASE,
)
_HEADING = re.compile(rf"^[\W_]*{_NOUN}[\W_]*$", re.IGNORECASE)
_ALOUD_LABEL = re.compile(
    r"^[\W_]*(?:(?:my|the|short|brief|step[- ]by[- ]step|chain of)\s+)*(?:reason(?:ing|s)?|thoughts?(?: process)?|"
    r"thinking(?: process)?|analysis|explanations?|rationale|justification|notes?|observations?|comparison|"
    r"(?:key |main )?differences|(?:source|target|reference)(?: (?:sentence|caption|image|picture))?)"
    r"(?:[\W_]*$|[*_]*\s*:)",
    re.IGNORECASE,
)
_BULLET = re.compile(
    r"^(?:[-*•–—‣▪●○◦·+>|➜➤→👉✅]|#{1,6}|\(?\d{1,2}[.)]|\(?[a-e]\)|\[[ x\d]\]"
    r"|step \d{1,2}\s*[:.)-]|\d\ufe0f?\u20e3)\s+",
    re.IGNORECASE,
)
_OPENER = re.compile(
    r"^(?:(?:sure(?: thing)?|certainly|of course|okay|ok|absolutely|definitely|gladly|understood|got it|no problem|"
    r"great(?: question)?|alright|happy to help|i'd be happy to help|yes)\s*(?:[!,.]+|[:–—-](?=\s))\s*"
    r"|here(?:'s| is) (?:the|an?|your|one)\b[^.:!?\"]{0,60}[.!]\s+"
    r"|(?:here you (?:go|are)|here it is)\s*[-:!.,–—]+\s*"
    r"|(?:based on|given|considering|to (?:find|get|go|reach|retrieve|turn|transform|change|move|convert)\b|from)\b"
    r"[^,:.]{0,100}\b(?:source|target|reference|captions?|sentences?|descriptions?|information|differences?)\b"
    r"[^,:.]{0,60},\s*)(?=\S)",
    re.IGNORECASE,
)
_CHATTER = re.compile(
    r"^(?:(?:i|we)\b.*\bhelp|(?:i'd|i would|i'll) be|happy to|glad to|thanks?|hello|hi there|let me (?:help|know))\b",
    re.IGNORECASE,
)
_PREFACE = re.compile(
    r"\b(?:following|these|below|instructions?|quer(?:y|ies)|answer|changes|modifications?|edits?|steps|here|sure|"
    r"certainly|course|prompt|response|output|result|json|suggest\w*|options?)\b",
    re.IGNORECASE,
)
_SIDE_REMARK = r"(?:explanation|note|reason(?:ing)?|rationale|justification|clarification|confidence|word count|p\.?s)"
_REMARK = re.compile(
    rf"(?:^|(?<=[.!?\"”'’)\]])\s+|\s+[-–—]+\s*|\s*[(\[]\s*)[*_]*{_SIDE_REMARK}[*_]*\s*:.*$"
    rf"|\s*[(\[*_]+\s*(?:{_SIDE_REMARK}\b[^()\[\]]*|(?:total:? )?\d+ words?)[)\]*_.]+\s*$"
    r"|(?<=[.!?\"”])\s+(?:let me know|i hope|hope (?:this|that|it)|feel free|is there anything|please let|"
    r"if you (?:need|"
    r"want|have|would)|note that|would you like|(?:this|the|these) (?:instructions?|query|sentence|edits?|"
    r"changes?|captures|"
    r"indicates|highlights|describes|directs|reflects))\b.*$|\s*\[(?:end|done)\]\W*$",
    re.IGNORECASE,
)
_EMPHASIS = re.compile(r"(\*\*|__|(?<!\w)[*_`](?![*_`\s]))(?=\S)(.+?)(?<=\S)\1(?!\w)")
_PAIRS = {
    '"': '"',
    "'": "'",
    "`": "`",
    "“": "”",
    "‘": "’",
    "«": "»",
    "„": "“",
    "「": "」",
    "『": "』",
    "*": "*",
    "_": "_",
}
_STRAIGHT = str.maketrans("’‘ʼ`：", "'''':")
_DANGLING = re.compile(r"(?:\b(?:and|or|the|an?|with|in|on|of|to|by|into|from|for)|,)$", re.IGNORECASE)


@dataclass(frozen=True)
class Statement:
    """A line of an answer that says something.

    Args:
        text (`str`): Without label, bullet, quotes and remarks.
        is_labelled (`bool`): Whether "Instruction:" or the like stands before it.
        is_last (`bool`): Whether nothing comes after it.
    """

    text: str
    is_labelled: bool
    is_last: bool


def statements(text: str) -> list[Statement]:
    """The lines that say something; thoughts under a heading are left out."""
    found: list[Statement] = []
    lines = _joined([line.strip() for line in text.splitlines()])
    is_labelled = is_skipping = False
    for number, line in enumerate(lines):
        plain_line = straightened(line)
        is_last = not any(lines[number + 1 :])
        if _ALOUD_LABEL.match(plain_line):
            is_skipping, is_labelled = not re.search(r":\W*\w", line), False
            continue
        statement, has_label = _peeled(line)
        is_labelled |= has_label or _HEADING.match(plain_line) is not None
        is_skipping &= bool(line) and not is_labelled
        if not re.search(r"\w", statement) or is_skipping or _HEADING.match(plain_line):
            continue
        if not is_last and (statement.endswith(":") or _CHATTER.match(straightened(statement))):
            continue
        found.append(Statement(statement, is_labelled, is_last))
        is_labelled = False
    return found


def _joined(lines: list[str]) -> list[str]:
    """Join a line with the next one where it cannot end there: "... that says:", "... the dog and"."""
    found: list[str] = []
    for line in lines:
        last = found[-1] if found else ""
        is_open = _DANGLING.search(last) or (
            last.endswith(":") and not _PREFACE.search(last) and not _HEADING.match(last)
        )
        if (
            line
            and last
            and is_open
            and not _BULLET.match(line)
            and not _ALOUD_LABEL.match(last)
            and not _LABEL.match(last)
        ):
            found[-1] = f"{last} {line}"
        else:
            found.append(line)
    return found


def _peeled(line: str) -> tuple[str, bool]:
    """A line without bullets, labels, quotes, emphasis and remarks; and whether it had a label."""
    has_label = False
    for _ in range(8):
        before = line
        line = _BULLET.sub("", line.strip(" \t|")).strip()
        straight = straightened(line)
        if label := _LABEL.match(straight):
            has_label, line = True, line[label.end() :]
        elif opener := _OPENER.match(straight):
            line = line[opener.end() :]
        line = _unquoted(_EMPHASIS.sub(r"\2", _REMARK.sub("", line)))
        if line == before:
            break
    return " ".join(line.split()), has_label


def _unquoted(text: str) -> str:
    """A text without the quotation marks around it; those within it stay: `"A" becomes "B"`, `it says "hello"`."""
    text = text.strip().strip("*_`") if text.count("**") != 2 else text.strip()
    whole = re.fullmatch(r"([\"'`“‘«„「『])(.*?)([\"'`”’»“」』])([.!,]?)", text, re.DOTALL)
    if whole and _PAIRS.get(whole[1]) == whole[3]:
        inner = whole[2]
        first = min((at for mark in {whole[1], whole[3]} if (at := inner.find(mark)) >= 0), default=-1)
        is_apostrophe = (
            first > 0 and whole[3] in "'’" and inner[first - 1].isalnum() and inner[first + 1 : first + 2].isalnum()
        )
        if first < 0 or is_apostrophe or inner[first - 1 : first].isspace():
            return inner + (whole[4] if inner[-1:].isalnum() else "")
    quotes = [mark for mark in text if mark in '"“”«»']
    if len(quotes) == 1 and (text[0] == quotes[0] or (text[-1] == quotes[0] and not text[-2:-1].isdigit())):
        return text.strip(quotes[0])  # the other one was lost
    return text


def straightened(text: str) -> str:
    """A text of the same length with straight apostrophes and colons."""
    return text.translate(_STRAIGHT)
