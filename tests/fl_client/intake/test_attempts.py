"""What can't be worked off: told with number, age and size, put aside after some tries, and never because the house fails."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
from dicom_peers import originals, write_images
from test_arrivals import a_site, push, quarantined

from fl_client.__main__ import main
from fl_client.cohort import Cohort
from fl_client.intake import arrivals as arrivals_module
from fl_client.intake import letting_in
from fl_client.intake.arrivals import Arrivals
from fl_client.intake.attempts import MOST_TRIES, failures
from fl_client.intake.deidentify import Deidentifier
from fl_client.intake.waiting import Waiting, waiting
from fl_client.preflight import arrivals as look
from fl_client.site import Site
from fl_client.standing import standing, told


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return a_site(tmp_path / "site")


def failing(monkeypatch: Any, error: OSError, *, which: str = "") -> None:
    """De-identification fails by this error for one original, or for all."""
    real = arrivals_module.deidentify_file

    def fail(source: Path, *args: Any, **settings: Any) -> Any:
        if which in source.name:
            raise error
        return real(source, *args, **settings)

    monkeypatch.setattr(arrivals_module, "deidentify_file", fail)


def test_an_original_that_fails_again_and_again_ends_in_the_quarantine_with_the_reason(
    site: Site, tmp_path: Path, monkeypatch: Any
) -> None:
    push(site, write_images(tmp_path / "images", 3))
    bad = originals(site.identity_folder)[0]
    with monkeypatch.context() as patch:
        failing(patch, PermissionError(errno.EACCES, "the name of a path"), which=bad.name)
        outcomes = [Arrivals(site).work(all_quiet=True) for _ in range(MOST_TRIES)]  # also across restarts
    assert [outcome["failed"] for outcome in outcomes] == [1] * (MOST_TRIES - 1) + [0]
    assert outcomes[-1]["quarantined"] == 1
    assert quarantined(site) == ["it could not be worked off in 5 attempts (PermissionError), while the disk could be written"]
    assert (originals(site.identity_folder), failures(site.identity_folder / "incoming")) == ([], {})
    site.save(site.folder / "site.yaml")
    assert main(["--site", str(site.folder / "site.yaml"), "quarantine", "release", "--reason", "could not be worked"]) == 0
    assert Arrivals(site).work(all_quiet=True)["cleaned"] == 1  # nothing of it is lost


def test_the_stack_of_which_an_original_was_put_aside_is_known_to_be_short(
    site: Site, tmp_path: Path, monkeypatch: Any
) -> None:
    push(site, write_images(tmp_path / "images", 1))
    failing(monkeypatch, PermissionError(errno.EACCES, "x"))
    work = Arrivals(site)
    for _ in range(MOST_TRIES):
        work.work(all_quiet=True)
    pseudonym = Deidentifier(site.key_file.read_bytes()).pseudonym("MRN-0815")
    assert len(work.incoming.quarantine.images(pseudonym)) == 1


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EMFILE])
def test_what_the_house_is_to_blame_for_puts_nothing_aside(site: Site, tmp_path: Path, monkeypatch: Any, error: int) -> None:
    push(site, write_images(tmp_path / "images", 1))
    failing(monkeypatch, OSError(error, os.strerror(error)))
    assert [Arrivals(site).work(all_quiet=True)["failed"] for _ in range(2 * MOST_TRIES)] == [1] * 2 * MOST_TRIES
    assert (len(originals(site.identity_folder)), quarantined(site)) == (1, [])


def test_nothing_is_put_aside_while_the_house_can_not_write(site: Site, tmp_path: Path, monkeypatch: Any) -> None:
    push(site, write_images(tmp_path / "images", 1))
    failing(monkeypatch, OSError("the way back can't be written"))

    def away(*folders: Path) -> None:
        raise OSError("away")

    monkeypatch.setattr(arrivals_module, "can_write", away)
    assert [Arrivals(site).work(all_quiet=True)["failed"] for _ in range(2 * MOST_TRIES)] == [1] * 2 * MOST_TRIES


def test_a_patient_who_can_not_be_let_in_is_tried_ever_more_seldom_and_at_once_when_something_comes(
    site: Site, tmp_path: Path, monkeypatch: Any
) -> None:
    def fail(*args: Any, **settings: Any) -> Any:
        raise MemoryError

    push(site, write_images(tmp_path / "images", 1))
    now = [0.0]
    monkeypatch.setattr(letting_in.time, "monotonic", lambda: now[0])
    work = Arrivals(site, clock=lambda: time.time() + 100)
    with monkeypatch.context() as patch:
        patch.setattr(letting_in, "admit_folder", fail)
        tried = []
        for minute in range(24 * 60):
            now[0] = 60.0 * minute
            if work.work()["failed"]:
                tried.append(minute)
        assert tried == [0, 5, 15, 35, 75, 155, 315, 635, 1275]
        assert waiting(site).failing_patients == 1
    push(site, write_images(tmp_path / "images", 2))
    counts = work.work()
    assert counts["admitted"] + counts["refused"] == 1
    assert waiting(site).patients == 0


def test_what_waits_is_told_with_its_number_age_and_size(site: Site, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    Cohort(site.cohort_folder)
    assert (waiting(site), list(waiting(site).told())) == (Waiting(), [])
    push(site, write_images(tmp_path / "images", 3))
    push(site, write_images(tmp_path / "other", 1, StudyInstanceUID="1.2.3", SOPInstanceUID="1.2.4", size=600))
    oldest = originals(site.identity_folder)[0]
    os.utime(oldest, (1_700_000_000, 1_700_000_000))
    with monkeypatch.context() as patch:
        failing(patch, OSError(errno.ENOSPC, "full"), which=oldest.name)
        Arrivals(site).work(all_quiet=True)
    push(site, write_images(tmp_path / "burned", 1, StudyInstanceUID="1.2.9", SOPInstanceUID="1.2.5", BurnedInAnnotation="YES"))
    now = waiting(site)
    assert (now.studies, now.originals, now.failing, now.since) == (2, 2, 1, 1_700_000_000)
    assert now.bytes == sum(path.stat().st_size for path in originals(site.identity_folder))
    assert now.is_long(quiet_s=60.0)
    sentence = next(iter(now.told()))
    assert sentence.startswith("2 studies wait to be worked off: 2 originals, 0.")
    assert "the oldest since 2023-11-1" in sentence
    assert sentence.endswith("; 1 of them failed and are tried again")
    assert sentence in told(standing(site))
    assert [finding.level for finding in look(site, site.folder)] == ["warn"]
    Arrivals(site).work(all_quiet=True)
    now = waiting(site)
    assert (now.studies, now.originals, now.patients, now.aside) == (0, 0, 0, 1)
    assert list(now.told()) == ["1 originals lie in quarantine, 0.0 MiB (konsil-site quarantine)"]
    assert [finding.level for finding in look(site, site.folder)] == ["ok"]


def test_originals_that_are_kept_for_some_days_do_not_wait(tmp_path: Path) -> None:
    site = a_site(tmp_path / "site", keep_originals_days=2.0)
    push(site, write_images(tmp_path / "images", 2))
    Arrivals(site).work(all_quiet=True)
    assert len(originals(site.identity_folder)) == 2
    assert waiting(site).originals == 0
