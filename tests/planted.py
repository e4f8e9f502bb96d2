"""People who do not exist, and a search for what names them: in every file of a folder, in the encodings that programs use.

A search that finds nothing proves something only if it can find: tests ask it for the same marks in the identity zone.
"""

import asyncio
import base64
import gzip
import html
import io
import json
import re
import sqlite3
import urllib.parse
import zipfile
import zlib

import httpx
import numpy as np

from fl_client.approval import Approvals
from fl_client.cohort import Cohort
from fl_client.page.app import page_app
from fl_client.page.guard import ensure_tokens, token

CHARACTER_SETS = ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "latin-1", "iso8859_5", "gb18030", "iso2022_jp", "euc_kr")
PIECE = 1 << 20  # bytes that are looked through at once
STREAM = re.compile(rb"stream\r?\n(.*?)endstream", re.DOTALL)


def forms(text):
    """All byte strings that stand for a text: in nine character sets, escaped for JSON, HTML and addresses, and in base64."""
    found = set()
    for one in {text, text.lower(), text.upper(), text.replace("^", " "), text.replace("^", ", ")}:
        for characters in CHARACTER_SETS:
            try:
                found.add(one.encode(characters))
            except UnicodeEncodeError:
                continue
        found |= {json.dumps(one)[1:-1].encode(), html.escape(one).encode(), urllib.parse.quote(one).encode()}
        found.add(one.encode("ascii", "xmlcharrefreplace"))
    for whole in (text.encode(), text.encode("utf-16-le")):
        for before in range(3):  # the middle of base64, which is the same whatever stands around it
            coded = base64.b64encode(b"\0" * before + whole)
            found.add(coded[(0, 2, 3)[before] : (before + len(whole)) * 8 // 6])
        found.add(whole.hex().encode())
    return {one for one in found if len(one) > 4}


def dates(day):
    """The ways in which a day YYYYMMDD is written."""
    year, month, date = day[:4], day[4:6], day[6:]
    return {day, f"{year}-{month}-{date}", f"{date}.{month}.{year}", f"{month}/{date}/{year}", f"{year}.{month}.{date}"}


class Search:
    """Looks for marks, whatever the case of their letters, also within archives, compressed streams and databases."""

    def __init__(self, marks):
        """`marks`: texts by what they are."""
        self._forms = {}  # first four bytes: what a form stands for, by form
        for what, text in marks.items():
            for form in forms(text):
                self._forms.setdefault(form.lower()[:4], {})[form.lower()] = what
        self._first, self._second = np.zeros(1 << 16, bool), np.zeros(1 << 16, bool)
        for one in self._forms:
            self._first[one[0] << 8 | one[1]] = self._second[one[2] << 8 | one[3]] = True

    def of(self, data, where):
        """What is named in some bytes, with where it stands."""
        return {(what, place) for place, content in within(data, where) for what in self._named(content.lower())}

    def _named(self, data):
        for begin in range(0, len(data), PIECE):
            pairs = np.frombuffer(data[begin : begin + PIECE + 3], np.uint8).astype(np.uint16)
            pairs = pairs[:-1] << 8 | pairs[1:]
            for place in np.flatnonzero(self._first[pairs[:-2]] & self._second[pairs[2:]]).tolist():
                start = begin + place
                for form, what in self._forms.get(data[start : start + 4], {}).items():
                    if data.startswith(form, start) and not (form.isdigit() and _goes_on(data, start, len(form))):
                        yield what

    def below(self, folder, *, but=()):
        """What is named in the files below a folder and in their names, but not in the folders of `but`."""
        found, files = set(), 0
        for path in sorted(folder.rglob("*")):
            if any(path == other or other in path.parents for other in but):
                continue
            name = path.relative_to(folder).as_posix()
            found |= {(what, f"the name {name}") for what, _ in self.of(name.encode(), "")}
            if path.is_file():
                files += 1
                found |= self.of(path.read_bytes(), name)
        assert files > 0, f"{folder} holds no file to look into"
        return found


def _goes_on(data, start, length):
    """Whether digits are part of a longer number, such as a UID: then they are no day."""
    return data[start - 1 : start].isdigit() or data[start + length : start + length + 1].isdigit()


def within(data, where):
    """The bytes, and those that are packed into them: zip (also .npz and .pt), gzip, streams of a PDF, rows of SQLite."""
    yield where, data
    if data[:4] == b"PK\3\4":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield from within(name.encode() + b"\n" + archive.read(name), f"{where}: {name}")
    elif data[:2] == b"\x1f\x8b":
        yield from within(gzip.decompress(data), f"{where}: unpacked")
    elif data[:5] == b"%PDF-":
        for number, stream in enumerate(STREAM.findall(data)):
            try:
                yield f"{where}: stream {number}", zlib.decompressobj().decompress(stream)
            except zlib.error:
                continue
    elif data[:16] == b"SQLite format 3\0":
        database = sqlite3.connect(":memory:")
        database.deserialize(data[:18] + b"\1\1" + data[20:])  # one with a write-ahead log, too, as far as it is written
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            cells = (cell for row in database.execute(f'SELECT * FROM "{table}"') for cell in row)
            yield f"{where}: {table}", b"\n".join(cell if isinstance(cell, bytes) else str(cell).encode() for cell in cells)
        database.close()


def marks_of(person):
    """What names a generated `Identity`, by what it is."""
    family, given = person.name.split("=")[0].split("^")[:2]
    found = {"family name": family, "given name": given, "number": person.patient_id, "accession": person.accession}
    found |= {"address": person.address, "institution": person.institution, "serial": person.device_serial}
    found |= {"physician": person.physician.split("^")[-1], "operator": person.operator.split("^")[-1]}
    found |= {f"script {n}": part for n, part in enumerate(re.split("[=^]", person.name)[2:]) if part}
    return found | {f"born, {n}": text for n, text in enumerate(sorted(dates(person.birth_date)))}


def screens(site):
    """Address and HTML of every view of the hospital's page, of every patient and of every study."""
    ensure_tokens(site)

    async def read():
        transport = httpx.ASGITransport(page_app(site), client=("127.0.0.1", 50000))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8787") as client:
            csrf = re.search(r'name="csrf" value="(\w+)"', (await client.get("/login")).text)[1]
            assert (await client.post("/login", data={"csrf": csrf, "token": token(site, "page")})).status_code == 303
            paths = [
                "/",
                "/studies",
                "/quality",
                "/left",
                "/log",
                "/cohort?place=refused",
                "/cohort?place=quarantine",
                "/cohort",
            ]
            paths += [f"/studies/{path.stem}" for path in Approvals(site.folder).studies_folder.glob("*.json")]
            paths += [f"/cohort/{patient}" for patient in Cohort(site.cohort_folder).patients]
            found = []
            for path in paths:
                for _ in range(100):
                    answer = await client.get(path)
                    if "http-equiv" not in answer.text:
                        break
                    await asyncio.sleep(0.1)
                assert (answer.status_code, len(answer.text) > 1000) == (200, True), path
                found.append((path, answer.text))
            return found

    return asyncio.run(read())
