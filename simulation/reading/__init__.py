"""A blinded reading in the browser: can radiologists tell drawn scans from real ones?

    python -m simulation.reading REAL_FOLDER SYNTHETIC_FOLDER --answers FOLDER

`scans` brings every scan of both kinds to one look, `deck` chooses and shuffles them, `answers` keeps what readers say, `page`
shows one scan after the other, and `figures` and `summary` say at the end how often the readers were right.
"""
