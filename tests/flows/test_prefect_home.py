"""Where a Prefect server of ours keeps its secret, and how commands find it."""

import os
import stat
import tomllib

import pytest

from flows import prefect_home
from flows.prefect_home import Home, known_secret, profile_of


@pytest.fixture
def default(tmp_path, monkeypatch):
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    monkeypatch.setattr(prefect_home, "DEFAULT", tmp_path / "state" / "prefect")
    return tmp_path / "state" / "prefect"


def started(port, checkout):
    home = Home.take(port)
    home.write_profile(f"http://127.0.0.1:{port}/api")
    home.show_to(checkout)
    return home


def address_from(checkout):
    """What a `prefect` command in a checkout reads."""
    profiles = tomllib.loads((checkout / ".prefect" / "profiles.toml").read_text())
    return profiles["profiles"][profiles["active"]]["PREFECT_API_URL"]


def test_two_checkouts_at_once_do_not_overwrite_each_other(default, tmp_path):
    checkouts = [tmp_path / "one", tmp_path / "two"]
    for checkout in checkouts:
        checkout.mkdir()
    first, second = started(4200, checkouts[0]), started(4201, checkouts[1])
    assert first.path == default
    assert second.path != default
    assert first.secret != second.secret
    assert [address_from(c) for c in checkouts] == [
        "http://127.0.0.1:4200/api",
        "http://127.0.0.1:4201/api",
    ]
    second.release()
    assert known_secret(default) == first.secret
    assert address_from(checkouts[0]) == "http://127.0.0.1:4200/api"
    first.release()
    third = started(4202, checkouts[1])  # nobody has the default folder any more
    assert third.path == default
    assert third.secret == first.secret  # a browser that was logged in stays logged in
    assert address_from(checkouts[1]) == "http://127.0.0.1:4202/api"


def test_only_the_user_may_read_the_secret(default, tmp_path):
    old = os.umask(0)
    try:
        home = started(4200, tmp_path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(default.stat().st_mode) == 0o700
    assert stat.S_IMODE(profile_of(home.path).stat().st_mode) == 0o600


def test_a_folder_that_was_named_is_not_shared(default, tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "mine"))
    home = Home.take(4200)
    with pytest.raises(RuntimeError, match="another Prefect server of yours is using"):
        Home.take(4201)
    home.release()
    Home.take(4201)


def test_a_checkout_that_cannot_be_written_to_is_left_alone(default, tmp_path):
    (tmp_path / ".prefect").write_text("no folder can be made here")
    home = Home.take(4200)
    home.write_profile("http://127.0.0.1:4200/api")
    assert not home.show_to(tmp_path)
    assert known_secret(home.path)
