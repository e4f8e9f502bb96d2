"""The archive's DICOMweb door as a client sees it: asks for studies (QIDO-RS) and fetches single instances as files (WADO-RS).

After PS3.18 10.4 and 10.6. Instances come as the bytes that the archive keeps (transfer-syntax=*). Addresses are made of the
hospital's settings and of UIDs that were looked at, never of an address that the archive sends; redirects are not followed, and
credentials go nowhere else. What the archive says in words is repeated nowhere: it may name patients.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import ssl
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from fl_client.intake.multipart import BadAnswer, only_file
from fl_client.site import DicomWeb
from fl_client.yaml_file import read_yaml

STUDY, SERIES, INSTANCE = "0020000D", "0020000E", "00080018"
PATIENT, ACCESSION, DATE, MODALITY, MODALITIES = "00100020", "00080050", "00080020", "00080060", "00080061"
UID = re.compile(r"(?=.{1,64}\Z)[0-9]+(\.[0-9]+)*", re.ASCII)
AS_FILE = 'multipart/related; type="application/dicom"; transfer-syntax=*'
AS_JSON = "application/dicom+json"
PAGE = 500
"""Entries of a list that are asked for at a time."""
MOST_ENTRIES, LARGEST_LIST = 100_000, 64 * 2**20
"""Entries and bytes of one list; an archive that sends more is not believed."""
ATTEMPTS, PAUSE_S = 3, 2.0
BUSY = (429, 502, 503, 504)
STATUS = {
    400: "it does not understand the question",
    401: "it does not know our credentials (dicomweb.credentials)",
    403: "our credentials may not read there (dicomweb.credentials)",
    404: "it has nothing at that address",
    406: "it does not give files as they are (application/dicom, any transfer syntax)",
    410: "it has that no more",
}
MINE = "dicomweb.credentials"


class NoAnswer(ConnectionError):
    """The archive can't be reached, or does not let us in; the text says which and what to look at."""


@dataclass(frozen=True)
class Study:
    """What the archive says of a study."""

    uid: str
    patient_id: str
    accession: str
    date: str  # YYYYMMDD
    modalities: tuple[str, ...]


@dataclass(frozen=True)
class Instance:
    """Where one instance lies in the archive."""

    study: str
    series: str
    uid: str


class Web:
    """A connection to the archive; any thread may use it. To be closed, or used in a `with`."""

    def __init__(self, settings: DicomWeb, *, pause_s: float = PAUSE_S) -> None:
        """Raises `ValueError` or `OSError` in words for files that are wrong."""
        for name in ("httpx", "httpcore"):  # at INFO they write addresses, which hold identifiers
            logging.getLogger(name).setLevel(logging.WARNING)
        self._settings, self._pause_s = settings, pause_s
        self._client = httpx.Client(
            headers={"accept-encoding": "identity", **_authorization(settings.credentials)},
            verify=_trust(settings),
            timeout=settings.timeout_s,
            limits=httpx.Limits(max_connections=settings.connections),
            follow_redirects=False,
            trust_env=False,  # the archive is in the house: no proxy, no .netrc
        )

    def __enter__(self) -> Web:
        return self

    def __exit__(self, *failure: object) -> None:
        self._client.close()

    def studies(self, asked: Mapping[str, str], *, most: int) -> list[Study]:
        """The studies that the archive gives for these attributes, by keyword. It may give others, too: look at them.

        Raises `NoAnswer`, and `BadAnswer`, also for more than `most`, which are not read to their end.
        """
        found = []
        for entry in self._list("studies", asked, STUDY, most=most, limit="dicomweb.most_studies "):
            text = {tag: _text(entry, tag) for tag in (PATIENT, ACCESSION, DATE)}
            modalities = tuple(str(value) for value in _values(entry, MODALITIES))
            found.append(Study(_uid(entry, STUDY), text[PATIENT], text[ACCESSION], text[DATE], modalities))
        return found

    def series(self, study: str) -> list[tuple[str, str]]:
        """UID and modality of each series of a study. Raises `NoAnswer` and `BadAnswer`."""
        listed = self._list(f"studies/{study}/series", {}, SERIES)
        return [(_uid(entry, SERIES), _text(entry, MODALITY)) for entry in listed]

    def instances(self, study: str, series: str) -> list[Instance]:
        """The instances of a series. Raises `NoAnswer` and `BadAnswer`."""
        listed = self._list(f"studies/{study}/series/{series}/instances", {}, INSTANCE)
        return [Instance(study, series, _uid(entry, INSTANCE)) for entry in listed]

    def file(self, one: Instance) -> memoryview:
        """An instance as a DICOM file, in memory. Raises `NoAnswer` and `BadAnswer`."""
        where = f"studies/{one.study}/series/{one.series}/instances/{one.uid}"
        answer = self._ask(where, accept=AS_FILE, most=self._settings.largest_mib * 2**20)
        return only_file(answer.headers.get("content-type", ""), answer.body)

    def _list(
        self, where: str, asked: Mapping[str, str], key: str, *, most: int = MOST_ENTRIES, limit: str = ""
    ) -> Iterator[dict[str, Any]]:
        """All entries of a list, each once, however many the archive gives at a time."""
        seen, given, more = set[str](), 0, True
        while more:
            entries, more = self._page(where, {**asked, "limit": str(PAGE), "offset": str(given)})
            given += len(entries)
            new = [entry for entry in entries if _uid(entry, key) not in seen]
            seen |= {_uid(entry, key) for entry in new}
            yield from new
            more = (more or len(entries) >= PAGE) and bool(new)  # one that takes no offset gives the same once more
            if len(seen) > most:
                raise BadAnswer(f"its list has more entries than {limit}{most}")

    def _page(self, where: str, asked: Mapping[str, str]) -> tuple[list[dict[str, Any]], bool]:
        """Entries, and whether the archive says that there are more (PS3.18 8.3.4.4: a warning of code 299)."""
        answer = self._ask(where, accept=AS_JSON, most=LARGEST_LIST, asked=asked)
        if not answer.body:  # 204, or an empty 200: nothing fits
            return [], False
        try:
            entries = json.loads(answer.body)
        except (ValueError, RecursionError):
            raise BadAnswer("its list is no JSON") from None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise BadAnswer("its list is no list of datasets")
        return entries, "299" in answer.headers.get("warning", "")

    def _ask(self, where: str, *, accept: str, most: int, asked: Mapping[str, str] | None = None) -> _Answer:
        """One request; what may pass by itself is tried again. Raises `NoAnswer` and `BadAnswer`."""
        url, attempt = self._settings.url, 0
        while True:
            attempt += 1
            last = attempt >= ATTEMPTS
            try:
                with self._client.stream("GET", f"{url}/{where}", params=asked, headers={"accept": accept}) as answer:
                    if last or answer.status_code not in BUSY:
                        _require_good(answer, url)
                        return _Answer(answer.headers, _body(answer, most))
            except httpx.ConnectError as error:
                if last or isinstance(_cause(error), ssl.SSLError):  # a certificate stays what it is
                    raise NoAnswer(f"{url} can't be reached: {_words(error)}") from None
            except httpx.TimeoutException:
                if last:
                    raise NoAnswer(f"{url} gave no answer within {self._settings.timeout_s:g} s") from None
            except httpx.TransportError:  # broken off in the middle
                if last:
                    raise BadAnswer("the answer was broken off") from None
            time.sleep(self._pause_s)


@dataclass(frozen=True)
class _Answer:
    headers: httpx.Headers
    body: bytes


def _require_good(answer: httpx.Response, url: str) -> None:
    status = answer.status_code
    if status in (httpx.codes.OK, httpx.codes.NO_CONTENT):
        return
    words = f"{STATUS.get(status, 'it could not do it')} (status {status})"
    if answer.is_redirect:
        raise NoAnswer(f"{url} sends us elsewhere (status {status}), where we don't go: mend dicomweb.url")
    if status in (401, 403, *BUSY):
        raise NoAnswer(f"{url}: {words}")
    raise BadAnswer(words)


def _body(answer: httpx.Response, most: int) -> bytes:
    """All of the answer, which is read no further than to `most` bytes."""
    if answer.headers.get("content-encoding", "identity") != "identity":
        raise BadAnswer("it is compressed, which nobody asked for")  # and could become as large as it likes
    promised = answer.headers.get("content-length", "")
    body = bytearray()
    if not (promised.isdecimal() and int(promised) > most):
        for piece in answer.iter_raw():
            body += piece
            if len(body) > most:
                break
        else:
            return bytes(body)
    raise BadAnswer(f"it is larger than {most / 2**20:g} MiB")


def _values(entry: Mapping[str, Any], tag: str) -> list[Any]:
    """The values of an attribute in the DICOM JSON model (PS3.18 F.2); empty for one that isn't there or is strange."""
    attribute = entry.get(tag)
    values = attribute.get("Value") if isinstance(attribute, dict) else None
    return [value for value in values if isinstance(value, str | int)] if isinstance(values, list) else []


def _text(entry: Mapping[str, Any], tag: str) -> str:
    return "\\".join(str(value) for value in _values(entry, tag)).strip()


def _uid(entry: Mapping[str, Any], tag: str) -> str:
    """A UID that can stand in an address. Raises `BadAnswer` for what is none."""
    if not UID.fullmatch(text := _text(entry, tag)):
        raise BadAnswer("its list holds a UID that is none")
    return text


def _cause(error: BaseException) -> BaseException:
    """What an error of httpx comes from."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return error


def _words(error: httpx.ConnectError) -> str:
    cause = _cause(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not good for dicomweb.authority or its name ({cause.verify_message})"
    if isinstance(cause, ssl.SSLError):
        return f"no TLS ({cause.reason or type(cause).__name__})"
    return (cause.strerror if isinstance(cause, OSError) else None) or type(cause).__name__


def _trust(settings: DicomWeb) -> ssl.SSLContext:
    """TLS 1.2 or newer, the archive's certificate and name looked at; ours shown where the hospital has one."""
    try:
        context = ssl.create_default_context(cafile=settings.authority)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if settings.certificate is not None:
            context.load_cert_chain(settings.certificate, settings.key)
    except (OSError, ssl.SSLError) as error:
        said = error.strerror or type(error).__name__
        raise OSError(f"dicomweb: authority, certificate or key can't be used ({said})") from None
    return context


def _authorization(path: Path | None) -> dict[str, str]:
    """The header that lets us in, from a file of mode 0600 with `token`, or with `user` and `password`.

    Raises `ValueError`, `PermissionError` and `FileNotFoundError` in words, which repeat nothing of the file.
    """
    if path is None:
        return {}
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        raise FileNotFoundError(f"{MINE}: {path} is missing") from None
    if mode & 0o077:
        raise PermissionError(f"{MINE}: {path} has mode {mode:04o}, so others may read it; do: chmod 600 {path}")
    said = read_yaml(path)
    if set(said) not in ({"token"}, {"user", "password"}):
        raise ValueError(f"{MINE}: {path} holds neither 'token' alone nor 'user' and 'password'")
    for name, value in said.items():
        if not isinstance(value, str) or not value or not value.isprintable():
            raise ValueError(f"{MINE}: {name} in {path} is no line of text; put it between quotation marks")
    if "token" in said:
        if not said["token"].isascii():
            raise ValueError(f"{MINE}: the token in {path} holds other characters than ASCII")
        return {"authorization": f"Bearer {said['token']}"}
    if ":" in said["user"]:
        raise ValueError(f"{MINE}: the user in {path} holds a colon, which HTTP can't carry")
    both = base64.b64encode(f"{said['user']}:{said['password']}".encode()).decode()
    return {"authorization": f"Basic {both}"}
