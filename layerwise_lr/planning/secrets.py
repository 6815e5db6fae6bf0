"""What looks like a secret is not written down: values of keys that are named like one, and credentials in addresses."""

import re

MASK = "***"
SECRET = (
    r"(?:pass(?:word|wd|phrase)|secret|api_?key|access_?key|private_?key|auth|bearer|credentials?"
    r"|(?:hf|access|auth|api|refresh|id|github|gh|bot|session|security)_?token)"
)
KEY = re.compile(rf"(?:^|[._\-+]){SECRET}(?:$|[._\-])|(?:^|\.)token$", re.IGNORECASE)
LINE = re.compile(rf"({SECRET}|\btoken)([\"']?\s{{0,9}}[:=]\s{{0,9}})(\S.*)$", re.IGNORECASE | re.MULTILINE)
ADDRESS = re.compile(r"(\w{1,20}://)[^/\s@]{1,400}@")


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
