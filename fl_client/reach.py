"""The outward half of `konsil-site check`: the coordinator can be reached, is who it should be, and knows this hospital."""

from __future__ import annotations

import datetime
import socket
import ssl
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from urllib.request import getproxies, proxy_bypass

import httpx
from cryptography import x509

from fl_client.finding import Finding
from fl_client.joining import client, reason, tls_context
from fl_client.keys import public_key
from fl_client.site import Coordinator, Site
from fl_client.supernode import is_registered

WRONG_CLOCK_S, AHEAD_S = 60.0, 4.0
"""A clock that is further off is wrong; one that is ahead by more has its signatures refused (the coordinator allows 5 s)."""

SOON_DAYS = 30
"""A certificate that ends earlier is told."""

TIMEOUT_S = 10.0


def coordinator(site: Site, settings: Path) -> Iterator[Finding]:
    """Our key, the connection, the certificate, versions, the clock, and whether our key is registered."""
    whom = site.coordinator
    if whom is None:
        yield Finding("warn", "coordinator", "none yet: konsil-site join adds it, and only then can studies come")
        return
    try:
        if whom.root_certificates is not None:
            try:
                public_key(whom.key)
            except (OSError, ValueError) as error:
                yield Finding("mend", "key", str(error))
                return
            yield Finding("ok", "key", f"our key {whom.key}")
            yield from _named(whom, site.name, settings)
            yield from _certificate(whom)
        else:
            yield Finding("warn", "coordinator", "for rehearsals only: no root_certificates, so no TLS and no key")
        before = datetime.datetime.now(datetime.UTC)
        with client(whom, timeout_s=TIMEOUT_S) as talk:
            answer = talk.get("/konsil/info")
        after = datetime.datetime.now(datetime.UTC)
    except (ssl.SSLError, httpx.HTTPError) as error:  # before ValueError, which a wrong certificate also is
        yield Finding("mend", "tls" if _refused(error) else "coordinator", f"{whom.address}: {in_words(error)}")
        return
    except (ValueError, PermissionError, FileNotFoundError) as error:  # our own file of certificates
        yield Finding("mend", "tls", str(error))
        return
    except OSError as error:
        yield Finding("mend", "coordinator", f"{whom.address}: {in_words(error)}")
        return
    try:
        told = {str(key): str(value) for key, value in answer.raise_for_status().json().items()}
        theirs = datetime.datetime.fromisoformat(told["time"])
        ahead = (before + (after - before) / 2 - theirs).total_seconds()
    except (httpx.HTTPStatusError, ValueError, KeyError, TypeError, AttributeError):
        yield Finding("mend", "coordinator", f"{whom.address} is no coordinator of konsil: {reason(answer)}")
        return
    yield Finding("ok", "coordinator", f"{whom.address} answers in {(after - before).total_seconds():.2f} s")
    yield _versions(told)
    yield _clock(ahead)
    if whom.root_certificates is not None:
        yield _registered(whom, site.name)


def _named(whom: Coordinator, name: str, settings: Path) -> Iterator[Finding]:
    """Whether the hospital still has the name for which its key was made: the coordinator knows the key by that one."""
    public = whom.key.with_name(f"{whom.key.name}.pub")
    try:
        before = public.read_text().split(maxsplit=2)[2].strip()
    except (OSError, UnicodeDecodeError, IndexError):  # nothing leans on that file, it is for the reader
        return
    if before != name:
        yield Finding(
            "mend",
            "name",
            f"name in {settings} is {name}, but our key was made for {before}, and by that name the coordinator knows it: put "
            f"the old name back. If the hospital is to be {name} from now on, it needs another key: move {whom.key} and "
            f"{public} away, ask the coordinator's person to do konsil-study unregister {before} and konsil-study join-token "
            f"{name}, then konsil-site join -",
        )


def _certificate(whom: Coordinator) -> Iterator[Finding]:
    """The chain to the authority, and how long it is good for. Raises `OSError`, `ssl.SSLError` for one that isn't."""
    host, _, port = whom.address.rpartition(":")
    host, trusted = host.strip("[]"), tls_context(whom)
    if (proxy := getproxies().get("https")) and not proxy_bypass(host):  # the chain is looked at all the same, by the next step
        yield Finding("ok", "tls", f"through the proxy {httpx.URL(proxy).host} (HTTPS_PROXY); how long is not looked at")
        return
    with (
        socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as line,
        trusted.wrap_socket(line, server_hostname=host) as secure,
    ):
        shown = secure.getpeercert(binary_form=True) or b""
        spoken = secure.version()
    ends = {"the coordinator's certificate": x509.load_der_x509_certificate(shown).not_valid_after_utc}
    authority = whom.root_certificates
    if authority is not None:
        authorities = x509.load_pem_x509_certificates(authority.read_bytes())
        ends["its authority's"] = min(one.not_valid_after_utc for one in authorities)
    now = datetime.datetime.now(datetime.UTC)
    for what, end in ends.items():
        days = (end - now).days
        text = f"{what} is good until {end:%Y-%m-%d}, {days} days" + ("; it has to be renewed" if days < SOON_DAYS else "")
        yield Finding("warn" if days < SOON_DAYS else "ok", "tls", f"{spoken}: {text}")


def _versions(told: dict[str, str]) -> Finding:
    ours = {"konsil": version("konsil"), "flwr": version("flwr")}
    theirs = {name: told.get(name, "unknown") for name in ours}
    text = ", ".join(f"{name} {ours[name]} here, {theirs[name]} there" for name in ours)
    same = theirs["konsil"] == ours["konsil"] and theirs["flwr"].split(".")[:2] == ours["flwr"].split(".")[:2]
    return Finding("ok" if same else "mend", "versions", text + ("" if same else "; both sides need the same"))


def _clock(ahead_s: float) -> Finding:
    text = f"{abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} the coordinator's"
    if ahead_s > AHEAD_S or abs(ahead_s) > WRONG_CLOCK_S:
        return Finding("mend", "clock", f"{text}; set it (timedatectl set-ntp true), else our requests are refused")
    return Finding("warn" if abs(ahead_s) > 2 else "ok", "clock", text)


def _registered(whom: Coordinator, name: str) -> Finding:
    """Whether the coordinator takes requests that are signed with our key."""
    try:
        if is_registered(whom):
            return Finding("ok", "key", "the coordinator knows it")
        return Finding(
            "mend",
            "key",
            f"the coordinator does not know the key {whom.key} (or the clock is wrong): ask its person for a token, then "
            f"konsil-site join TOKEN; if {name} had another key before, they first do: konsil-study unregister {name}",
        )
    except httpx.HTTPError as error:
        return Finding("warn", "key", f"whether the coordinator knows it can't be told: {in_words(error)}")


def in_words(error: Exception) -> str:
    """What went wrong with a connection, in words that say what to do."""
    if refused := _refused(error):
        return f"its certificate is not good: {refused.verify_message}; {_MENDED.get(refused.verify_code, _MENDED[0])}"
    return f"can't be reached: {str(error) or type(error).__name__}; is the address right, does the firewall let us out?"


def _refused(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    """The certificate's refusal that a failed connection came from, if it did."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error


_OTHER = (
    "coordinator.root_certificates in site.yaml names the authority of another coordinator; ask this one's person for its "
    "ca.crt, and compare its SHA-256 by telephone"
)
_ADDRESS = "coordinator.address in site.yaml has to be a name or number that the certificate was made for; ask its person"
_MENDED = {
    0: "is coordinator.root_certificates its own authority, is its address in the certificate, is the clock right?",
    9: "is this machine's clock right?",
    10: "its person has to renew it (konsil-study renew), unless this machine's clock is wrong",
    **dict.fromkeys((18, 19, 20, 21), _OTHER),
    **dict.fromkeys((62, 63, 64), _ADDRESS),
}
"""What to do about a certificate, by OpenSSL's number of what is wrong with it (X509_V_ERR_..., x509_vfy.h)."""
