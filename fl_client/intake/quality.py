"""The door's last look at a patient: quality parameters are measured and written beside the cohort."""

from fl_client.quality.records import record

__all__ = ["record"]
