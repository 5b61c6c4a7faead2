"""Who may ask, and how much at once: bearer tokens, names of this machine, the size of a body."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from losslens.errors import UserError

TOKEN_VARIABLE = "LOSSLENS_TOKEN"
MOST_BODY_BYTES = 64 * 1024
_HOW = f"give --token-file, or set {TOKEN_VARIABLE}"
_LEAST_TOKEN = 16  # characters: a token is made by a program, and nobody limits how often it is guessed


def read_token(file: Path | None) -> str | None:
    """The token from its file, else from the environment, where it is removed: what the service starts need not know it.

    Raises:
        UserError: the file cannot be read, or the token is too short to be one.
    """
    given = os.environ.pop(TOKEN_VARIABLE, None)
    if file is not None:
        try:
            given = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"the token file {file} cannot be read: {error}", _HOW) from error
    if given is None:
        return None
    token = given.strip()
    if len(token) < _LEAST_TOKEN or not token.isascii() or any(character.isspace() for character in token):
        raise UserError(f"the token is no word of {_LEAST_TOKEN} or more ASCII characters", "make one with: openssl rand -hex 32")
    return token


def require_token(host: str, token: str | None) -> None:
    """Without a token only this machine is listened to.

    Raises:
        UserError: `host` is reached from elsewhere, and there is no token.
    """
    if token is None and not is_loopback(host):
        raise UserError(f"{host} is reached from other machines, so a token is needed", _HOW)


def is_loopback(host: str) -> bool:
    """Whether every address of `host` is of this machine alone."""
    try:
        found = {address[4][0] for address in socket.getaddrinfo(host, None)}
    except OSError as error:
        raise UserError(f"{host!r} is no address of this machine: {error}", "give --host an address, such as 127.0.0.1") from error
    return all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in found)


class Token:
    """The token that requests must bear, kept as its hash, so that comparing takes as long whatever is given."""

    def __init__(self, token: str) -> None:
        self._digest = _digest(token)

    def is_borne(self, given: str) -> bool:
        """Whether this is the token."""
        return hmac.compare_digest(self._digest, _digest(given))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


class Gate:
    """Refuses requests whose body is too large, and, when `hosts` is given, those made under another name.

    Without a token a web page must not reach the service through a name that it makes resolve to 127.0.0.1.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, at most what is allowed of it, then hand it on."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if self._hosts is not None and _host(scope) not in self._hosts:
            refusal = problem(421, "this name is not one of the service", "ask 127.0.0.1, or start the service with a token")
            return await refusal(scope, receive, send)
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > MOST_BODY_BYTES:
                refusal = problem(413, f"the body is larger than {MOST_BODY_BYTES} bytes", "ask for fewer tasks at once")
                return await refusal(scope, receive, send)
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        return await self._app(scope, replay, send)


def problem(status: int, detail: str, remedy: str = "", headers: dict[str, str] | None = None) -> JSONResponse:
    """A refusal: a sentence and what to do."""
    return JSONResponse({"detail": detail, "remedy": remedy}, status, headers)


def _host(scope: Scope) -> str | None:
    """The name under which the service was asked, without its port."""
    given = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
    try:
        return urlsplit(f"//{given}").hostname
    except ValueError:
        return None
