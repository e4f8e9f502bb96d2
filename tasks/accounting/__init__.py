"""What releases cost: events, their privacy curves, and how these compose. Pure arithmetic, of no patient and no file.

It stands below hospital and coordinator because both need it: a hospital prices what it releases and keeps count in its ledger
(fl_client/privacy), a coordinator plans a study with the same numbers. Only this package sees an accounting library.
"""
