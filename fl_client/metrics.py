"""Numbers for the hospital's own monitoring, in Prometheus' text format: how the house stands, never about whom.

No metric has a label that names a patient, a study or a file. They hold exact counts, so the endpoint is the hospital's own.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fl_client import crashes
from fl_client.daemon import HIDDEN
from fl_client.site import Site
from fl_client.standing import standing

CONTENT_TYPE = CONTENT_TYPE_LATEST
"""What the text is, for the HTTP header."""


def metrics(site: Site) -> bytes:
    """The metrics at this instant."""
    registry = CollectorRegistry()
    registry.register(_House(site))
    return generate_latest(registry)


class _House(Collector):
    """The house as a source of metrics; it looks anew at each call."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def collect(self) -> Iterator[Metric]:
        now = standing(self._site)
        gauges = {
            "konsil_patients": ("Patients inside.", now.patients),
            "konsil_patients_withdrawn": ("Patients who have withdrawn.", now.withdrawn),
            "konsil_studies_waiting": ("Studies that nobody has decided about.", len(now.waiting)),
            "konsil_budget_epsilon": ("The most that patients' data may cost.", now.budget),
            "konsil_halted": ("0 works, 1 paused, 2 stopped.", {"": 0, "paused": 1, "stopped": 2}[now.halted]),
            "konsil_books_broken": ("Books that a person has to look at.", len(now.wrong)),
            "konsil_disk_free_bytes": ("Room on the disk of the cohort.", shutil.disk_usage(self._site.folder).free),
        }
        if now.epsilon is not None:
            gauges["konsil_epsilon"] = ("What patients' data have cost so far.", now.epsilon)
        for name, (help_text, value) in gauges.items():
            yield GaugeMetricFamily(name, help_text, value=float(value))
        running = GaugeMetricFamily("konsil_running", "1 while this part of the house runs.", labels=["role"])
        for role in ("intake", "trainer", "page"):
            if now.elsewhere.get(role) != HIDDEN:  # no number rather than one that may be wrong
                running.add_metric([role], float(role in {*now.running, *now.elsewhere}))
        yield running
        ended = GaugeMetricFamily(
            "konsil_ended_by_itself", "How often this part was started again since it last ran well.", labels=["part"]
        )
        counts = crashes.counts(self._site)
        for role, parts in crashes.PARTS.items():
            if now.elsewhere.get(role) != HIDDEN:
                for part in parts:
                    ended.add_metric([part], float(counts.get(part, 0)))
        yield ended
        counters = {
            "konsil_releases": ("Releases that concern patients.", now.releases),
            "konsil_messages_left": ("Messages that left the house.", now.left_the_house),
            "konsil_refused": ("Patients and files that stayed outside.", now.refused),
        }
        for name, (help_text, value) in counters.items():
            yield CounterMetricFamily(name, help_text, value=float(value))
