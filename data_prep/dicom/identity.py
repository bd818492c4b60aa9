"""Who is who without saying so: keyed ids, and the split that a patient belongs to.

Ids are HMAC-SHA256 under a secret key that stays with the hospital. The same key gives the same ids in every run, so
that new studies join old ones; without the key nobody can tell whether a known patient is in the dataset, which a plain
hash of a patient number (short, guessable) would let everybody do.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from deepcoro.errors import DataError

KEY_BYTES = 32
KEPT_KINDS = ("patient", "study", "video")
ID_LETTERS = 32  # 128 bits: no two of any number of studies that will ever exist collide


@dataclass(frozen=True)
class Key:
    """The secret, and what is made with it. Each kind of id has its own domain: equal raw values give unequal ids."""

    secret: bytes = field(repr=False)
    keep_ids: bool = False

    def id_of(self, kind: str, raw: str | bytes) -> str:
        """Keyed id, 32 hexadecimal letters. ``kind`` is patient, study, video or source.

        With ``keep_ids``, patients, studies and videos are called what they are called, for archives whose ids are a
        research project's own. An id that could not stand in a file's name is keyed all the same.
        """
        if self.keep_ids and kind in KEPT_KINDS and isinstance(raw, str) and re.fullmatch(r"[\w][\w.-]{0,63}", raw):
            return raw
        return self._digest(kind, raw).hex()[:ID_LETTERS]

    def split_of(self, patient_id: str, val_fraction: float, test_fraction: float) -> str:
        """The split of a patient, from the keyed id alone: it stays when other patients come or go.

        The test set is cut first, the validation set beside it, so that another ``val_fraction`` moves nobody
        into or out of test. Fractions are expectations over patients, each in [0, 1], together at most 1.
        """
        position = int.from_bytes(self._digest("split", patient_id)[:8], "big") / 2**64
        if position < test_fraction:
            return "test"
        return "val" if position < test_fraction + val_fraction else "train"

    @property
    def fingerprint(self) -> str:
        """Tells two ways to make ids apart without giving a key away."""
        return self._digest("key", b"kept" if self.keep_ids else b"").hex()[:12]

    def _digest(self, kind: str, raw: str | bytes) -> bytes:
        message = raw.encode() if isinstance(raw, str) else raw
        return hmac.new(self.secret, kind.encode() + b"\0" + message, hashlib.sha256).digest()


def load_or_create_key(path: Path, keep_ids: bool = False) -> Key:
    """Read the key file, or make one that only its owner may read.

    Raises:
        DataError: the file is there and is no key, or it cannot be read or made.
    """
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_hex(KEY_BYTES) + "\n")
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the key file cannot be read or made ({error}); name another with --key") from error
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        secret = b""
    if len(secret) < KEY_BYTES:
        raise DataError(
            f"{path}: this is no key file (a key is one line of at least {2 * KEY_BYTES} hexadecimal letters); "
            "name the right one with --key, or a path that does not exist yet to have one made"
        )
    return Key(secret, keep_ids)
