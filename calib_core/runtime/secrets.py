"""One filter for all that is printed or recorded: what may be a credential becomes `***`.

The forms of services' keys are those of detect-secrets, a detector that is kept up to date by others. Its
patterns are looked up where a text holds something that may be one at all, since loading them takes a while.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import re
import sys
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"

_DETECTORS = (
    *("artifactory", "aws", "azure_storage_key", "discord", "github_token", "gitlab_token", "jwt"),
    *("mailchimp", "npm", "openai", "pypi_token", "sendgrid", "slack", "square_oauth", "stripe"),
    *("telegram_token", "twilio"),
)
"""Modules of detect-secrets whose patterns stand for a whole secret."""

_NAME = (
    r"(?:[\w.-]*(?:password|passwd|passphrase|secret|credential|cookie|webhook)[\w.-]*"
    r"|(?:[\w.-]*[_.-])?(?:token|auth|authorization|bearer|pwd|jwt|sig|signature|sas|dsn)(?:[_.-](?:value|header))?"
    r"|[\w.-]*(?:access|refresh|auth|api|hub|session|bearer|client|bot)token"
    r"|(?:[\w.-]*[_.-])?(?:session(?:[_.-]?id)?|conn(?:ection)?[_.-]?str(?:ing)?)"
    r"|[\w.-]*(?:api|access|private|auth|account|client|signing|encryption|service|shared|storage|ssh|license)"
    r"[_.-]?key(?:[_.-]?(?:id|data))?)"
)
_SECRET_NAME = re.compile(_NAME, re.IGNORECASE)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

_TEXTS = (
    (re.compile(r"-----BEGIN[^-]*PRIVATE KEY[^-]*-----.*?(?:-----END[^-]*-----|\Z)", re.DOTALL), HIDDEN),
    (re.compile(r"(?<=://)[^/?#\s'\"]{0,500}(?=@)"), HIDDEN),  # user and password in a URL
    (re.compile(r"(?<=://)[^/?#\s'\"@:]{1,100}:(?!\d{1,5}/)[^\s'\"@]{1,200}(?=@)"), HIDDEN),  # "/" in it
    (
        re.compile(r"(://[^\s?#'\"]{1,2000}\?)(?!project=[\w.:-]+(?![^\s#'\"]))[^\s#'\"]+"),
        rf"\1{HIDDEN}",
    ),  # its query: signatures, tokens
    (re.compile(r"\b((?:Set-)?Cookie:\s*)[^\r\n]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (
        re.compile(
            r"\b(Authorization['\"]?\s*[:=]\s*['\"]?(?:(?:Basic|Bearer|Digest|Token)\s+)?)[^\r\n'\"]+",
            re.IGNORECASE,
        ),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"\b((?:Bearer|Basic)\s+)(?=[^\s'\"]*[0-9A-Z=_-])[\w+/=.~-]{8,}"), rf"\1{HIDDEN}"),
    (
        re.compile(
            rf"(?<![\w.-])({_NAME}\\*['\"`]?\s*(?:=|%3D|:\s|is\s(?=\s*['\"]))\s*)"
            r"(?:\\+\"[^\"]+\"|\"[^\"]+\"|'[^']+'"
            r"|(?![\d.]+\b|(?:Basic|Bearer|Digest|Token)\s)[^\s,;&'\"{}\[\]\\]+)",
            re.IGNORECASE,
        ),
        rf"\1{HIDDEN}",
    ),
    (re.compile(rf"(--{_NAME}\s+)(?!-)[^\s'\"]+", re.IGNORECASE), rf"\1{HIDDEN}"),  # as it is typed
    (re.compile(rf"(<{_NAME}>)[^<>]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    # Forms that detect-secrets doesn't know, or knows older ones of, by their beginnings: Hugging Face,
    # GitHub, Google, GitLab, Slack, Docker, DigitalOcean, Vault, Databricks and services of models.
    (re.compile(r"\b(?:hf_|github_pat_|ya29\.|AIza)[\w.-]{12,}"), HIDDEN),
    (
        re.compile(
            r"\b(?:api_org_|gh[a-z]_|GOCSPX-|1//0|gl[a-z]{2,5}-|npm_|xapp-|dckr_[a-z]+_"
            r"|do[opr]_v1_|hv[sbr]\.|dapi|[rs]k_(?:live|test)_|gsk_|r8_|pplx-|nvapi-|xai-|lin_api_|shp[a-z]{2}_"
            r"|AGE-SECRET-KEY-|whsec_|glsa_)(?=[\w.+/=-]*[A-Z0-9])[\w.+/=-]{12,}"
        ),
        HIDDEN,
    ),
    (re.compile(r"\bsk-(?:[a-z0-9]+-)*[A-Za-z0-9_]{16,}[\w-]*"), HIDDEN),  # OpenAI, Anthropic
    (re.compile(r"\b(?:FwoG|IQoJ|FQoG)[\w+/=]{40,}"), HIDDEN),  # sessions of AWS
    (re.compile(r"(?<![\w~.-])[\w~.-]{3}\dQ~[\w~.-]{30,}"), HIDDEN),  # applications of Azure
    (re.compile(r"\b\w+\.atlasv1\.[\w-]{40,}"), HIDDEN),
    (re.compile(r"(/api/webhooks/\d+/)[\w-]{20,}"), rf"\1{HIDDEN}"),
)
_WORD = re.compile(r"[\w+/=.:-]{18,}")
"""What any of a service's keys is, with letters and digits in it."""


def without_secrets(text: str) -> str:
    """`text` with what may be a secret replaced by `***`.

    >>> without_secrets("no answer from https://me:pw@models.example/a?sig=1f3")
    'no answer from https://***@models.example/a?***'
    >>> without_secrets("retry with password=hunter2, pass_tokens=2048")
    'retry with password=***, pass_tokens=2048'
    """
    for pattern, instead in _TEXTS:
        text = pattern.sub(instead, text)
    if any(re.search(r"\d", word) and re.search("[A-Za-z]", word) for word in _WORD.findall(text)):
        for pattern in _service_patterns():
            text = pattern.sub(HIDDEN, text)
    return text


def shown(value: Any) -> Any:
    """A JSON value, or part of one, without what may be a secret: by its name, or by its form.

    A text that is JSON itself is looked through as such.

    >>> shown({"api_key": "abc", "n": 3, "url": "s3://b/m", "more": '{"private_key": "x"}'})
    {'api_key': '***', 'n': 3, 'url': 's3://b/m', 'more': '{"private_key": "***"}'}
    """
    if isinstance(value, Mapping):
        return {name: _named(str(name), part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [shown(part) for part in value]
    if not isinstance(value, str):
        return value
    if value[:1] in ("{", "["):
        with contextlib.suppress(ValueError, RecursionError):
            parsed = json.loads(value)
            found = shown(parsed)
            return value if found == parsed else json.dumps(found, ensure_ascii=False)
    return without_secrets(value)


def _named(name: str, value: Any) -> Any:
    """A named value: `***` where the name is a secret's, and it is more than a number (`pass_tokens`)."""
    if value and not isinstance(value, int | float) and is_secret_name(name):
        return HIDDEN
    return shown(value)


def is_secret_name(name: str) -> bool:
    """Whether what bears this name is not to be shown.

    >>> [is_secret_name(n) for n in ("HF_TOKEN", "accessKey", "auth", "private-key", "tokenizer", "author")]
    [True, True, True, True, False, False]
    """
    return bool(_SECRET_NAME.fullmatch(_CAMEL.sub("_", name)))


@functools.cache
def _service_patterns() -> tuple[re.Pattern[str], ...]:
    """The detector's patterns; none if it is missing, for a message is no reason for a run to fail."""
    found: list[re.Pattern[str]] = []
    try:
        for name in _DETECTORS:
            module = importlib.import_module(f"detect_secrets.plugins.{name}")
            for kind in vars(module).values():
                if isinstance(kind, type) and kind.__module__ == module.__name__ and "denylist" in vars(kind):
                    found += list(vars(kind)["denylist"])
    except ImportError as error:
        sys.stderr.write(f"{error}; install detect-secrets, or keys of services may be shown in messages\n")
    # Some patterns end within the secret: the rest of its word goes too.
    return tuple(re.compile(rf"(?:{one.pattern})(?:(?<=[\w+/=.-])[\w+/=.-]*)?", one.flags) for one in found)
