"""The hospital's own page: how the house stands, what waits for a person, who is in the cohort, what left the house.

It belongs to the zone without identities and shows pseudonyms only. Nothing of it comes from any network, it works without
JavaScript, and it is for the hospital's own people alone.
"""
