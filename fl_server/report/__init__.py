"""The study report for a clinician."""
