"""Methods and secrets: known by name, of the right size, and never shown."""

from __future__ import annotations

import pickle
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core import wire
from tests.core.feeding import methods
from tunnel.errors import ConfigError
from tunnel.keys import DEFAULT_METHOD, METHODS, Secret, find_method, password_to_key

PASSWORD = "correct horse battery staple"


def test_the_methods_are_sip004s_with_salts_as_long_as_their_keys() -> None:
    assert {method.name: method.key_size for method in METHODS.values()} == wire.KEY_SIZES
    assert all(method.salt_size == method.key_size for method in METHODS.values())
    assert DEFAULT_METHOD in METHODS


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_found_by_its_name(name: str) -> None:
    assert find_method(name).name == name


@pytest.mark.parametrize(
    ("name", "nearest"), [("aes-256-gmc", "aes-256-gcm"), ("chacha20-poly1305", "chacha20-ietf-poly1305")]
)
def test_a_misspelt_method_is_an_error_that_names_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}.*did you mean {nearest}"):
        find_method(name)


def test_an_unknown_method_is_an_error_that_names_all() -> None:
    with pytest.raises(ConfigError) as caught:
        find_method("rot13")
    assert all(name in str(caught.value) for name in METHODS)
    assert "did you mean" not in str(caught.value)


@given(st.text(min_size=1), methods)
def test_every_password_gives_the_other_implementations_key(password: str, method: str) -> None:
    size = wire.KEY_SIZES[method]
    assert password_to_key(password, size) == wire.master_key(password, size)


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32), methods)
def test_every_key_and_salt_gives_the_other_implementations_subkey(
    key: bytes, salt: bytes, method: str
) -> None:
    size = wire.KEY_SIZES[method]
    secret = Secret(METHODS[method], key[:size])
    assert secret.subkey(memoryview(salt[:size])) == wire.hkdf_sha1(key[:size], salt[:size], size)


@pytest.mark.parametrize("name", METHODS)
def test_a_key_of_another_length_is_an_error_that_names_both_lengths(name: str) -> None:
    wanted = METHODS[name].key_size
    for size in (0, 1, 15, 17, 31, 33, 64, 48 - wanted):
        with pytest.raises(ConfigError, match=f"{size} bytes long: expected {wanted}"):
            Secret(METHODS[name], bytes(size))


def test_an_empty_password_is_an_error() -> None:
    with pytest.raises(ConfigError, match="empty"):
        Secret.from_password(METHODS[DEFAULT_METHOD], "")


@pytest.mark.parametrize("name", METHODS)
def test_a_secret_never_shows_its_key(name: str) -> None:
    secret = Secret.from_password(METHODS[name], PASSWORD)
    key = wire.master_key(PASSWORD, METHODS[name].key_size)
    shown = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!r:>80}",
        repr([secret]),
        repr({"secret": secret}),
    ]
    try:
        raise ValueError(secret)
    except ValueError:
        shown.append(traceback.format_exc())
    for text in shown:
        assert name in text
        assert PASSWORD not in text
        assert key.hex() not in text
        assert repr(key)[2:-1] not in text


def test_a_secret_is_not_pickled_by_accident() -> None:
    """A protocol before 2 would refuse slots; the others write the key out, so nobody may rely on it."""
    secret = Secret.from_password(METHODS[DEFAULT_METHOD], PASSWORD)
    with pytest.raises(TypeError):
        pickle.dumps(secret, protocol=1)
    assert not hasattr(secret, "__dict__")
