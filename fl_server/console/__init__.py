"""What a coordinator sees of a study at the terminal: where it stands, what has happened, and how it goes right now.

It reads a study's folder (record.json, now.json, run.json) and changes nothing there: whoever looks disturbs nobody, whoever
stops looking stops nothing. A researcher's folder of runs is read in the same way, without any coordinator.
"""
