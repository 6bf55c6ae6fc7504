"""What an LLM meant to say: its answer without reasoning, chat-template tokens, invisible characters and wrapping.

All of it is our reading of many models' habits. Text that only resembles them ("Add a [THINK] sign.") stays whole.
"""

import html
import json
import re
from typing import Any

MAX_CHARACTERS = 20_000  # of what is left after the reasoning; a query text has at most a few hundred
_TURN = "\x1e"  # stands for a token between two turns
_FENCES = ("```", "~~~")

# Unicode's Default_Ignorable_Code_Point, control characters, half surrogates; joiners within emoji and scripts stay.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff\U0001bca0-\U0001bca3\U000e0000-\U000e0fff]"
    "|(?<![^\x00-\u02ff])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\u02ff])|(?<![\u2000-\U0010ffff\\d#*])[\ufe00-\ufe0f]"
)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z]\w{1,30});", re.IGNORECASE)

_REASONING = (
    r"(?:\w{1,20}:)?[\w-]{0,20}?(?:think|thought|reason|reflect|monologue|scratch_?pad|analysis|rationale|deliberat|"
    r"planning|critique|explanation|chain[_-]of|思考|\bcot|\bdetails\b)[\w-]{0,30}?"
)
_TAG = re.compile(
    rf"\\?<\s*[|｜]?\s*(?:(?P<close>\\?/\s*|end(?:_of)?_)|(?:begin|start)(?:_of)?_)?{_REASONING}(?P<end>[_-]end)?(?:[_-]start)?"
    r"(?:\s[^<>\n]{0,200}?)?\s*(?P<empty>/)?\s*[|｜]?\\?>"
    r"|\[(?P<close2>/)?(?:think(?:ing)?|thoughts?)\]|\[(?P<close9>/)(?:reasoning|analysis|reflection)\]"
    r"|\[(?:reasoning|analysis|reflection)\](?=[^\[]{0,20000}\[/)|◁(?P<close3>/)?think▷|<\|channel>\w*|(?P<close4><channel\|>)"
    r"|<\|inner_prefix\|>|(?P<close5><\|inner_suffix\|>)"
    r"|^thinking(?:\.\.\.|…)[ \t]*$|^(?P<close6>(?:\.\.\.|…)\s?done thinking\.?)"
    r"|^[\W_]*here(?:'s| is) my (?:thought|thinking|reasoning)(?: process)?\W*$"
    r"|^[\W_]*(?P<close7>here(?:'s| is) my (?:final )?(?:response|answer|instruction)\W*$)"
    r"|^```(?:think|thought|reason)\w*[ \t]*\n(?:[^`]*(?P<close8>```))?",
    re.IGNORECASE | re.MULTILINE,
)
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w*)[^<]*(?:<\|constrain\|>[^<]*)?(?:<\|message\|>|$)")
_PLAIN_CHANNEL = re.compile(r"^\s*(?:assistant)?(?:analysis|commentary)(?=[A-Z\"'“])")  # its tokens were left out
_PLAIN_FINAL = re.compile(r"assistant\s{0,2}final")
_ONLY_FINAL = re.compile(r"^\s*(?:assistant)?final(?=[A-Z\"'“{])")
_ROLE = r"(?:\s*(?:assistant|model|chatbot|user|system)\b(?:[ \t]*\n)?)?"
_TOKEN = re.compile(
    rf"<[|｜](?:im_start|im_assistant|start_header_id|start|start_of_role|turn)[|｜]?>{_ROLE}|<start_of_turn>{_ROLE}"
    r"|<[|｜][^<>|｜\n]{1,40}[|｜]>|<\|\w{1,20}>|<\w{1,20}\|>|\[\|\w{1,20}\|\]|</?s>"
    r"|</?(?:bos|eos|eod|eot|eom|pad|unk|sep|cls|mask|stop|end|(?:begin|start|end)_?of_?\w+|extra_id_\d+|reserved_\w+|"
    r"unused\d+|special_\d+)>|<</?SYS>>|\[/?(?:INST|SYSTEM_PROMPT|ASSISTANT|EOS|BOS|PAD|UNK|CLS|SEP|MASK)\]",
    re.IGNORECASE,
)
_BOX = re.compile(r"<\|(?:begin_of_box|begin_of_solution|start_response)\|>", re.IGNORECASE)
_ANSWER_TAG = re.compile(
    r"<((?:[\w-]{1,20}[_-])?(?:answer|response|output|instructions?|final|solution|conclusion|result|query|edit|"
    r"modification|command)(?:[_-]\w{1,20})?)(?:\s[^<>]{0,200})?>(.*?)(?=</\1\s*>|<\1>|\Z)",
    re.IGNORECASE | re.DOTALL,
)
_BOXED = re.compile(r"\\(?:boxed|text(?:bf|it|rm)?)\s*\{((?:[^{}]|\{[^{}]{0,500}\}){0,500})\}")
_HTML_BLOCK = re.compile(r"</?(?:p|br|hr|div|li|ul|ol|h[1-6]|pre|blockquote|t[rdh]|table)(?:\s[^<>]*)?/?>", re.I)
_HTML_INLINE = re.compile(r"</?(?:b|i|u|em|strong|span|code|q|small|mark|font)(?:\s[^<>]*)?/?>", re.I)
_STRAY_TAG = re.compile(r"</[A-Za-z][\w-]{0,30}\s*>")
_FENCE = re.compile(r"^[ \t>]*(?:```+|~~~+)[ \t]*[^\s`]*[ \t]*$", re.MULTILINE)
_INLINE_LANGUAGE = re.compile(r"(?:```+|~~~+)[ \t]*(?:json\w*|plaintext|txt|markdown)(?=[\s{\[\"])")

_JSON_START = re.compile(r"^[ \t]*(?:json\w?[ \t]*:?[ \t]*)?(?=[{\[\"])", re.MULTILINE | re.IGNORECASE)
_PAIR = re.compile(
    r"[\"'“”]?([A-Za-z]\w{0,40})[\"'“”]?\s*[:=]\s*"
    r"(?:\"((?:[^\"\\]|\\.)*)\"|“([^”]*)”|'((?:[^'\\]|\\.|'(?=\w))*)')",
    re.DOTALL,
)
_ANSWER_KEYS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"instruction",
        r"quer(?:y|ies)|modif|edit|prompt|command",
        r"answer|response|output|result|final|(?:^|_)text|content|message|arguments|change",
    )
]
_SIDE_KEY = re.compile(
    r"reason|think|thought|expla|rationale|analysis|source|reference|target|caption|sentence|confiden|note|comment|"
    r"^id$|role|type|name|lang|title|status|model",
    re.IGNORECASE,
)


def read_answer(answer: str) -> str | None:
    """Take off an answer what is not its text.

    Args:
        answer (`str`): As it came.

    Returns:
        `str`: Its text, of one or more lines; None if the answer ended within its reasoning.
    """
    text = _visible(answer)
    said = _final_channel(text)
    if said is not None:
        said = _BOX.sub("<answer>", said)
        said = _TOKEN.sub(lambda found: found[0] if _TAG.fullmatch(found[0]) else _TURN, said)
        said = _without_reasoning(said)
    if said is None:
        return None
    turns = [turn for turn in said[:MAX_CHARACTERS].split(_TURN) if re.search(r"\w", turn)]
    return _unwrapped(turns[0]) if turns else ""


def without_reasoning(answer: str) -> str:
    """The answer without its reasoning, otherwise as it came; "" if it ended within it."""
    said = _final_channel(answer)
    return (None if said is None else _without_reasoning(said)) or ""


def is_known_token(token: str) -> bool:
    """Whether `read_answer` takes a chat template's token off by itself, perhaps with what it encloses."""
    return any(pattern.fullmatch(token) for pattern in (_TAG, _TOKEN))


def opened_reasoning(prompt: str) -> str:
    """The opening tag of reasoning that a prompt ends with, or ""."""
    tags = [tag for tag in _TAG.finditer(prompt, max(0, len(prompt) - 80)) if not prompt[tag.end() :].strip()]
    return tags[-1][0] if tags and tags[-1].lastgroup is None else ""


def _visible(text: str) -> str:
    """Decode entities and byte tokens, and leave out invisible characters."""
    text = _ENTITY.sub(lambda found: html.unescape(found[0]), text[: 50 * MAX_CHARACTERS])
    text = text.replace("<0x0A>", "\n").replace("\u2800", " ")
    text = _INVISIBLE.sub("", text.replace("\r\n", "\n"))
    return _TOKEN.sub(lambda found: found[0].replace("▁", "_"), text).replace("▁", " ")


def _final_channel(text: str) -> str | None:
    """The text of the channel `final`, where there are channels; None if it is not reached."""
    channels = list(_CHANNEL.finditer(text))
    if channels:
        final = [found for found in channels if found[1].lower() == "final"]
        return re.split(r"<\|(?:start|end|return|call)\|>", text[final[-1].end() :])[0] if final else None
    if _PLAIN_CHANNEL.match(text):
        _, *final_texts = _PLAIN_FINAL.split(text)
        return final_texts[-1] if final_texts else None
    return _ONLY_FINAL.sub("", text)


def _without_reasoning(text: str) -> str | None:
    """The text after the last closing tag; None if a tag is left open.

    Where nothing follows the last closing tag, it is the text between the blocks.
    """
    outside: list[str] = []
    start, opening = 0, None
    for tag in _TAG.finditer(text):
        if tag.lastgroup is not None:
            if opening is None:  # its opening tag stood in the prompt: all before it is reasoning
                outside.clear()
            start, opening = tag.end(), None
        elif (opening is None and _stands_alone(text, tag)) or _closes(text, tag.end()):
            outside.append("" if opening else text[start : tag.start()])
            opening = tag
    if opening is not None:
        return None
    return next((part for part in (text[start:], *reversed(outside)) if re.search(r"\w", part)), "")


def _stands_alone(text: str, tag: re.Match[str]) -> bool:
    """Whether a tag begins a line, or ends one that is not the last: else an instruction may speak of it."""
    before, (end, line_end, _) = text[: tag.start()].rpartition("\n")[2], text[tag.end() :].partition("\n")
    return not re.search(r"\w", before) or (bool(line_end) and not re.search(r"\w", end))


def _closes(text: str, position: int) -> bool:
    """Whether the next tag after a position is a closing one."""
    found = _TAG.search(text, position)
    return found is not None and found.lastgroup is not None


def _unwrapped(text: str) -> str:
    """Take off fences, JSON, and tags around the answer, in any order and depth."""
    for _ in range(6):
        before = text
        text = _INLINE_LANGUAGE.sub("\n", text)
        text = _FENCE.sub("", text)
        for fence in _FENCES:
            text = text.replace(fence, "\n")
        tagged = [found[2] for found in _ANSWER_TAG.finditer(text) if re.search(r"\w", found[2])]
        text = tagged[-1] if tagged else text
        boxed = [found[1] for found in _BOXED.finditer(text)]
        text = boxed[-1] if boxed else text
        text = _STRAY_TAG.sub("", _HTML_INLINE.sub("", _HTML_BLOCK.sub("\n", text)))
        text = _json_text(text).strip()
        if text == before:
            break
    return text


def _json_text(text: str) -> str:
    """The text in the JSON that an answer holds; the answer itself where it holds none, or something stands before."""
    for start in list(_JSON_START.finditer(text))[:20]:
        value = _decode(text, start.end())
        has_words_before = re.search(r"\w", text[: start.start()]) is not None
        if value is None or (isinstance(value, str) and has_words_before):
            continue
        found, is_named = _text_in(value)
        is_preface = text[: start.start()].rstrip().endswith((":", "!"))
        if found is not None and (is_named or is_preface or not has_words_before):
            return found
    return text


def _decode(text: str, start: int) -> Any:
    """The JSON value that starts there; of damaged or other notation the pairs of name and text; None if there is none.

    Damaged JSON is read only where the answer begins with it.
    """
    try:
        value, end = json.JSONDecoder(strict=False).raw_decode(text, start)
        if isinstance(value, str) and text[end:].strip(" \t\n.,"):  # "A" becomes "B"
            return None
        return value
    except (ValueError, RecursionError):
        pairs = _PAIR.findall(text[start:]) if text[start] == "{" else []
        return {name: double or curly or single for name, double, curly, single in pairs} or None


def _text_in(value: Any, depth: int = 0) -> tuple[str | None, bool]:
    """The one text in a JSON value, or of a list the first; and whether its key names it. None if it cannot be told."""
    if isinstance(value, str) or depth > 8:
        return (value if isinstance(value, str) else None), False
    if isinstance(value, list):
        found = [_text_in(one, depth + 1) for one in value]
        return next((one for one in found if one[0] is not None), ("" if not value else None, False))
    if not isinstance(value, dict):
        return ("" if value is None else None), False
    for pattern in _ANSWER_KEYS:
        for key in value:
            if pattern.search(key) and not _SIDE_KEY.search(key):
                text, _ = _text_in(value[key], depth + 1)
                if text is not None:
                    return text, True
    texts = [_text_in(one, depth + 1) for key, one in value.items() if not _SIDE_KEY.search(key)]
    texts = [one for one in texts if one[0]] or ([] if value else [("", False)])
    return texts[0] if len(texts) == 1 else (None, False)
