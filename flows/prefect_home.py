"""The folder of a Prefect server of ours: its secret, and the profile by which this user's commands find it.

It is `~/.local/state/sparrow/prefect`, or for a second server at the same time a folder beside it. Only the user may
read them. `.prefect/profiles.toml` of a checkout leads to the profile of the server that was started there, so two
checkouts do not get into each other's way.
"""

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import tomllib
from pathlib import Path
from typing import TextIO, cast

from schemas.members import MemberError, open_regular

STATE = Path.home() / ".local" / "state" / "sparrow"
DEFAULT = STATE / "prefect"
USER = "sparrow"
"""The name in the secret, which Prefect takes as `name:password`."""
PROFILE = "sparrow"


class Home:
    """One such folder, kept for one server by a lock that ends with this process. `secret`: what the server wants."""

    def __init__(self, path: Path, lock: TextIO):
        self.path, self._lock = path, lock
        self.secret = known_secret(path) or f"{USER}:{secrets.token_urlsafe(32)}"

    @classmethod
    def take(cls, port: int) -> "Home":
        """The folder that PREFECT_HOME names, else the default one, else one for this port. RuntimeError if a server
        is using it."""
        named = os.environ.get("PREFECT_HOME")
        for path in [Path(named)] if named else [DEFAULT, DEFAULT.with_name(f"prefect-{port}")]:
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(0o700)
            flags = os.O_RDWR | os.O_CREAT
            lock = cast("TextIO", cast("object", open_regular(path / "serve.lock", flags, "r+")))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                continue
            return cls(path, lock)
        raise RuntimeError(f"another Prefect server of yours is using {path}; stop it first")

    def write_profile(self, api_url: str) -> None:
        """The profile with the server's address and secret, readable by the user alone."""
        values = {"PREFECT_API_URL": api_url, "PREFECT_API_AUTH_STRING": self.secret}
        lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
        text = "\n".join([f"active = {json.dumps(PROFILE)}", "", f"[profiles.{PROFILE}]", *lines])
        temporary = self.path / f"profiles.{os.getpid()}.tmp"
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(text + "\n")
        os.replace(temporary, profile_of(self.path))

    def show_to(self, checkout: Path) -> bool:
        """Let `prefect` commands in a checkout find the profile: `prefect.toml` there names this link, since Prefect
        expands no `~` in the path of profiles. False where the checkout cannot be written to."""
        link = checkout / ".prefect" / "profiles.toml"
        try:
            link.parent.mkdir(exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(profile_of(self.path))
        except OSError:
            return False
        return True

    def release(self) -> None:
        """Let another server have the folder."""
        self._lock.close()


def profile_of(path: Path) -> Path:
    return path / "profiles.toml"


def known_secret(path: Path) -> str:
    """The secret in a folder's profile; empty if there is none."""
    try:
        with open_regular(profile_of(path)) as file:
            profile = tomllib.loads(file.read().decode())["profiles"][PROFILE]
        secret = profile["PREFECT_API_AUTH_STRING"]
    except (OSError, MemberError, ValueError, KeyError, TypeError):
        return ""
    return secret if isinstance(secret, str) else ""


def proof(secret: str, nonce: str) -> str:
    """What only a server that has the secret can answer; it says nothing about the secret."""
    return hmac.new(secret.encode(), f"sparrow {nonce}".encode(), hashlib.sha256).hexdigest()
