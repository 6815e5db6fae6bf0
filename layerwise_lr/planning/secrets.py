"""What is not written down: values of keys that are named like secrets, credentials in addresses, and what the environment
gave, of which only the variable's name is told."""

import os
import re

MASK = "***"
SECRET = (
    r"(?:pass(?:word|wd|phrase)|secret|api_?key|access_?key|private_?key|auth|bearer|credentials?"
    r"|(?:hf|access|auth|api|refresh|id|github|gh|bot|session|security)_?token)"
)
KEY = re.compile(rf"(?:^|[._\-+]){SECRET}(?:$|[._\-])|(?:^|\.)token$", re.IGNORECASE)
LINE = re.compile(rf"({SECRET}|\btoken)([\"']?\s{{0,9}}[:=]\s{{0,9}})(\S.*)$", re.IGNORECASE | re.MULTILINE)
ADDRESS = re.compile(r"(\w{1,20}://)[^/\s@]{1,400}@")


LEAST = 4
"""Letters of an environment variable's value that is looked for in texts; numbers, and words as short, stand everywhere."""
_given: dict[str, str] = {}
"""What the environment gave to this process's configs, and what is told instead."""


def hide(value: str, told: str) -> None:
    """From now on `hidden` puts `told`, such as "${oc.env:DATA}", where `value` stands."""
    for form in (value.strip(), value.rstrip("/"), os.path.normpath(value or "."), repr(value)[1:-1]):
        if len(form) >= LEAST and not _plain_word(form) and form not in told:
            _given[form] = told


def _plain_word(text: str) -> bool:
    """A number, or a word that means the same to everybody."""
    try:
        float(text)
    except ValueError:
        return text.lower() in ("true", "false", "null", "none", "auto")
    return True


def hidden(text: str) -> str:
    """`text` without what the environment gave, wherever it stands as a word or a path of its own."""
    for value in sorted((value for value in _given if value in text), key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", lambda _, told=_given[value]: told, text)  # type: ignore[misc]
    return text


def is_secret(key: str) -> bool:
    """Whether a key is named as secrets are: password, hf_token, model.options.api_key."""
    return KEY.search(key) is not None


def masked(word: str) -> str:
    """key=value, --key=value or an address, without the secret in it."""
    key, equals, value = word.partition("=")
    if equals and is_secret(key.lstrip("-+~")):
        return f"{key}={MASK}"
    return masked_text(word) if equals and value[:1] in "{[" else ADDRESS.sub(rf"\1{MASK}@", word)


def masked_text(text: str) -> str:
    """Lines of key=value or key: value, each without the secret in it."""
    return ADDRESS.sub(rf"\1{MASK}@", LINE.sub(rf"\1\2{MASK}", text))
