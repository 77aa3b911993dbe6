"""Pseudonyms: the same value and key give the same pseudonym, and without the key none can be traced back or guessed.

A patient's number in a header, in a folder's name and in a table becomes one and the same pseudonym, so that a data set
stays joined. The key lies outside the output: who deletes it makes the step final.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vlm.types import InputError

KEY_BYTES = 32
_WORDS = (
    "images image img imgs studies study reports report annotation annotations metadata labels findings files file "
    "data dataset train training val valid validation dev test testing dicom dcm nifti nii png jpg jpeg ct mr mri xray "
    "cxr us mg chest abdomen kidney brain head lung frontal lateral axial coronal sagittal pa ap normal cyst stone "
    "tumor tumour cases texts masks segmentations volumes series slices readme license"
)
SAFE = frozenset(_WORDS.split())
"""Words that a name may keep: layouts of data sets are told by them."""
_NUMBERED = re.compile(r"(im|img|image|slice|frame|view|i|ser|series|se|seq)?[-_ ]?\d{1,4}", re.I)
_SUFFIX = re.compile(r"(\.nii\.gz|\.[a-z0-9]{1,5})$", re.I)


@dataclass(frozen=True, slots=True)
class Keyring:
    """Makes pseudonyms.

    Args:
        key: secret bytes, at least 16.
    """

    key: bytes

    def pseudonym(self, value: str) -> str:
        """16 hexadecimal digits after an "x"; white space at the ends is nothing."""
        return "x" + hmac.new(self.key, value.strip().encode(), hashlib.sha256).hexdigest()[:16]

    def uid(self, value: str) -> str:
        """A DICOM UID under 2.25 that stands for another; the same everywhere."""
        digest = hmac.new(self.key, b"uid:" + value.strip().encode(), hashlib.sha256).digest()
        return f"2.25.{int.from_bytes(digest[:16], 'big')}"

    def days(self, patient: str) -> int:
        """Days by which a patient's dates move: one to ten years back."""
        digest = hmac.new(self.key, b"days:" + patient.strip().encode(), hashlib.sha256).digest()
        return -365 - int.from_bytes(digest[:4], "big") % 3288

    def fingerprint(self) -> str:
        """Tells two keys apart without telling either."""
        return hmac.new(self.key, b"fingerprint", hashlib.sha256).hexdigest()[:16]

    def path(self, relative: str) -> str:
        """A safe path: words that name no one and slice numbers stay, all else becomes its pseudonym."""
        parts = PurePosixPath(relative).parts
        return "/".join([*(self._name(p) for p in parts[:-1]), self.file(parts[-1])])

    def file(self, name: str) -> str:
        """A safe file name; the ending stays."""
        match = _SUFFIX.search(name)
        stem, suffix = (name[: match.start()], match[0].lower()) if match and match.start() else (name, "")
        return self._name(stem) + suffix

    def _name(self, name: str) -> str:
        words = re.split(r"[-_ .]+", name.lower())
        return name if _NUMBERED.fullmatch(name) or all(w in SAFE for w in words) else self.pseudonym(name)


def load_key(path: Path) -> Keyring:
    """Reads the key, or makes one that only its owner may read.

    Raises:
        InputError: too short to be a secret, or not readable.
    """
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as stream:
                stream.write(secrets.token_hex(KEY_BYTES).encode())
        key = path.read_bytes().strip()
    except OSError as error:
        raise InputError(f"{path}: the key cannot be read or made ({error.strerror or 'error'})") from None
    if len(key) < 16:
        raise InputError(f"{path}: a key has at least 16 bytes; delete the file and a new one is made")
    return Keyring(key)
