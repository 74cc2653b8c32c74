"""The key ring: the keys that sign identities, on disk, and how they rotate.

A folder holds `keys.json`, a public index that is only ever replaced by rename, and `<kid>.pem` (PKCS#8, mode
0600) for each key. A key is published before it signs and for as long as something that it signed may live,
so that no verifier ever meets an unknown key of a planned rotation. `KeyRing` reads, any number of processes;
`create`, `rotate` and `retire` write, one at a time.

All times are unix seconds and arguments.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from logging import ERROR, WARNING
from pathlib import Path
from typing import Any

from .record import record
from .refusal import Refusal

INDEX = "keys.json"
LOCK = "keys.lock"
ALGORITHMS = ("ES256", "EdDSA")
KEEP = 3600 + 300
"""Default seconds for which a key stays published after it signed last: the longest identity, and some for
skewed clocks.
"""

_KID = re.compile(r"[A-Za-z0-9_-]{43}")
_CHECK_EVERY = 1.0
_INDEX_LIMIT = 256 * 1024


class KeysError(Exception):
    """The folder of keys cannot be read or written: what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that may sign now. ``key`` is a private key of `cryptography`."""

    kid: str
    alg: str
    key: Any

    def __repr__(self) -> str:
        return f"SigningKey({self.kid}, {self.alg})"


@dataclass(frozen=True, slots=True)
class Entry:
    """A key in the index. ``published_until`` None: until it is replaced."""

    kid: str
    alg: str
    created: int
    signs_from: int
    published_until: int | None = None

    def is_published(self, now: float) -> bool:
        """Whether verifiers may still see it."""
        return self.published_until is None or now < self.published_until

    def may_sign(self, now: float) -> bool:
        """Whether its time to sign has come, and it is still published."""
        return self.signs_from <= now and self.is_published(now)

    def as_json(self) -> dict[str, Any]:
        """Its object in the index."""
        return {
            "kid": self.kid,
            "alg": self.alg,
            "created": self.created,
            "signs_from": self.signs_from,
            "published_until": self.published_until,
        }


@dataclass(frozen=True, slots=True)
class _Key:
    private: Any
    jwk: dict[str, str]

    def __repr__(self) -> str:
        return f"_Key({self.jwk.get('kid')})"


@dataclass(frozen=True, slots=True)
class _Ring:
    stamp: tuple[int, int, int]
    entries: tuple[Entry, ...]
    keys: dict[str, _Key]
    problems: tuple[str, ...]


class KeyRing:
    """The keys of ``folder``, read anew when the index changes; looked at no more than once a second.

    Any number of threads may use one: what they share is replaced as a whole, and never by what was read
    before it; no lock is held while anything is read. An index that cannot be read keeps the last good ring
    and writes one line to the log.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._ring: _Ring | None = None
        self._lock = threading.Lock()  # around one comparison
        self._problems: tuple[str, ...] = ()
        self._next_look = float("-inf")

    def signing(self, now: float) -> SigningKey:
        """The key that signs at ``now``. Raises `Refusal` (`key_unavailable`)."""
        ring = self._current(now)
        entry = signer([entry for entry in ring.entries if entry.kid in ring.keys], now)
        if entry is None:
            raise Refusal(
                "key_unavailable",
                "no signing key may sign now; the administrator of Airflow can see why with `python -m "
                "airflow_envoy keys list`",
            )
        return SigningKey(entry.kid, entry.alg, ring.keys[entry.kid].private)

    def jwks(self, now: float) -> dict[str, Any]:
        """The public keys (RFC 7517) that verifiers should know at ``now``. Raises `Refusal`
        (`key_unavailable`).
        """
        ring = self._current(now)
        published = [entry for entry in ring.entries if entry.is_published(now) and entry.kid in ring.keys]
        return {"keys": [ring.keys[entry.kid].jwk for entry in published]}

    def entries(self, now: float) -> tuple[Entry, ...]:
        """What the index says, the oldest first. Raises `Refusal` (`key_unavailable`)."""
        return self._current(now).entries

    def _current(self, now: float) -> _Ring:
        look = self._clock()
        if look >= self._next_look:
            # Threads that come here at once may each read: harmless, and cheaper than a lock that all would
            # wait for. Once there is a ring, others go on with it while one looks.
            if self._ring is not None:
                self._next_look = look + _CHECK_EVERY
            self._look(now)
            self._next_look = look + _CHECK_EVERY
        ring = self._ring
        if ring is None:
            raise Refusal(
                "key_unavailable",
                "the signing keys cannot be read; the administrator of Airflow can see why with `python "
                "-m airflow_envoy doctor`",
            )
        return ring

    def _look(self, now: float) -> None:
        problems: tuple[str, ...]
        while True:
            old = self._ring
            try:
                # A key that could not be read may be readable now, without a change to the index.
                if old is not None and not old.problems and _stamp(self._folder / INDEX) == old.stamp:
                    return
                ring = _load(self._folder, now, old)
                event, problems = "key_unreadable", ring.problems
            except KeysError as error:
                event, problems = "keys_unreadable", (str(error),)
                break
            with self._lock:
                if self._ring is old:
                    self._ring = ring
                    break
            # Another thread was faster. What was read here may be older than what that one has read, and a
            # key that was retired in between would sign again: look once more.
        for problem in problems:
            if problem not in self._problems:
                record(ERROR, event, problem=problem)
        self._problems = problems


def signer(entries: list[Entry], now: float) -> Entry | None:
    """Which of ``entries`` signs at ``now``: of those that may, the one whose time came last."""
    able = [entry for entry in entries if entry.may_sign(now)]
    return max(able, key=lambda entry: (entry.signs_from, entry.created, entry.kid), default=None)


def read(folder: Path) -> tuple[Entry, ...]:
    """The index of ``folder``, the oldest key first. Raises `KeysError`."""
    return _parse(_read_index(folder / INDEX))


def create(folder: Path, *, now: int, alg: str = "ES256") -> Entry:
    """Makes the first key, which signs at once. Raises `KeysError` if there is one already: rotate then."""
    with _writing(folder):
        if (folder / INDEX).exists():
            raise KeysError(f"{folder / INDEX} exists: use `keys rotate` for another key")
        entry = _make(folder, alg, created=now, signs_from=now)
        _write_index(folder, [entry])
        return entry


def rotate(folder: Path, *, now: int, lead: int, keep: int = KEEP, alg: str | None = None) -> Entry:
    """Makes the next key, which is published at once and signs in ``lead`` seconds; the others stay published
    until ``keep`` seconds after that. With ``lead`` 0 a key that waits already, and so is published already,
    signs at once instead.

    Removes keys that are over. Returns the next key. Raises `KeysError`.
    """
    with _writing(folder):
        entries = _pruned(list(read(folder)), now)
        waiting = [entry for entry in entries if entry.signs_from > now and entry.is_published(now)]
        if waiting and lead > 0:
            raise KeysError(
                f"the key {waiting[0].kid} waits already and signs in {waiting[0].signs_from - now} s: "
                "wait for it, or let it sign at once with `--now`"
            )
        if waiting:
            chosen = replace(
                min(waiting, key=lambda entry: entry.signs_from), signs_from=now, published_until=None
            )
        else:
            current = signer(entries, now)
            chosen = _make(
                folder, alg or (current.alg if current else "ES256"), created=now, signs_from=now + lead
            )
        until = chosen.signs_from + keep
        others = [
            entry if entry.published_until is not None else replace(entry, published_until=until)
            for entry in entries
            if entry.kid != chosen.kid
        ]
        _write_index(folder, [*others, chosen])
        _remove_unlisted(folder)
        return chosen


def retire(folder: Path, kid: str, *, now: int) -> Entry | None:
    """Takes a key that leaked out of the ring and off the disk at once. Identities that it signed are refused
    as soon as verifiers read the key set again.

    If no other key may sign, a waiting one signs at once, or a new one is made: that key is returned. Raises
    `KeysError`.
    """
    with _writing(folder):
        entries = list(read(folder))
        gone = [entry for entry in entries if entry.kid == kid]
        if not gone:
            raise KeysError(f"there is no key {kid!a} in {folder / INDEX}")
        left = _pruned([entry for entry in entries if entry.kid != kid], now)
        successor = None
        if signer(left, now) is None:
            waiting = [entry for entry in left if entry.signs_from > now]
            if waiting:
                first = min(waiting, key=lambda entry: entry.signs_from)
                successor = replace(first, signs_from=now, published_until=None)
                left = [entry for entry in left if entry.kid != first.kid]
            else:
                successor = _make(folder, gone[0].alg, created=now, signs_from=now)
            left.append(successor)
        elif all(entry.published_until is not None for entry in left):
            # The one that signs now was to end; nothing else would follow it.
            current = signer(left, now)
            left = [replace(entry, published_until=None) if entry == current else entry for entry in left]
        _write_index(folder, left)
        _remove_unlisted(folder)
        return successor


def exposed(folder: Path) -> list[Path]:
    """The private keys that others than their owner may read."""
    return [path for path in sorted(folder.glob("*.pem")) if path.stat().st_mode & 0o077]


def thumbprint(jwk: dict[str, str]) -> str:
    """The thumbprint of a public key, RFC 7638."""
    members = {"EC": ("crv", "kty", "x", "y"), "OKP": ("crv", "kty", "x")}[jwk["kty"]]
    canonical = json.dumps({name: jwk[name] for name in members}, separators=(",", ":"), sort_keys=True)
    return _base64url(hashlib.sha256(canonical.encode("ascii")).digest())


def public_jwk(public: Any) -> dict[str, str]:
    """The public key as a JWK with `kid`, `alg` and `use`. Raises `KeysError` for anything but P-256 and
    Ed25519.
    """
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    if isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1):
        numbers = public.public_numbers()
        x, y = (_base64url(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
        jwk = {"kty": "EC", "crv": "P-256", "x": x, "y": y}
        alg = "ES256"
    elif isinstance(public, ed25519.Ed25519PublicKey):
        x = _base64url(public.public_bytes(Encoding.Raw, PublicFormat.Raw))
        jwk = {"kty": "OKP", "crv": "Ed25519", "x": x}
        alg = "EdDSA"
    else:
        raise KeysError("the key is neither of P-256 (ES256) nor of Ed25519 (EdDSA)")
    return {**jwk, "kid": thumbprint(jwk), "alg": alg, "use": "sig"}


def _load(folder: Path, now: float, old: _Ring | None) -> _Ring:
    for _ in range(3):
        # The stamp before the content: what is read is never older than its stamp, so a change is never
        # missed.
        stamp = _stamp(folder / INDEX)
        entries = _parse(_read_index(folder / INDEX))
        keys: dict[str, _Key] = {}
        problems: list[str] = []
        for entry in entries:
            if not entry.is_published(now):
                continue
            known = old.keys.get(entry.kid) if old else None
            try:
                # A `kid` is the hash of its key: what was loaded once under it is that key.
                keys[entry.kid] = known or _load_key(folder, entry)
            except KeysError as error:
                problems.append(str(error))
        if not problems or _stamp(folder / INDEX) == stamp:
            break
    return _Ring(stamp, entries, keys, tuple(problems))


def _load_key(folder: Path, entry: Entry) -> _Key:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    path = _pem(folder, entry.kid)
    try:
        data = path.read_bytes()
        mode = path.stat().st_mode
    except OSError as error:
        raise KeysError(f"{path} cannot be read: {error.strerror}") from None
    if mode & 0o077:
        record(WARNING, "key_exposed", problem=f"{path} can be read by others than its owner: chmod 600")
    try:
        private: Any = load_pem_private_key(data, password=None)
        jwk = public_jwk(private.public_key())
    except (ValueError, TypeError, AttributeError, UnsupportedAlgorithm):
        raise KeysError(f"{path} is not an unencrypted private key in PEM form") from None
    if jwk["kid"] != entry.kid or jwk["alg"] != entry.alg:
        raise KeysError(f"{path} holds another key than the index says")
    return _Key(private, jwk)


def _no_index(path: Path, error: OSError) -> KeysError:
    if isinstance(error, FileNotFoundError):
        return KeysError(f"{path} does not exist: make a key with `python -m airflow_envoy keys new`")
    return KeysError(f"{path} cannot be read: {error.strerror}")


def _read_index(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            data = file.read(_INDEX_LIMIT + 1)
    except OSError as error:
        raise _no_index(path, error) from None
    if len(data) > _INDEX_LIMIT:
        raise KeysError(f"{path} is larger than {_INDEX_LIMIT} bytes")
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise KeysError(f"{path} is not JSON") from None


def _parse(document: Any) -> tuple[Entry, ...]:
    if not isinstance(document, dict) or document.get("version") != 1 or set(document) != {"version", "keys"}:
        raise KeysError(f"{INDEX} is not an index of version 1")
    if not isinstance(document["keys"], list) or not document["keys"]:
        raise KeysError(f"{INDEX} has no keys")
    entries = []
    for number, item in enumerate(document["keys"]):
        where = f"{INDEX}: keys[{number}]"
        if not isinstance(item, dict) or set(item) != {
            "kid",
            "alg",
            "created",
            "signs_from",
            "published_until",
        }:
            raise KeysError(
                f"{where} must have kid, alg, created, signs_from and published_until, and nothing else"
            )
        # The kid becomes a file name: nothing but a thumbprint may get there.
        if not isinstance(item["kid"], str) or not _KID.fullmatch(item["kid"]):
            raise KeysError(f"{where}.kid is no thumbprint")
        if item["alg"] not in ALGORITHMS:
            raise KeysError(f"{where}.alg must be one of {', '.join(ALGORITHMS)}")
        for name in ("created", "signs_from", "published_until"):
            value = item[name]
            if (isinstance(value, bool) or not isinstance(value, int)) and not (
                name == "published_until" and value is None
            ):
                raise KeysError(f"{where}.{name} must be unix seconds")
        entries.append(Entry(**item))
    if len({entry.kid for entry in entries}) != len(entries):
        raise KeysError(f"{INDEX} names a key twice")
    return tuple(sorted(entries, key=lambda entry: (entry.created, entry.signs_from, entry.kid)))


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise _no_index(path, error) from None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _make(folder: Path, alg: str, *, created: int, signs_from: int) -> Entry:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    if alg not in ALGORITHMS:
        raise KeysError(f"the algorithm must be one of {', '.join(ALGORITHMS)}, not {alg!a}")
    private: Any = (
        ec.generate_private_key(ec.SECP256R1()) if alg == "ES256" else ed25519.Ed25519PrivateKey.generate()
    )
    kid = public_jwk(private.public_key())["kid"]
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    _write(_pem(folder, kid), pem, 0o600)
    return Entry(kid, alg, created, signs_from)


def _pruned(entries: list[Entry], now: int) -> list[Entry]:
    return [entry for entry in entries if entry.is_published(now)]


def _write_index(folder: Path, entries: list[Entry]) -> None:
    ordered = sorted(entries, key=lambda entry: (entry.created, entry.signs_from, entry.kid))
    text = json.dumps({"version": 1, "keys": [entry.as_json() for entry in ordered]}, indent=2)
    temporary = folder / f".{INDEX}.{os.getpid()}"
    try:
        temporary.unlink(missing_ok=True)
        _write(temporary, f"{text}\n".encode(), 0o644)
        temporary.replace(folder / INDEX)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise KeysError(f"{folder / INDEX} cannot be written: {error.strerror}") from None


def _write(path: Path, data: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            _give_to_owner(path.parent, descriptor)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise KeysError(f"{path} cannot be written: {error.strerror}") from None


def _give_to_owner(folder: Path, descriptor: int) -> None:
    """What root has just made belongs to the folder's owner: the API server could not read it otherwise, and
    would sign with the old key until that is over.
    """
    if os.geteuid() == 0:
        owner = folder.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def _remove_unlisted(folder: Path) -> None:
    """Removes private keys that the index no longer has. Only after the index was replaced, and only what is
    named like a key.
    """
    listed = {entry.kid for entry in read(folder)}
    for path in folder.glob("*.pem"):
        if _KID.fullmatch(path.stem) and path.stem not in listed:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """One writer at a time: holds the lock file of ``folder``, which is made (0700) if need be."""
    import fcntl

    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = _lock_file(folder)
    except OSError as error:
        raise KeysError(f"{folder} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise KeysError(f"another process is changing the keys in {folder}: try again") from None
    try:
        yield
    finally:
        os.close(descriptor)  # which releases the lock


def _lock_file(folder: Path) -> int:
    # Only a file that was made here is given away: the folder's owner could have put a link to another one.
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        _give_to_owner(folder, descriptor)
        return descriptor
    return os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)


def _pem(folder: Path, kid: str) -> Path:
    return folder / f"{kid}.pem"


def _base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
