"""Names and secrets: what is a Hub id, a local folder or a credential, and how a path is shown to others.

This file travels with the model files as remote code, so it imports nothing but the standard library.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)

# Matched in snake case. A tokenizer's `pad_token` and a table's `sort_key` are not secrets: a token or key counts
# only together with the name of a service or a purpose.
_SECRET_KEY = re.compile(
    r"((.*_)?(api_?keys?|secrets?|passwords?|passwd|passphrase|credentials?|authorization)"
    r"|(.*_)?(access|account|admin|app|application|secret|private|ssh|signing|encryption)_key"
    r"|(.*_)?(anthropic|aws|azure|cohere|comet|deepseek|gcp|gemini|github|gitlab|google|groq|hf|hub|huggingface|mistral"
    r"|neptune|openai|openrouter|replicate|slack|together|wandb)_(key|token|pat)"
    r"|((.*_)?(auth|access|api|bearer|private|refresh|session)_?)?token)"
)
# Each alternative is a form that only a credential has; all must begin where a word does.
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9+])(?:"
    r"(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}\b|ABSK[\w+/]{60,}|LTAI[A-Za-z0-9]{16,}|AIza[\w-]{35}|GOCSPX-[\w-]{20,}"
    r"|ya29\.[\w-]{30,}|1//0[\w-]{30,}|(?:hf|api_org)_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{20,}"
    # Words joined by hyphens are a slug; a key has one long run of characters.
    r"|sk-(?:[A-Za-z0-9]+[_-])*[A-Za-z0-9]{16,}|sk-(?:ant|proj|svcacct|admin|or)-[\w-]{20,}"
    r"|gl(?:pat|dt|rt|ptt|ft|soat|agent|cbt|imt|oas)-[\w.-]{16,}|xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-\d-[A-Za-z0-9-]{20,}"
    r"|(?:npm|gsk|r8|fw|pcsk|rubygems|ntn|figd|tfp|lin_api|lin_oauth|wandb_v\d|sbp|sq[pua]|dckr_(?:pat|oat)|bkua|CCIPAT"
    r"|sntryu|glsa|glc|whsec|[sr]k_(?:live|test)|shp(?:at|ca|pa|ss)|do[opr]_v1|pscale_(?:tkn|pw|oauth)|lsv2_[ps][tk]"
    r"|nrjs|sgp)_(?=[\w-]*\d)[\w-]{20,}|(?:secret|jina|napi)_[A-Za-z0-9]{30,}"
    r"|(?:xai|pplx|nvapi|HRKU|NRAK|NRII|pul|CFPAT|PMAK|tskey-\w+|xkeysib|sq0[a-z]{3}|pypi|AT[AC]TT|tvly|dsk)-?(?=[\w-]*\d)"
    r"[\w=-]{20,}|(?:EAACEdEose0cBA|EAAA|EAA)(?=\w*\d)[\w-]{40,}|ATBB[A-Za-z0-9]{20,}|(?:AKCp|cmVmdGtu)[A-Za-z0-9]{30,}|dapi[0-9a-f]{32}"
    r"|(?:hvs|hvb|dp\.\w{2,5}|dt0\w\d\d|sl)\.(?=[\w.-]*\d)[\w.-]{24,}|SG\.[\w-]{16,}\.[\w-]{16,}|[A-Za-z0-9]{14}\.atlasv1\.[\w-]{50,}"
    r"|pat[A-Za-z0-9]{14}\.[0-9a-f]{40,}|v1\.0-[0-9a-f]{24}-[0-9a-f]{100,}|fm[12]_[\w+/=]{60,}|ops_eyJ[\w+/=]{60,}|A{19,}[A-Za-z0-9%]{30,}"
    r"|SK[0-9a-f]{32}|sk_[0-9a-f]{40,}|ES_[0-9a-f]{32}|AQ\.[\w-]{40,}|LS0tLS1CRUdJTi[\w+/=]{60,}"
    r"|key-[0-9a-z]{32}\b|[0-9a-f]{36}NRAL|[0-9a-f]{32}-us\d\d?\b|cio[A-Za-z0-9]{32}\b|(?:bot)?\d{8,10}:AA[\w-]{32,}|[A-Za-z\d]{3}\dQ~[\w.~-]{31,}"
    r"|access_token\$\w+\$\w{10,}\$\w{20,}|sntrys_[\w+/=]{40,}|AGE-SECRET-KEY-1\w{20,}|[MNO][\w-]{23,}\.[\w-]{6}\.[\w-]{27,}"
    r"|(?:sk\.)?eyJ[\w-]{10,}\.[\w-]{10,}(?:\.[\w-]*)?)"
)
_RANDOM = r"(?=[^\s\"'<>{}()$]*\d)(?=[^\s\"'<>{}()$]*[A-Za-z])"
_SECRET_VALUES = {
    "a credential": _TOKEN,
    "a private key": re.compile(r"-----BEGIN ([A-Z ]*PRIVATE KEY( BLOCK)?|OpenVPN Static key)|PuTTY-User-Key-File-\d"),
    "a URL with a password": re.compile(r"\w:/{1,2}[^/\s:@\"'<>{}]*:[^/\s:@\"'<>{}$*]+@[\w\[]"),
    "a signed or secret URL": re.compile(
        r"hooks\.slack\.com/\w+/\w{8,}|discord(app)?\.com/api/webhooks/\d{8,}|\.webhook\.office\.com/webhookb2/\w{8}"
        r"|hooks\.zapier\.com/hooks/catch/\d|[?&](sig|X-Amz-Signature|X-Goog-Signature)=[\w%+/]{20,}"
    ),
    "an Authorization header": re.compile(
        rf"(?i:authorization)[\"']?\s*[:=]\s*[\"']?(?i:Basic|Bearer|Token|SSWS)\s+{_RANDOM}[\w+/=.~-]{{12,}}"
    ),
    "a value of a secret setting": re.compile(
        # An environment's names, whatever the service, and names that say what they are.
        r"(?:(?<![A-Za-z0-9])[A-Z][A-Z0-9_]*_(?:KEY|TOKEN|PAT|SECRET|PASSWORD|PASS|PWD|CREDENTIALS?)"
        r"|(?i:(?<![A-Za-z])(?:\w*[_-])?(?:api_?-?key|secret(?:[_-]?access)?(?:[_-]?key)?|password|passwd|auth_?token"
        r"|access[_-]?(?:token|key)|(?:account|shared_?access)_?key)))"
        rf"[\"']?\s*[:=]\s*[\"']?{_RANDOM}[^\s\"'<>{{}}()$]{{8,}}"
    ),
    "a value of a secret setting of any name": re.compile(
        r"(?i:\b\w*(?:token|secret|(?:app|admin|private|license)[_-]?key))[\"']?\s*[:=]\s*[\"']?(?=(?:[\w-]*\d){3})"
        r"(?=[\w-]*[A-Za-z])[\w-]{20,}(?=[\"'\s,;]|$)|[A-Z_]*(?:PASSWORD|PASSWD|PWD)=(?!YOUR)[^\s\"'<>{}()$.]{6,}"
    ),
    "an option with a secret": re.compile(
        rf"--(?:\w+-)?(?:password|token|api-key|secret|key)[= ][\"']?{_RANDOM}[^\s\"'<>{{}}()$]{{12,}}"
    ),
    "a login of Docker": re.compile(
        r"\bauth\b[\"']?\s*[:=]\s*[\"']?(?=[A-Za-z+/]*\d)[A-Za-z0-9+/]{16,}={0,2}(?![\w.(])"
    ),
    "a login of netrc": re.compile(r"\blogin\s+\S+\s+password\s+\S+"),
    "a login of Kaggle": re.compile(r"\busername\W{1,6}\w+\W{1,6}key\W{1,6}[0-9a-f]{32}\b"),
}
EXPORT_MANIFEST = "export.json"
"""The file that says which ONNX graphs a folder holds. transformers' exporters write it."""


def is_hub_id(name: Any) -> bool:
    """Tell whether a name reads as a Hub id, "OWNER/NAME", and is no file or folder here."""
    return isinstance(name, str) and _HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def shown(text: str) -> str:
    """Escape what a terminal or a reader could misread: control characters, bidirectional marks, half surrogates."""
    harmless = "\u200c\u200d\xa0\u3000"  # joiners of scripts and emoji, wide spaces
    return "".join(one if one.isprintable() or one in harmless else repr(one)[1:-1] for one in text)


def resolve_model(name: str, what: str = "model") -> str:
    """Check that a name can be a model, before anything is loaded: a saved folder, or a Hub id.

    Args:
        name (`str`): Folder or Hub id.
        what (`str`): What the caller wants, for the message: "model", "encoder", "captioner".

    Returns:
        `str`: The same name.

    Raises:
        ValueError: If there is no such folder and the name is no Hub id, or the folder holds no saved model.
    """
    folder = Path(name)
    if folder.is_dir():
        if not any((folder / file).is_file() for file in ("config.json", "modules.json")):
            raise ValueError(f"The folder {name} holds no saved {what}: there is no config.json in it.")
        return name
    if not is_hub_id(name):
        raise ValueError(
            f"There is no {what} at {name!r}. Give the folder it was saved in, or its Hub id (OWNER/NAME)."
        )
    return name


@contextlib.contextmanager
def naming_model(name: str) -> Iterator[None]:
    """Name the model in an OSError of the libraries that load it; they name only the host that did not answer."""
    try:
        yield
    except OSError as error:
        raise OSError(f"The model {name} cannot be loaded: {error}") from error


def public_path(text: str) -> str:
    """Show a path or address without what is private: relative to the working folder, or its last part; no password."""
    if "://" in text:
        scheme, _, rest = text.partition("://")
        host, slash, place = rest.partition("/")
        return f"{scheme}://{host.rpartition('@')[2]}{slash}{place.partition('?')[0]}"
    path = Path(text)
    if not path.is_absolute():
        return path.name if text.startswith("~") else text
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name


def public_value(value: Any) -> Any:
    """Show a JSON value with its paths as `public_path` shows them, at any depth."""
    if isinstance(value, dict):
        return {key: public_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [public_value(item) for item in value]
    return public_path(value) if isinstance(value, str) else value


def is_secret_key(key: str) -> bool:
    """Tell whether a key, in any case, names a credential: "token", "hf_token", "clientSecret", "api-key"."""
    normalized = re.sub(r"[-.\s]", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key)).lower()
    return _SECRET_KEY.fullmatch(normalized) is not None


def secrets_in(text: str) -> list[tuple[str, int]]:
    """Find credentials in a text: the kind and position of each."""
    return [(what, found.start()) for what, pattern in _SECRET_VALUES.items() for found in pattern.finditer(text)]


def without_secrets(value: Any) -> Any:
    """Return a JSON value without the entries that hold a credential, at any depth."""
    if isinstance(value, list):
        return [without_secrets(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: without_secrets(item)
        for key, item in value.items()
        if not (isinstance(item, str) and (is_secret_key(str(key)) or secrets_in(item)))
    }
