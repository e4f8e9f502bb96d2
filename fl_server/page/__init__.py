"""The coordinator's page: how each study goes, who answered, who is awaited, what it cost, and what came of it.

It reads the studies' folders and changes nothing in them. It shows hospitals' names and their own words, no patient; nothing of
it comes from any network, it works without JavaScript, and hospitals never reach it: the gate has no such address.
"""
