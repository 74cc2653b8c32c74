"""The key ring: rotation in time, files replaced under readers, and what is refused."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from airflow_envoy import keys
from airflow_envoy.keys import KeyRing, KeysError
from airflow_envoy.refusal import Refusal

T0 = 1_800_000_000


def ring(folder: Path) -> KeyRing:
    """One that looks at the folder each time."""
    ticks = itertools.count(0, 10)
    return KeyRing(folder, clock=lambda: float(next(ticks)))


def kids(jwks: dict[str, Any]) -> set[str]:
    return {key["kid"] for key in jwks["keys"]}


@pytest.mark.parametrize("alg", ["ES256", "EdDSA"])
def test_what_a_key_signs_its_published_half_verifies(tmp_path: Path, alg: str) -> None:
    entry = keys.create(tmp_path / "k", now=T0, alg=alg)
    signing = ring(tmp_path / "k").signing(T0)
    assert (signing.kid, signing.alg) == (entry.kid, alg)
    published = ring(tmp_path / "k").jwks(T0)
    token = jwt.encode({"a": 1}, signing.key, algorithm=alg)
    public = jwt.PyJWKSet.from_dict(published)[entry.kid]
    assert jwt.decode(token, public.key, algorithms=[alg]) == {"a": 1}
    assert published["keys"][0]["alg"] == alg
    assert published["keys"][0]["use"] == "sig"
    assert "d" not in published["keys"][0]


def test_a_key_is_named_by_its_thumbprint() -> None:
    # RFC 8037, appendix A.3
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    assert keys.thumbprint(jwk) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_a_rotation_publishes_before_it_signs_and_after_it_signed(tmp_path: Path) -> None:
    folder = tmp_path / "k"
    first = keys.create(folder, now=T0).kid
    second = keys.rotate(folder, now=T0 + 100, lead=600, keep=900).kid
    reader = ring(folder)
    for now, signs, published in [
        (T0 + 100, first, {first, second}),
        (T0 + 699, first, {first, second}),
        (T0 + 700, second, {first, second}),
        (T0 + 700 + 899, second, {first, second}),
        (T0 + 700 + 900, second, {second}),
    ]:
        assert reader.signing(now).kid == signs
        assert kids(reader.jwks(now)) == published


def test_a_rotation_at_once_lets_the_waiting_key_sign_which_is_published_already(tmp_path: Path) -> None:
    folder = tmp_path / "k"
    first = keys.create(folder, now=T0).kid
    second = keys.rotate(folder, now=T0, lead=600).kid
    with pytest.raises(KeysError, match="waits already and signs in 500 s"):
        keys.rotate(folder, now=T0 + 100, lead=600)
    assert keys.rotate(folder, now=T0 + 100, lead=0).kid == second
    assert ring(folder).signing(T0 + 100).kid == second
    third = keys.rotate(folder, now=T0 + 200, lead=0).kid
    assert third not in (first, second)
    assert ring(folder).signing(T0 + 200).kid == third
    assert kids(ring(folder).jwks(T0 + 200)) == {first, second, third}


def test_keys_that_are_over_are_removed_by_the_next_rotation(tmp_path: Path) -> None:
    folder = tmp_path / "k"
    first = keys.create(folder, now=T0).kid
    keys.rotate(folder, now=T0, lead=0, keep=900)
    assert (folder / f"{first}.pem").exists()
    (folder / "notes.pem").write_text("not a key of the ring")
    keys.rotate(folder, now=T0 + 1000, lead=0)
    assert first not in {entry.kid for entry in keys.read(folder)}
    assert not (folder / f"{first}.pem").exists()
    assert (folder / "notes.pem").exists()


def test_a_retired_key_is_gone_at_once_and_another_signs(tmp_path: Path) -> None:
    folder = tmp_path / "k"
    reader = ring(folder)
    leaked = keys.create(folder, now=T0).kid
    assert reader.signing(T0).kid == leaked
    successor = keys.retire(folder, leaked, now=T0)
    assert successor is not None
    assert reader.signing(T0).kid == successor.kid
    assert kids(reader.jwks(T0)) == {successor.kid}
    assert not (folder / f"{leaked}.pem").exists()
    with pytest.raises(KeysError, match="no key"):
        keys.retire(folder, leaked, now=T0)


def test_the_waiting_key_takes_over_from_a_retired_one(tmp_path: Path) -> None:
    folder = tmp_path / "k"
    leaked = keys.create(folder, now=T0).kid
    waiting = keys.rotate(folder, now=T0, lead=600).kid
    successor = keys.retire(folder, leaked, now=T0 + 1)
    assert successor is not None
    assert successor.kid == waiting
    assert ring(folder).signing(T0 + 1).kid == waiting


def test_a_retired_new_key_leaves_the_old_one_to_sign_on(tmp_path: Path) -> None:
    folder = tmp_path / "k"
    first = keys.create(folder, now=T0).kid
    second = keys.rotate(folder, now=T0 + 10, lead=0, keep=900).kid
    assert keys.retire(folder, second, now=T0 + 20) is None
    assert ring(folder).signing(T0 + 10_000).kid == first


def test_private_keys_are_for_their_owner_only(key_folder: Path) -> None:
    assert keys.exposed(key_folder) == []
    pem = next(key_folder.glob("*.pem"))
    assert pem.stat().st_mode & 0o777 == 0o600
    assert key_folder.stat().st_mode & 0o777 == 0o700
    pem.chmod(0o640)
    assert keys.exposed(key_folder) == [pem]


def test_an_exposed_key_is_named_in_the_log(
    key_folder: Path, records: Callable[[], list[dict[str, Any]]]
) -> None:
    next(key_folder.glob("*.pem")).chmod(0o644)
    ring(key_folder).signing(time.time())
    assert [line["event"] for line in records()] == ["key_exposed"]


def test_a_first_key_is_not_made_twice(key_folder: Path) -> None:
    with pytest.raises(KeysError, match="exists: use `keys rotate`"):
        keys.create(key_folder, now=T0)


def test_one_writer_at_a_time(key_folder: Path) -> None:
    with keys._writing(key_folder), pytest.raises(KeysError, match="another process"):
        keys.rotate(key_folder, now=T0, lead=0)
    keys.rotate(key_folder, now=int(time.time()), lead=0)


def entry(**changes: Any) -> dict[str, Any]:
    return {
        "kid": "a" * 43,
        "alg": "ES256",
        "created": T0,
        "signs_from": T0,
        "published_until": None,
        **changes,
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"version": 2, "keys": []}',
        '{"version": 1, "keys": []}',
        '{"version": 1, "keys": {}}',
        json.dumps({"version": 1, "keys": [entry()], "more": 1}),
        *[
            json.dumps({"version": 1, "keys": [item]})
            for item in (
                entry(kid="../../../etc/passwd"),
                entry(kid="a" * 42),
                entry(kid="a" * 43 + "\n"),
                entry(kid=1),
                entry(alg="HS256"),
                entry(alg="none"),
                entry(created="1"),
                entry(signs_from=None),
                entry(signs_from=True),
                entry(published_until=1.5),
                {**entry(), "extra": 1},
                {name: value for name, value in entry().items() if name != "alg"},
                "key",
            )
        ],
        json.dumps({"version": 1, "keys": [entry(), entry()]}),
        " " * 300_000,
    ],
    ids=itertools.count(),
)
def test_a_bad_index_keeps_the_last_good_ring_and_is_logged_once(
    key_folder: Path, text: str, records: Callable[[], list[dict[str, Any]]]
) -> None:
    reader = ring(key_folder)
    now = time.time()
    good = reader.signing(now).kid
    (key_folder / "new.json").write_text(text)
    (key_folder / "new.json").replace(key_folder / "keys.json")
    for _ in range(3):
        assert reader.signing(now).kid == good
    assert [line["event"] for line in records()] == ["keys_unreadable"]
    with pytest.raises(Refusal) as caught:
        ring(key_folder).signing(now)
    assert caught.value.code == "key_unavailable"


def test_a_missing_folder_is_a_refusal_and_heals(
    tmp_path: Path, records: Callable[[], list[dict[str, Any]]]
) -> None:
    folder = tmp_path / "later"
    reader = ring(folder)
    for _ in range(3):
        with pytest.raises(Refusal) as caught:
            reader.signing(T0)
        assert caught.value.code == "key_unavailable"
        assert str(folder) not in caught.value.text
    assert len(records()) == 1
    assert str(folder) in records()[0]["problem"]
    kid = keys.create(folder, now=T0).kid
    assert reader.signing(T0).kid == kid


@pytest.mark.parametrize("kind", ["rsa", "p384", "another", "encrypted", "garbage", "unreadable", "missing"])
def test_a_key_that_cannot_be_used_is_left_out_and_the_other_signs(
    tmp_path: Path, kind: str, records: Callable[[], list[dict[str, Any]]]
) -> None:
    folder = tmp_path / "k"
    first = keys.create(folder, now=T0).kid
    second = keys.rotate(folder, now=T0 + 1, lead=0).kid
    path = folder / f"{second}.pem"
    pem = lambda key: key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())  # noqa: E731
    if kind == "rsa":
        path.write_bytes(pem(rsa.generate_private_key(65537, 2048)))
    elif kind == "p384":
        path.write_bytes(pem(ec.generate_private_key(ec.SECP384R1())))
    elif kind == "another":
        path.write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    elif kind == "encrypted":
        locked = BestAvailableEncryption(os.urandom(16))
        key = ec.generate_private_key(ec.SECP256R1())
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))
    elif kind == "garbage":
        path.write_bytes(b"\x00\xff")
    else:
        path.unlink()
        if kind == "unreadable":
            path.mkdir()
    reader = ring(folder)
    assert reader.signing(T0 + 2).kid == first
    assert kids(reader.jwks(T0 + 2)) == {first}
    assert [line["event"] for line in records()] == ["key_unreadable"]


def test_threads_that_come_first_together_all_get_a_key(
    key_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = keys._load

    def slow(*arguments: Any) -> Any:
        time.sleep(0.1)
        return load(*arguments)

    monkeypatch.setattr(keys, "_load", slow)
    reader = KeyRing(key_folder)
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(
            lambda number: (time.sleep(number / 100), reader.signing(time.time()))[1].kid, range(8)
        )
        assert len(set(found)) == 1


def test_a_key_that_becomes_readable_is_used_without_a_change_to_the_index(
    tmp_path: Path, records: Callable[[], list[dict[str, Any]]]
) -> None:
    folder = tmp_path / "k"
    first = keys.create(folder, now=T0).kid
    second = keys.rotate(folder, now=T0 + 1, lead=0).kid
    path = folder / f"{second}.pem"
    good = path.read_bytes()
    path.write_bytes(b"")
    reader = ring(folder)
    for _ in range(3):
        assert reader.signing(T0 + 2).kid == first
    assert len(records()) == 1
    path.write_bytes(good)
    assert reader.signing(T0 + 2).kid == second


def test_a_retired_key_is_dropped_even_if_the_next_one_cannot_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "k"
    leaked = keys.create(folder, now=T0).kid
    reader = ring(folder)
    reader.signing(T0)
    successor = keys.retire(folder, leaked, now=T0)
    assert successor is not None
    (folder / f"{successor.kid}.pem").write_bytes(b"")
    with pytest.raises(Refusal) as caught:
        reader.signing(T0)
    assert caught.value.code == "key_unavailable"
    assert reader.jwks(T0) == {"keys": []}


def test_the_folder_is_looked_at_once_a_second_at_most(
    key_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    stamp = keys._stamp

    def counted(path: Path) -> tuple[int, int, int]:
        nonlocal looks
        looks += 1
        return stamp(path)

    monkeypatch.setattr(keys, "_stamp", counted)
    clock = [100.0]
    reader = KeyRing(key_folder, clock=lambda: clock[0])
    reader.signing(time.time())
    first = looks
    for _ in range(100):
        reader.signing(time.time())
    assert looks == first
    clock[0] += 1.0
    reader.signing(time.time())
    assert looks == first + 1


def test_a_change_within_the_same_second_and_of_the_same_size_is_seen(tmp_path: Path) -> None:
    folder = tmp_path / "k"
    keys.create(folder, now=T0)
    reader = ring(folder)
    reader.signing(T0)
    before = (folder / "keys.json").stat()
    other = tmp_path / "o"
    kid = keys.create(other, now=T0).kid
    for path in other.glob("*"):
        path.replace(folder / path.name)
    os.utime(folder / "keys.json", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (folder / "keys.json").stat().st_size == before.st_size
    assert reader.signing(T0).kid == kid


def test_a_thread_that_read_slowly_does_not_bring_an_older_ring_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "k"
    leaked = keys.create(folder, now=T0).kid
    shared = ring(folder)
    assert shared.signing(T0).kid == leaked
    keys.rotate(folder, now=T0 + 1, lead=600)
    load, is_slow, go_on = keys._load, threading.Event(), threading.Event()

    def slow_for_one(*arguments: Any) -> Any:
        loaded = load(*arguments)
        if threading.current_thread().name == "slow":
            is_slow.set()
            go_on.wait(10)
        return loaded

    monkeypatch.setattr(keys, "_load", slow_for_one)
    answers: list[str] = []
    slow = threading.Thread(name="slow", target=lambda: answers.append(shared.signing(T0 + 2).kid))
    slow.start()
    assert is_slow.wait(10)
    keys.retire(folder, leaked, now=T0 + 2)
    successor = shared.signing(T0 + 2).kid
    assert successor != leaked
    go_on.set()
    slow.join()
    assert answers == [successor]
    assert kids(shared.jwks(T0 + 2)) == {successor}


def test_readers_never_miss_a_signing_key_while_keys_rotate_and_retire(tmp_path: Path) -> None:
    folder = tmp_path / "k"
    keys.create(folder, now=T0)
    stop = threading.Event()
    clock = itertools.count(0, 10)
    shared = KeyRing(folder, clock=lambda: float(next(clock)))
    problems: list[str] = []
    reads = [0]
    now = [T0]

    def read(reader: Callable[[], KeyRing]) -> None:
        while not stop.is_set():
            try:
                at = now[0]
                signing = reader().signing(at)
                # The writer goes on between the two: what has just signed must be published all the same.
                if signing.kid not in kids(shared.jwks(at)) and signing.kid in {
                    e.kid for e in keys.read(folder)
                }:
                    problems.append(f"{signing.kid} signs and is not published")
                reads[0] += 1
            except Refusal as refusal:
                problems.append(refusal.text)

    threads = [threading.Thread(target=read, args=(lambda: shared,)) for _ in range(3)]
    threads.append(threading.Thread(target=read, args=(lambda: ring(folder),)))
    for thread in threads:
        thread.start()
    for turn in range(60):
        now[0] += (
            400  # so that a reader who was put aside for some turns still has a time that some key covers
        )
        newest = keys.rotate(folder, now=now[0], lead=0, keep=6000)
        if turn % 10 == 9:
            keys.retire(folder, newest.kid, now=now[0])
        time.sleep(0.002)
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []
    assert reads[0] > 100
